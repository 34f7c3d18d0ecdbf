"""``proplet apply``, ``get``, ``describe`` and ``delete``: resources, by manifests and by name."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proplet.agent import render
from proplet.agent.cli import FAILED, NOT_FOUND, OK, USAGE, CliError
from proplet.agent.cli_session import Session, run
from proplet.agent.config_reader import did_you_mean
from proplet.agent.render import Manifest, at

#: What a person may call a kind; the first is the API's name, the title that of manifests.
NAMES: Mapping[str, tuple[str, ...]] = {
    "Task": ("tasks", "task"),
    "Proplet": ("proplets", "proplet"),
    "PropellerJob": ("propellerjobs", "propellerjob", "pjob", "jobs", "job"),
    "FederatedJob": ("federatedjobs", "federatedjob"),
    "TrainingRound": ("trainingrounds", "traininground"),
}
KINDS: Mapping[str, str] = {name: names[0] for names in NAMES.values() for name in names}
TITLES: Mapping[str, str] = {names[0]: title for title, names in NAMES.items()}
ALL = "all"
UNDER_WAY = ("scheduled", "running")
_SUFFIXES = (".yaml", ".yml", ".json")


def kind_and_names(kind: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the API's kind and the names of ``tasks a b`` or ``task/a``."""
    word, slash, name = kind.partition("/")
    found = KINDS.get(word.lower())
    if found is None:
        raise CliError(f"there is no kind `{word}`{did_you_mean(word, KINDS)}; try tasks, or jobs", USAGE)
    return found, [*([name] if slash and name else []), *names]


def manifest_files(names: Sequence[str]) -> list[Path | None]:
    """Return the files that ``-f`` names, directories opened up; None is standard input."""
    found: list[Path | None] = []
    for name in names:
        path = Path(name)
        if name == "-":
            found.append(None)
        elif path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
            if not inside:
                raise CliError(f"{path}: no manifests there (*{', *'.join(_SUFFIXES)})")
            found.extend(inside)
        else:
            found.append(path)
    return found


def manifest_text(path: Path | None) -> str:
    """Return a manifest file's text."""
    name = str(path or "standard input")
    try:
        data = path.read_bytes() if path else sys.stdin.buffer.read()
        return data.decode("utf-8")
    except OSError as error:
        raise CliError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"{name}: is not UTF-8 text") from error


def documents(text: str, name: str) -> list[Any]:
    """Return the documents of a manifest text, Lists opened up; only their outer shape is looked at."""
    import yaml

    try:
        plain = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CliError(f"{name}: is not valid YAML: {' '.join(str(error).split())}") from error
    found: list[Any] = []
    for document in plain:
        items = document.get("items") if isinstance(document, dict) and document.get("kind") == "List" else None
        found.extend(items if isinstance(items, list) else [document])
    return found


# --- apply -------------------------------------------------------------------------------------------------------


def apply(options: argparse.Namespace) -> int:
    """Create or change what the files describe; a file that is refused does not keep the others from being applied."""
    return run(options, _apply)


def _apply(session: Session, options: argparse.Namespace) -> int:
    status = OK
    applied: list[tuple[str, str, str]] = []
    for path in manifest_files(options.filename):
        name = str(path or "standard input")
        text = manifest_text(path)
        if options.namespace != "default":
            text = _in_namespace(documents(text, name), options.namespace)
        try:
            items = session.apply(text)
        except CliError as error:
            if error.status not in (FAILED, NOT_FOUND):
                raise
            # The node cannot know the file; it speaks of the request.
            session.complain("\n".join(f"{name}: {line.removeprefix('request: ')}" for line in str(error).splitlines()))
            status = FAILED
            continue
        for item in items:
            kind = KINDS[str(item["kind"]).lower()]
            applied.append((kind, str(item["namespace"]), str(item["name"])))
            if options.output is None:
                sys.stdout.write(f"{kind[:-1]}/{item['name']} {item['action']}\n")
    if options.output == "name":
        sys.stdout.writelines(f"{kind[:-1]}/{name}\n" for kind, _, name in applied)
    elif options.output and applied:
        found = [session.get(kind, namespace, name) for kind, namespace, name in applied]
        sys.stdout.write(render.documents(found, options.output, single=len(found) == 1))
    return status


