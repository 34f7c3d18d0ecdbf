"""The topics of the wire, built and parsed exactly: ``m/{domain}/c/{channel}/...``.

Routing is by equality, never by substring, so a task cannot smuggle itself into another route by its name.
Source: the topic map of absmach/propeller; the topics marked *ours* are announced extensions.
"""

from dataclasses import dataclass
from enum import Enum

_FORBIDDEN = frozenset("/+#\0")


class InvalidTopicError(ValueError):
    """A name cannot be a topic level; the message says which name and why."""


class Route(Enum):
    """What a topic carries; the value is its suffix under the base, ``{}`` standing for one level (a proplet id)."""

    CREATE = "control/proplet/create"
    ALIVE = "control/proplet/alive"
    METRICS = "control/proplet/metrics"
    TASK_METRICS = "control/proplet/task_metrics"
    RESULTS = "control/proplet/results"
    INVOKE_RESULTS = "control/proplet/invoke_results"
    START = "control/manager/start"
    STOP = "control/manager/stop"
    INVOKE = "control/manager/invoke"
    MODULE_REQUEST = "registry/proplet"
    MODULE_CHUNK = "registry/server"
    ROUND_START = "fl/rounds/start"
    # ours
    HELLO = "control/manager/hello"
    INVENTORY = "control/proplet/inventory"
    LOGS = "control/proplet/logs"
    PROGRESS = "control/proplet/progress"
    OWN_START = "control/manager/start/{}"
    OWN_STOP = "control/manager/stop/{}"
    OWN_INVOKE = "control/manager/invoke/{}"
    OWN_MODULE_REQUEST = "registry/proplet/{}"
    OWN_MODULE_CHUNK = "registry/server/{}"

    @property
    def is_own(self) -> bool:
        """Whether the topic names one proplet."""
        return self.value.endswith("/{}")


OWN = {
    Route.START: Route.OWN_START,
    Route.STOP: Route.OWN_STOP,
    Route.INVOKE: Route.OWN_INVOKE,
    Route.MODULE_REQUEST: Route.OWN_MODULE_REQUEST,
    Route.MODULE_CHUNK: Route.OWN_MODULE_CHUNK,
}
SHARED = {own: shared for shared, own in OWN.items()}
_BY_SUFFIX = {route.value: route for route in Route if not route.is_own}
_BY_OWN_PREFIX = {route.value.removesuffix("{}"): route for route in Route if route.is_own}


def check_level(name: str, what: str) -> str:
    """Return `name` if it can be one topic level and part of a subscription.

    Raises:
        InvalidTopicError: it is empty, too long, or has a character MQTT reserves (3.1.1, section 4.7).
    """
    if not name:
        raise InvalidTopicError(f"{what} is empty")
    if len(name.encode("utf-8", "replace")) > 256:
        raise InvalidTopicError(f"{what} is longer than 256 bytes")
    bad = _FORBIDDEN.intersection(name)
    if bad or any(0xD800 <= ord(c) <= 0xDFFF for c in name):
        raise InvalidTopicError(f"{what} {name!r} has a character that a topic level cannot have (one of / + # NUL)")
    return name


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a concrete topic says: its route and, on an own topic, the proplet it names."""

    route: Route
    proplet_id: str | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one channel. `domain` is the reference's domain id (tenant id since mid 2026)."""

    domain: str
    channel: str

    def __post_init__(self) -> None:
        check_level(self.domain, "the domain (tenant) id")
        check_level(self.channel, "the channel id")

    @property
    def base(self) -> str:
        """The prefix of every topic of this channel, without a trailing slash."""
        return f"m/{self.domain}/c/{self.channel}"

    def build(self, route: Route, proplet_id: str | None = None) -> str:
        """Return the topic of `route`; own routes need the `proplet_id`, others refuse it.

        Raises:
            InvalidTopicError: the proplet id is missing, superfluous, or no topic level.
        """
        if route.is_own:
            return f"{self.base}/{route.value.format(check_level(proplet_id or '', 'the proplet id'))}"
        if proplet_id is not None:
            raise InvalidTopicError(f"{route.value} is shared by all proplets and names none")
        return f"{self.base}/{route.value}"

    def every(self, route: Route) -> str:
        """Return the subscription to an own route of all proplets; for managers.

        Raises:
            InvalidTopicError: the route is none.
        """
        if not route.is_own:
            raise InvalidTopicError(f"{route.value} is one topic already")
        return f"{self.base}/{route.value.format('+')}"

    def parse(self, topic: str) -> Parsed | None:
        """Return what `topic` says, or None where it is not one of this channel's."""
        prefix = self.base + "/"
        if not topic.startswith(prefix):
            return None
        suffix = topic[len(prefix) :]
        route = _BY_SUFFIX.get(suffix)
        if route is not None:
            return Parsed(route)
        head, slash, last = suffix.rpartition("/")
        own = _BY_OWN_PREFIX.get(head + slash)
        if own is None or not last or _FORBIDDEN.intersection(last):
            return None
        return Parsed(own, last)

    def round_update(self, round_id: str, proplet_id: str) -> str:
        """The topic of a federated update; the reference publishes it without the channel's base."""
        return f"fl/rounds/{check_level(round_id, 'the round id')}/updates/{check_level(proplet_id, 'the proplet id')}"
