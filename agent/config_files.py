"""Configuration files as layers: TOML with the line of every value, the reference's credentials file, secret files.

The reference's ``config.toml`` has ``[manager]``, ``[proplet]`` (or ``[proplet1]`` ...) and ``[proxy]`` tables that
hold only the four credentials, under the names of either era. Such a file gives credentials and switches nothing on.
"""

import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proplet.agent.config_env import CREDENTIALS, leaf
from proplet.agent.config_reader import Given, Problem, Tree, did_you_mean, overlay, tree_of

_MAX_BYTES = 1024 * 1024
_MAX_SECRET_BYTES = 64 * 1024
_NAME = r"(?:[A-Za-z0-9_-]+|\"[^\"\n]*\"|'[^'\n]*')"
_HEADER = re.compile(rf"\s*\[(\[?)\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*\]")
_KEY = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")


class FileProblem(Exception):  # noqa: N818 - it carries a problem, which the caller collects with others
    """A file that cannot be used; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_toml(path: Path) -> tuple[Mapping[str, Any], str]:
    """Return a file's document and its text. Raises FileProblem."""
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError) as error:
        raise FileProblem(Problem(str(path), "", f"cannot be read: {_why(error)}")) from error
    if data is None:
        raise FileProblem(Problem(str(path), "", "is larger than 1 MiB; is this a configuration file?"))
    try:
        text = data.decode("utf-8")
        return tomllib.loads(text), text
    except RecursionError:
        raise FileProblem(Problem(str(path), "", "is nested too deeply")) from None
    except UnicodeDecodeError as error:
        raise FileProblem(Problem(str(path), "", f"is not UTF-8 text (byte {error.start})")) from error
    except ValueError as error:
        line = re.search(r"\(at line (\d+), column \d+\)$", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        raise FileProblem(Problem(where, "", f"is not valid TOML: {error}")) from error


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def layer_of(path: Path, document: Mapping[str, Any], text: str) -> Tree:
    """Return a document as a layer: relative paths are meant from the file's directory, origins are ``file:line``."""
    lines = _lines(text)

    def origin(where: tuple[str, ...]) -> str:
        line = next((lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines), None)
        return f"{path}:{line}" if line else str(path)

    return tree_of(document, path.parent.absolute(), origin)


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return where each key stands. Good enough for messages: text inside multi-line strings may add wrong entries."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _split(header[2])
            found.setdefault(table, number)
            if header[1]:  # one of a list of tables
                counts[table] = counts.get(table, -1) + 1
                table = (*table, str(counts[table]))
                found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_split(key[1])), number)
    return found


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, dotted))


def is_credentials_file(document: Mapping[str, Any]) -> bool:
    """Whether this is the reference's file: nothing but tables that hold nothing but credentials."""
    return bool(document) and all(
        isinstance(table, dict)
        and table
        and set(table) <= set(CREDENTIALS)
        and (name in ("manager", "proxy") or name.startswith("proplet"))
        for name, table in document.items()
    )


def credentials_layer(layer: Tree, path: Path, section: str) -> Tree:
    """Return the settings in one section of the reference's file. Raises FileProblem when there is no such section."""
    table = layer.get(section)
    if table is None:
        message = f"has no [{section}]{did_you_mean(section, layer)}; PROPLET_CONFIG_SECTION names the table to use"
        raise FileProblem(Problem(str(path), "", message))
    credentials: Tree = {}
    for key, value in table.items():
        credentials = overlay(credentials, leaf(CREDENTIALS[key], value))
    return credentials


def drop_ins(path: Path) -> Sequence[Path]:
    """Return ``conf.d/*.toml`` beside a configuration file, in the order of their names."""
    return sorted((path.parent / "conf.d").glob("*.toml"))


def read_secret(path: Path) -> str:
    """Return what a secret's file holds, without the line break at its end. Raises FileProblem."""
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_SECRET_BYTES else b""
        text = data.decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise FileProblem(Problem(str(path), "", f"the secret cannot be read: {_why(error)}")) from error
    if not text:
        raise FileProblem(Problem(str(path), "", "the secret is empty, or larger than 64 KiB"))
    return text


def readable_by_others(path: Path) -> str | None:
    """Return a warning when others than the owner and the group may read or anyone but the owner may write a file."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        return f"{path} holds a secret and its mode is {mode:04o}: chmod 600 {path}"
    return None


def given_in(layer: Tree, path: str) -> Given | None:
    """Return the value at a dotted path of a layer."""
    node: Any = layer
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, Given) else None