def _in_namespace(plain: list[Any], namespace: str) -> str:
    for document in plain:
        if isinstance(document, dict) and isinstance(document.get("metadata"), dict):
            document["metadata"].setdefault("namespace", namespace)
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": plain}, default=str)


# --- get and describe --------------------------------------------------------------------------------------------


def get(options: argparse.Namespace) -> int:
    """Print resources, and with ``-w`` their changes; ``all`` is every kind."""
    if options.kind == ALL:
        if options.names or options.watch:
            raise CliError("`get all` takes no names and watches nothing: name a kind for that", USAGE)
        return run(options, _get_all)
    kind_and_names(options.kind, options.names)
    return run(options, _get)


def _get_all(session: Session, options: argparse.Namespace) -> int:
    """Print what there is of every kind, as kubectl does: names with their kind in front."""
    namespace = None if options.all_namespaces else options.namespace
    found = {kind: selected(session, kind, namespace, ())[0] for kind in TITLES}
    if options.output in ("json", "yaml"):
        everything = [item for items in found.values() for item in items]
        sys.stdout.write(render.documents(everything, options.output, single=False))
        return OK
    if not any(found.values()):
        session.say(f"nothing found{'' if namespace is None else f' in namespace {namespace}'}")
    named = {kind: [_with_kind(kind, item) for item in items] for kind, items in found.items()}
    texts = (
        printed(kind, found[kind] if options.output == "name" else named[kind], options, single=False) for kind in found
    )
    sys.stdout.write(("" if options.output == "name" else "\n").join(filter(None, texts)))
    return OK


def _with_kind(kind: str, item: Manifest) -> Manifest:
    return {**item, "metadata": {**item["metadata"], "name": f"{kind[:-1]}/{at(item, 'metadata.name')}"}}


def _get(session: Session, options: argparse.Namespace) -> int:
    kind, names = kind_and_names(options.kind, options.names)
    namespace = None if options.all_namespaces else options.namespace
    if options.watch:
        from proplet.agent.cli_watch import watch_resources

        return watch_resources(session, kind, namespace, names, options)
    found, status = selected(session, kind, namespace, names)
    if not found and not names and options.output in ("table", "wide"):
        session.say(f"no {kind} found{'' if namespace is None else f' in namespace {namespace}'}")
        return OK
    sys.stdout.write(printed(kind, found, options, single=len(names) == 1))
    return status


def selected(session: Session, kind: str, namespace: str | None, names: Sequence[str]) -> tuple[list[Manifest], int]:
    """Return the named resources, or all, and the exit code: names that are not there are complained about."""
    listed = session.list(kind, namespace)
    if kind == "proplets":
        under_way = (task for task in session.list("tasks", None) if at(task, "status.phase") in UNDER_WAY)
        listed = with_counts(listed, Counter(at(task, "status.assignedProplet") for task in under_way))
    if not names:
        return list(listed), OK
    by_name: dict[str, list[Manifest]] = {}
    for item in listed:
        by_name.setdefault(str(at(item, "metadata.name")), []).append(item)
    status, found = OK, []
    for name in names:
        if name in by_name:
            found.extend(by_name[name])
        else:
            session.complain(absent(kind, name, by_name))
            status = NOT_FOUND
    return found, status


def absent(kind: str, name: str, known: Mapping[str, Any]) -> str:
    """Return the message for a name that is not there."""
    near = did_you_mean(name, known)
    return f"there is no {kind[:-1]} `{name}`{near or f'; proplet get {kind} lists what there is'}"


def with_counts(proplets: Sequence[Manifest], counts: Mapping[Any, int]) -> list[Manifest]:
    """Return proplets with the number of tasks under way on each: a node does not write that down."""
    return [
        {**item, "status": {**(item.get("status") or {}), "taskCount": counts.get(at(item, "metadata.name"), 0)}}
        for item in proplets
    ]


