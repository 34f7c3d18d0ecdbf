"""``get -w``: the table, then a line for every change, as it comes."""

import argparse
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from queue import SimpleQueue

from proplet.agent import render
from proplet.agent.cli import NOT_FOUND, OK, CliError
from proplet.agent.cli_resources import UNDER_WAY, absent, printed, table, with_counts
from proplet.agent.cli_session import Session
from proplet.agent.client import WatchEvent
from proplet.agent.render import Manifest, at

_DELETED = "deleted"
_TOGETHER_S = 0.1  # changes this close to each other are looked at together
_PASSING = ("lastSeen", "updatedAt", "aliveHistory")
_Told = tuple[str, WatchEvent | Exception]


def watch_resources(
    session: Session, kind: str, namespace: str | None, names: Sequence[str], options: argparse.Namespace
) -> int:
    """Print what there is, then changes until the person ends it; a name that is not there is waited for."""
    if kind == "proplets":
        return _watch_proplets(session, namespace, names, options)
    only = names[0] if len(names) == 1 else None
    found: list[Manifest] = []
    printer: _Printer | None = None
    with session.watch(kind, namespace, only) as events:
        for event in events:
            if event.object is not None and names and at(event.object, "metadata.name") not in names:
                continue
            if printer is None and event.object is not None:
                found.append(event.object)
            elif printer is None:
                printer = _Printer(kind, options)
                printer.first(found, session, names)
            elif event.object is not None:
                printer.change(event)
    return OK if found or not names else NOT_FOUND


def _watch_proplets(session: Session, namespace: str | None, names: Sequence[str], options: argparse.Namespace) -> int:
    """Print proplets whenever something about them changes, the number of their tasks included.

    That number and when a proplet was last heard are not stored with it: the node is asked for them when a proplet or a
    task has changed. A heartbeat alone is no change.
    """
    told: SimpleQueue[_Told] = SimpleQueue()
    for kind in ("proplets", "tasks"):
        threading.Thread(target=_tell, args=(session, kind, told), daemon=True).start()
    placed: dict[object, object] = {}
    for _ in range(2):
        while _take(told.get(), placed):
            pass
    printer, shown = _Printer("proplets", options), _proplets(session, namespace, names, placed)
    printer.first(list(shown.values()), session, names)
    while True:
        _take(told.get(), placed)
        threading.Event().wait(_TOGETHER_S)
        while not told.empty():
            _take(told.get(), placed)
        now = _proplets(session, namespace, names, placed)
        for key, item in now.items():
            if _lasting(item) != _lasting(shown.get(key)):
                printer.change(WatchEvent("MODIFIED", dict(item), 0))
        for key in shown.keys() - now.keys():
            printer.change(WatchEvent("DELETED", dict(shown[key]), 0))
        shown = now


def _tell(session: Session, kind: str, told: "SimpleQueue[_Told]") -> None:
    """Pass on a watch's events, then why it ended; in a thread of its own."""
    try:
        with session.watch(kind, None) as events:
            for event in events:
                told.put((kind, event))
        told.put((kind, CliError(f"the node ended the watch of {kind}")))
    except Exception as error:  # noqa: BLE001 - raised again where it can be told
        told.put((kind, error))


def _take(told: "_Told", placed: dict[object, object]) -> bool:
    """Note on which proplet a task is under way; false when the beginning of a watch is complete."""
    kind, event = told
    if isinstance(event, Exception):
        raise event
    if event.object is None:
        return False
    if kind == "tasks":
        uid = at(event.object, "metadata.uid")
        placed.pop(uid, None)
        if event.type != "DELETED" and at(event.object, "status.phase") in UNDER_WAY:
            placed[uid] = at(event.object, "status.assignedProplet")
    return True


def _proplets(
    session: Session, namespace: str | None, names: Sequence[str], placed: Mapping[object, object]
) -> dict[tuple[object, object], Manifest]:
    found = with_counts(session.list("proplets", namespace), Counter(placed.values()))
    return {
        (at(item, "metadata.namespace"), at(item, "metadata.name")): item
        for item in found
        if not names or at(item, "metadata.name") in names
    }


def _lasting(item: Manifest | None) -> object:
    """Return what makes a change of a proplet: everything but when it was heard or written."""
    if item is None:
        return None
    status = {key: value for key, value in (item.get("status") or {}).items() if key not in _PASSING}
    return item.get("spec"), at(item, "metadata.labels"), at(item, "metadata.uid"), status


class _Printer:
    """Prints rows that stay aligned under the first table."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        self._kind = kind
        self._options = options
        self._widths: list[int] = []

    def first(self, found: Sequence[Manifest], session: Session, names: Sequence[str]) -> None:
        """Print what there is."""
        known = {str(at(item, "metadata.name")): item for item in found}
        for name in names:
            if name not in known:
                session.say(f"{absent(self._kind, name, known)}; waiting for it")
        if self._options.output in ("table", "wide"):
            cells = table(self._kind, found, self._options)
            if cells:
                self._widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
            self._write("".join(f"{line}\n" for line in render.aligned(cells)))
        else:
            for item in found:
                self._document(item)

    def change(self, event: WatchEvent) -> None:
        """Print one change."""
        item = event.object
        assert item is not None
        if event.type == "DELETED":
            item = {**item, "status": {**(item.get("status") or {}), "phase": _DELETED}}
        if self._options.output not in ("table", "wide"):
            self._document(item)
            return
        row = table(self._kind, [item], self._options)[-1]
        self._widths = [max(n, len(text)) for n, text in zip(self._widths or [0] * len(row), row, strict=True)]
        self._write("".join(f"{line}\n" for line in render.aligned([row], self._widths)))

    def _document(self, item: Manifest) -> None:
        separator = "---\n" if self._options.output == "yaml" else ""
        self._write(separator + printed(self._kind, [item], self._options, single=True))

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
