"""What a request to the mirror is about: its path, its range of bytes, its page; and which repositories it can mean.

Source: OCI distribution specification 1.1, "Endpoints"; RFC 9110, 14.1.2 and 14.2, for ranges. Pure.
"""

import fnmatch
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from proplet.oci.digest import Digest
from proplet.oci.errors import OciError
from proplet.oci.reference import DOCKER_HUB, Reference

_MAX_PATH: Final = 1024
_MAX_RANGE_DIGITS: Final = 18
_RANGE: Final = re.compile(rf"bytes\s*=\s*([0-9]{{0,{_MAX_RANGE_DIGITS}}})\s*-\s*([0-9]{{0,{_MAX_RANGE_DIGITS}}})\s*")


class What(StrEnum):
    """The endpoints there are."""

    BASE = "base"
    CATALOG = "catalog"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"


class NoSuchNameError(Exception):
    """The path, or a name in it, is none; `code` is one of the specification's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names. `name` is as in the path; either of `tag` and `digest` is set where the endpoint has one."""

    what: What
    name: str = ""
    tag: str | None = None
    digest: Digest | None = None


def parse_path(path: str) -> Target:
    """Return what a path, percent-decoded once, names.

    Raises:
        NoSuchNameError: nothing; or a name or digest that breaks the specification's grammar.
    """
    if len(path) > _MAX_PATH or not f"{path}/".startswith("/v2/"):
        raise NoSuchNameError("NAME_UNKNOWN", "there is nothing but /v2/ here")
    if path in {"/v2", "/v2/"}:
        return Target(What.BASE)
    if path == "/v2/_catalog":
        return Target(What.CATALOG)
    parts = path.removeprefix("/v2/").split("/")
    if len(parts) < 3:
        raise NoSuchNameError("NAME_UNKNOWN", "there is no such endpoint")
    name, kind, last = "/".join(parts[:-2]), parts[-2], parts[-1]
    if (kind, last) == ("tags", "list"):
        return Target(What.TAGS, name)
    if kind == "manifests":
        if ":" in last:
            return Target(What.MANIFEST, name, digest=_digest(last))
        return Target(What.MANIFEST, name, tag=_tag(last))
    if kind == "blobs":
        return Target(What.BLOB, name, digest=_digest(last))
    if kind == "referrers":
        return Target(What.REFERRERS, name, digest=_digest(last))
    raise NoSuchNameError("NAME_UNKNOWN", "there is no such endpoint")


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except OciError as error:
        raise NoSuchNameError("DIGEST_INVALID", str(error)) from None


def _tag(text: str) -> str:
    try:
        return str(Reference(DOCKER_HUB, "x", text).tag)
    except OciError:
        raise NoSuchNameError("MANIFEST_UNKNOWN", "that is no tag") from None


@dataclass(frozen=True, slots=True)
class Naming:
    """Which repositories of the store a name means.

    Attributes:
        own: registries that are this mirror itself, as ``host:port``, and ``localhost``: what the store has under one
            of them was put there for the mirror.
        allow: patterns of repositories that everybody may have who may ask, and that are pulled on demand.
    """

    own: frozenset[str]
    allow: tuple[str, ...] = ()

    def allowed(self, repository: str) -> bool:
        """Whether a repository, with its registry, is on the list."""
        return any(fnmatch.fnmatchcase(repository, pattern) for pattern in self.allow)

    def is_own(self, repository: str) -> bool:
        """Whether a repository is the mirror's own."""
        return repository.partition("/")[0] in self.own

    def pulled(self, repository: str) -> bool:
        """Whether a repository may be pulled on demand; never the mirror's own: it would ask itself."""
        return self.allowed(repository) and not self.is_own(repository)

    def served(self, repository: str, *, known: bool) -> bool:
        """Whether a client may have a repository of the store. `known`: it has shown the password."""
        return known or self.is_own(repository) or self.allowed(repository)

    def meant(self, name: str, namespace: str | None, stored: Collection[str]) -> str:
        """Return the repository that a name means; `stored` are those in the store that the client may have.

        `namespace` is the registry in containerd's query parameter ``ns``.

        Raises:
            NoSuchNameError: it breaks the grammar, or means several.
        """
        if namespace is not None:
            return _name(f"{namespace}/{name}")
        full = None
        head, slash, _ = name.partition("/")
        if slash and _is_registry(head):
            full = _name(name)
            if full in stored or self.pulled(full):
                return full
        if ":" in name:
            return full or _name(name)
        _name(f"localhost/{name}")  # the grammar
        own = sorted(repository for repository in stored if self.is_own(repository) and _path(repository) == name)
        if own:
            return own[0]
        hub = _name(f"{DOCKER_HUB}/{name}")
        if self.pulled(hub):  # a mirror of Docker Hub is asked without a registry
            return hub
        found = sorted(repository for repository in stored if _path(repository) == name or repository == hub)
        if len(found) > 1:
            raise NoSuchNameError(
                "NAME_UNKNOWN", f"{len(found)} repositories are called {name} here: put the registry before it"
            )
        return found[0] if found else full or f"localhost/{name}"


def _is_registry(head: str) -> bool:
    return "." in head or ":" in head or head == "localhost"


def _path(repository: str) -> str:
    return repository.partition("/")[2]


def _name(text: str) -> str:
    """Return the repository written as ``registry/path``, in the form the store has it in."""
    head, _, rest = text.partition("/")
    if "@" in text or ":" in rest or not rest:
        raise NoSuchNameError("NAME_INVALID", "that is no repository's name")
    # Docker's rule would take a bare word for a part of the path: only what is a registry may come first.
    if not _is_registry(head):
        raise NoSuchNameError("NAME_INVALID", f"{head[:80]!r} is no registry")
    try:
        return Reference.parse(text).name
    except OciError:
        raise NoSuchNameError("NAME_INVALID", "that is no repository's name") from None


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last`, both included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


class NoSuchBytesError(Exception):
    """The range begins behind the end."""


def parse_range(header: str | None, size: int) -> Span | None:
    """Return the bytes asked for, of so many; None is all: no range, several, or one that cannot be understood.

    Raises:
        NoSuchBytesError: there are none of these.
    """
    found = _RANGE.fullmatch(header) if header and header.isascii() else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        wanted = min(int(last), size)
        if not wanted:
            raise NoSuchBytesError
        return Span(size - wanted, size - 1)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise NoSuchBytesError
    return Span(int(first), min(int(last), size - 1) if last else size - 1)


def page(names: Sequence[str], count: str | None, after: str | None) -> tuple[list[str], bool]:
    """Return a page of sorted names, and whether there are more. `count` and `after` are the parameters n and last.

    Raises:
        NoSuchNameError: n is no number.
    """
    rest = [name for name in names if after is None or name > after]
    if count is None:
        return rest, False
    if not (count.isascii() and count.isdigit() and len(count) < 10):
        raise NoSuchNameError("PAGINATION_NUMBER_INVALID", "n must be a number")
    wanted = int(count)
    return rest[:wanted], 0 < wanted < len(rest)
