"""Where secrets come from: a value, a file named by ``<key>_file``, or a systemd credential, in this order.

The credential of a setting is named like it, with dashes: ``mqtt-client-key`` is `mqtt.client_key`, and
``registries-ghcr-io-password`` the password for ghcr.io. Source: systemd.exec(5), LoadCredential=.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proplet.agent.config_files import FileProblem, read_secret, readable_by_others
from proplet.agent.config_reader import Given, Problem, Tree, overlay


@dataclass(slots=True)
class Secrets:
    """The secrets found, as a layer, and what is wrong with how they are kept."""

    settings: Tree = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def secrets_layer(tree: Tree, environ: Mapping[str, str]) -> Secrets:
    """Return the secrets of a configuration; files are read once, now."""
    found = Secrets()
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    for where, key, table in _places(tree):
        name = re.sub(r"[^A-Za-z0-9]+", "-", ".".join((*where, key)))
        credential = Path(directory) / name if directory.startswith("/") else None
        secret = _secret(found, ".".join((*where, key)), table.get(key), table.get(f"{key}_file"), credential)
        if secret is not None:
            below: Tree = {key: secret}
            for part in reversed(where):
                below = {part: below}
            found.settings = overlay(found.settings, below)
    return found


def _places(tree: Tree) -> Iterator[tuple[tuple[str, ...], str, Tree]]:
    yield ("mqtt",), "client_key", _table(tree, "mqtt")
    if "manager" in tree:
        yield ("manager", "api"), "token", _table(_table(tree, "manager"), "api")
        if "mirror" in _table(tree, "manager"):
            yield ("manager", "mirror"), "password", _table(_table(tree, "manager"), "mirror")
    for host, table in _table(tree, "registries").items():
        if isinstance(table, dict):
            yield ("registries", host), "password", table


def _table(tree: Tree, name: str) -> Tree:
    node: Any = tree.get(name)
    return node if isinstance(node, dict) else {}


def _secret(found: Secrets, setting: str, value: Any, file: Any, credential: Path | None) -> Given | None:
    value, file = (node if isinstance(node, Given) and isinstance(node.raw, str) else None for node in (value, file))
    if value and file and value.text == file.text:
        found.problems.append(
            Problem(value.origin, setting, f"given directly and by {file.origin}; keep the file only")
        )
        return None
    if value and (not file or value.text):
        _exposed(found, value)
        return None
    if file:
        try:
            path = file.base / Path(file.raw).expanduser()
        except RuntimeError as error:  # the home of a user that is not there
            found.problems.append(Problem(file.origin, setting, str(error)))
            return None
        return _read(found, setting, path, file.origin)
    if credential is not None and credential.is_file():
        return _read(found, setting, credential, "")
    return None


def _exposed(found: Secrets, value: Given) -> None:
    if value.origin.startswith("--"):
        found.warnings.append(
            f"{value.origin} shows the secret to everybody on this machine (ps): use {value.origin}-file FILE"
        )
    elif not value.text:
        warning = readable_by_others(Path(value.origin.rpartition(":")[0] or value.origin))
        if warning:
            found.warnings.append(warning)


def _read(found: Secrets, setting: str, path: Path, origin: str) -> Given | None:
    try:
        text = read_secret(path)
    except FileProblem as error:
        found.problems.append(Problem(origin, setting, str(error)))
        return None
    # A credential's file is systemd's: its mode is not the administrator's choice.
    if origin and (warning := readable_by_others(path)):
        found.warnings.append(warning)
    return Given(text, str(path))
