"""Who may use the broker, and for which topics: identities, their secrets on disk, and their topic rules.

A proplet's rules keep it to its own: it publishes as itself, hears the shared commands and its own, and neither reads
other proplets' topics nor commands anybody.
"""

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from proplet.agent.topics import Route, Topics, check_level

CREDENTIALS_FILE = "broker-credentials.json"
_SECRET_BYTES = 32


class CredentialsError(Exception):
    """The file of credentials cannot be used; the message names it and says what to do."""


class Role(Enum):
    """What an identity is for."""

    PROPLET = "proplet"
    MANAGER = "manager"
    OBSERVER = "observer"


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who may connect. The user name is the client id, too: one connection at a time each.

    Raises:
        ValueError: the name cannot be one (also a topic level, and free of what the broker's files give a meaning).
    """

    username: str
    password: str = field(repr=False)
    role: Role

    def __post_init__(self) -> None:
        check_level(self.username, "the user name")
        if ":" in self.username or self.username != self.username.strip() or not self.username.isprintable():
            raise ValueError(f"the user name {self.username!r} has a colon, space around it or a control character")
        if not self.password:
            raise ValueError(f"the password of {self.username!r} is empty")


@dataclass(frozen=True, slots=True)
class Rules:
    """Topic filters that one identity may publish to and receive from; everything else is forbidden."""

    publish: tuple[str, ...]
    receive: tuple[str, ...]

    def may_publish(self, topic: str) -> bool:
        """Whether a message to `topic` (a will, too) is allowed."""
        return any(filter_matches(allowed, topic) for allowed in self.publish)

    def may_receive(self, topic: str) -> bool:
        """Whether a message on `topic` may be delivered."""
        return any(filter_matches(allowed, topic) for allowed in self.receive)

    def may_subscribe(self, wanted: str) -> bool:
        """Whether the filter `wanted` stays within what may be received: every topic it matches is allowed."""
        return any(filter_contains(allowed, wanted) for allowed in self.receive)


def rules_of(identity: Identity, domain: str, channel: str) -> Rules:
    """The topic rules of `identity` on one channel."""
    topics = Topics(domain, channel)
    everything = f"{topics.base}/#"
    if identity.role is Role.MANAGER:
        return Rules((everything, "fl/rounds/#"), (everything, "fl/rounds/#"))
    if identity.role is Role.OBSERVER:
        return Rules((), (everything,))
    reports = [topics.build(route) for route in Route if route.value.startswith("control/proplet/")]
    updates = f"fl/rounds/+/updates/{identity.username}"
    shared = [Route.START, Route.STOP, Route.INVOKE, Route.HELLO, Route.MODULE_CHUNK]
    own = [Route.OWN_START, Route.OWN_STOP, Route.OWN_INVOKE, Route.OWN_MODULE_CHUNK]
    asked = topics.build(Route.OWN_MODULE_REQUEST, identity.username)
    return Rules(
        publish=(*reports, topics.build(Route.MODULE_REQUEST), asked, updates),
        receive=(*map(topics.build, shared), *(topics.build(route, identity.username) for route in own)),
    )


def is_filter(text: str) -> bool:
    """Whether `text` is a topic filter (MQTT 3.1.1, section 4.7)."""
    levels = text.split("/")
    if not text or "\0" in text or len(text.encode("utf-8", "replace")) > 65535:
        return False
    if any(("+" in level and level != "+") or ("#" in level and level != "#") for level in levels):
        return False
    return "#" not in levels[:-1]


def filter_matches(wanted: str, topic: str) -> bool:
    """Whether the filter matches the topic (MQTT 3.1.1, section 4.7); wildcards in front never match ``$`` topics."""
    if wanted == topic:
        return True
    if topic.startswith("$") and wanted[:1] in {"+", "#"}:
        return False
    levels, parts = wanted.split("/"), topic.split("/")
    for at, level in enumerate(levels):
        if level == "#":
            return True  # also the parent level itself
        if at >= len(parts) or level not in ("+", parts[at]):
            return False
    return len(levels) == len(parts)


def filter_contains(allowed: str, wanted: str) -> bool:
    """Whether every topic that `wanted` matches is matched by `allowed`, too; both are filters."""
    if wanted.startswith("$") and allowed[:1] in {"+", "#"}:
        return False
    outer, inner = allowed.split("/"), wanted.split("/")
    for at, level in enumerate(outer):
        if level == "#":
            return True
        if at >= len(inner) or inner[at] == "#" or level not in ("+", inner[at]):
            return False
    return len(outer) == len(inner)


def load_or_create_identities(state_dir: Path, proplet_ids: Iterable[str], manager_id: str) -> list[Identity]:
    """The identities of this broker, with secrets made at the first start and the same ever after.

    They are kept in ``broker-credentials.json`` (mode 0600) in `state_dir`; ids that are new are added, and none is
    ever removed, so that a device that was told its secret keeps access. Touches the disk: call it in a thread.

    Raises:
        CredentialsError: the file is broken or cannot be written, or an id has two roles.
        ValueError: an id cannot be a user name.
    """
    path = state_dir / CREDENTIALS_FILE
    known = {identity.username: identity for identity in _read(path)}
    wanted = [(manager_id, Role.MANAGER), *((name, Role.PROPLET) for name in proplet_ids)]
    changed = False
    for name, role in wanted:
        present = known.get(name)
        if present is None:
            known[name] = Identity(name, secrets.token_urlsafe(_SECRET_BYTES), role)
            changed = True
        elif present.role is not role:
            raise CredentialsError(
                f"{name!r} is a {present.role.value} in {path} and cannot be a {role.value} as well: choose another id"
            )
    identities = list(known.values())
    if changed:
        _write(path, identities)
    return identities


def _read(path: Path) -> list[Identity]:
    try:
        rows = json.loads(path.read_bytes())["identities"]
        return [Identity(row["username"], row["password"], Role(row["role"])) for row in rows]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CredentialsError(f"the broker's credentials {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CredentialsError(
            f"the broker's credentials {path} are damaged ({error}): restore the file, or remove it to have new ones "
            "made (devices then need the new secrets)"
        ) from error


def _write(path: Path, identities: Sequence[Identity]) -> None:
    rows = [{"username": i.username, "password": i.password, "role": i.role.value} for i in identities]
    write_private(path, json.dumps({"identities": rows}, indent=1).encode() + b"\n")


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` at once and durably by a file that only this user can read.

    Raises:
        CredentialsError: the directory cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise CredentialsError(f"{path} cannot be written: {error.strerror}; is the state directory ours?") from error
