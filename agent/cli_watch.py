"""``get -w``: the table, then a line for every change, as it comes."""

import argparse
import sys
from collections.abc import Sequence

from proplet.agent import render
from proplet.agent.cli import NOT_FOUND, OK
from proplet.agent.cli_resources import absent, printed, table
from proplet.agent.cli_session import Session
from proplet.agent.client import WatchEvent
from proplet.agent.render import Manifest, at

_DELETED = "deleted"


def watch_resources(
    session: Session, kind: str, namespace: str | None, names: Sequence[str], options: argparse.Namespace
) -> int:
    """Print what there is, then changes until the person ends it; a name that is not there is waited for."""
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