def printed(kind: str, found: Sequence[Manifest], options: argparse.Namespace, *, single: bool) -> str:
    """Return resources in the form asked for, each line ended."""
    if options.output in ("json", "yaml"):
        if single and not found:
            return ""
        return render.documents(found, options.output, single=single and len(found) == 1)
    if options.output == "name":
        return "".join(f"{kind[:-1]}/{at(item, 'metadata.name')}\n" for item in found)
    if not found:
        return ""
    cells = table(kind, found, options)
    return "".join(f"{line}\n" for line in render.aligned(cells))


def table(kind: str, found: Sequence[Manifest], options: argparse.Namespace) -> list[list[str]]:
    """Return a table's cells, the namespaces in front if all are shown."""
    cells = render.rows(TITLES[kind], found, time.time(), wide=options.output == "wide")
    if options.all_namespaces:
        spaces = ["NAMESPACE", *(str(at(item, "metadata.namespace") or "") for item in found)]
        cells = [[space, *row] for space, row in zip(spaces, cells, strict=True)]
    return cells[1:] if options.no_headers else cells


def describe(options: argparse.Namespace) -> int:
    """Print all that is known of resources."""
    kind_and_names(options.kind, options.names)
    return run(options, _describe)


def _describe(session: Session, options: argparse.Namespace) -> int:
    kind, names = kind_and_names(options.kind, options.names)
    found, status = selected(session, kind, options.namespace, names)
    now = time.time()
    if kind == "tasks" and any(at(item, "status.phase") in UNDER_WAY for item in found):
        found = [_measured(item, session.top(options.namespace)["tasks"]) for item in found]
    sys.stdout.write("\n".join("".join(f"{line}\n" for line in render.describe(item, now)) for item in found))
    return status


def _measured(item: Manifest, entries: Sequence[Mapping[str, Any]]) -> Manifest:
    """Return a task with what it uses while it is under way, as last measured, in its status."""
    keys = ("proplet", "cpu_percent", "memory_bytes", "cpu_seconds", "restarts", "invocations", "measured_at")
    uid, status = at(item, "metadata.uid"), item.get("status") or {}
    mine = [one for one in entries if one.get("uid") == uid and "measured_at" in one]
    told = [{render.camel(key): one[key] for key in keys if key in one} for one in mine]
    return {**item, "status": {**status, "measured": told}} if told else item


# --- delete ------------------------------------------------------------------------------------------------------


def delete(options: argparse.Namespace) -> int:
    """Delete resources."""
    return run(options, _delete)


def _delete(session: Session, options: argparse.Namespace) -> int:
    targets = _targets_in_files(options)
    if options.kind is not None:
        kind, names = kind_and_names(options.kind, options.names)
        if options.all and not names:
            found = session.list(kind, options.namespace)
            names = [str(at(item, "metadata.name")) for item in found]
        elif not names:
            raise CliError(f"name the {kind} to delete, or give --all", USAGE)
        targets += [(kind, options.namespace, name) for name in names]
    elif not options.filename:
        raise CliError("say what to delete: tasks NAME, or -f FILE", USAGE)
    status = OK
    for kind, namespace, name in targets:
        try:
            session.delete(kind, namespace, name)
            sys.stdout.write(f"{kind[:-1]}/{name} deleted\n")
        except CliError as error:
            if error.status == NOT_FOUND and options.ignore_not_found:
                continue
            if error.status not in (FAILED, NOT_FOUND):
                raise
            session.complain(_not_deleted(session, kind, namespace, name, error))
            status = error.status
    return status


def _not_deleted(session: Session, kind: str, namespace: str, name: str, error: CliError) -> str:
    if error.status != NOT_FOUND:
        return str(error)
    return absent(kind, name, {str(at(item, "metadata.name")): item for item in session.list(kind, namespace)})


def _targets_in_files(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    targets = []
    for path in manifest_files(options.filename):
        name = str(path or "standard input")
        for document in documents(manifest_text(path), name):
            kind, given = at(document, "kind"), at(document, "metadata.name")
            if not isinstance(kind, str) or kind.lower() not in KINDS or not isinstance(given, str):
                raise CliError(f"{name}: a manifest has a kind ({', '.join(NAMES)}) and a metadata.name")
            namespace = at(document, "metadata.namespace")
            targets.append((KINDS[kind.lower()], str(namespace or options.namespace), given))
    return targets
