"""What tasks may ask for on this node: the rules of ``[agent.permissions]``, and what a node never gives away. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from proplet.agent.config_schema import NodeSettings, PermissionsTable

ANYWHERE: Final = "*"
_HOSTS: Final = (
    'names hosts, and the engine cannot hold a guest to hosts: write ["*"] (any address, this machine\'s own services '
    "and its neighbours among them) for tasks that ask, or leave it out"
)
_REPLACEABLE: Final = (
    "where tasks may write: they could put a link to anywhere in its place. Remove this one, it is allowed already, or "
    "allow only reading there"
)
_SECRET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/(\*|[A-Za-z0-9._-]+)")


def own_paths(settings: NodeSettings) -> tuple[Path, ...]:
    """Return the files and directories that the node itself lives from: all that its settings name, and its own."""
    source = settings.source
    beside = [file.parent / "conf.d" for file in source.files]
    return tuple(dict.fromkeys([*_paths(settings), *source.files, *beside]))


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        if value != Path():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _paths(item)
    elif is_dataclass(value) and not isinstance(value, PermissionsTable):
        for entry in fields(value):
            yield from _paths(getattr(value, entry.name))


def check_permissions(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    """Yield (setting, message) for what cannot be held, or would allow more than it says."""
    given = settings.agent.permissions
    for key, hosts in (("http", given.http), ("tcp", given.tcp)):
        if any(host != ANYWHERE for host in hosts):
            yield f"agent.permissions.{key}", _HOSTS
    for name in given.secrets:
        if name != ANYWHERE and not _SECRET.fullmatch(name):
            yield "agent.permissions.secrets", f'"{name}" is none: write "name/key", "name/*", or "*" for all'
    yield from _directories(settings)


def _directories(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    dirs = settings.agent.permissions.dirs
    for number, allowed in enumerate(dirs):
        setting, host = f"agent.permissions.dirs[{number}]", allowed.host
        if host == Path() or not host.is_absolute() or ".." in host.parts:
            yield setting, "needs a host: the absolute path of a directory, without `..`"
            continue
        if allowed.guest is not None and not allowed.always:
            yield setting, "has a guest path, but a task says by itself where it wants to see it: remove guest"
        real = host.resolve()
        for own in own_paths(settings):
            if real.is_relative_to(own.resolve()):
                yield setting, f"{host} belongs to {own}, which the node itself lives from: no task is ever given it"
                break
        for other in dirs:
            above = other.host.resolve()
            if other is not allowed and not other.read_only and real != above and real.is_relative_to(above):
                yield setting, f"{host} is below {other.host}, {_REPLACEABLE}"
