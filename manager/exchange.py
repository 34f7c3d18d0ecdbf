"""What is said between this manager and a proplet about one attempt: signals in, commands out, and how often.

A `Contact` is memory only. Losing it (a restart) repeats messages, which attempts make harmless; it is never needed to
know what is so. Times named `mono` are monotonic seconds, so that a Pi that learns the date late loses nothing.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from proplet.agent.wire import Result, Start, Stop
from proplet.manager.model import TaskStatus

HELLOS_MISSED: Final = 3
_BROKEN_TWICE: Final = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """How long the control plane waits for what; seconds, except the counts."""

    silence_s: float = 30.0  # without a heartbeat, a proplet is lost
    offline_grace_s: float = 15.0  # after an `offline` will: an agent may just be restarting
    confirm_s: float = 5.0  # for a start or a stop to be answered, doubling with every repetition
    missing_grace_s: float = 3.0  # an inventory lacks a task: its result may be in flight
    max_sends: int = 6  # of one attempt's start without any answer; then it is lost
    max_stops: int = 8  # of one attempt's stop; then the task is interrupted all the same
    silent_stop_s: float = 30.0  # for proplets that do not confirm a stop
    silent_deadline_s: float = 3600.0  # for proplets that never say what they hold; daemons are exempt
    deadline_margin_s: float = 30.0
    backoff_max_s: float = 300.0
    backoff_limit: int = 6  # interruptions and losses of one run that are tried again
    overload_rest_s: float = 5.0
    hello_every_s: float = 300.0  # asks everybody for discovery and inventory, in case a message was lost
    confirm_delay_s: float = 0.02  # a task that is over sooner is never recorded as running: one write less
    finalizers: bool = False  # mark what runs for longer, so that a deletion waits for its end
    finalize_after_s: float = 2.0  # a task that is over sooner gets no such mark: two writes less
    last_seen_every_s: float = math.inf  # how often it is written down that a proplet is still there


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, twice: `wall` for what is written down (epoch seconds), `mono` for durations."""

    wall: float
    mono: float


# --- signals ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holds:
    """A proplet says that it holds an attempt of the task (None: it does not say which).

    `ended`: it has finished it, and its result is on the way. `confirms`: that means the task runs. `note` says to
    people why it waits there; None: the proplet does not say. `image`: the digest its image's name stands for.
    """

    proplet_id: str
    attempt: int | None = None
    ended: bool = False
    confirms: bool = True
    note: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Lacks:
    """A proplet's inventory does not name the task."""

    proplet_id: str


@dataclass(frozen=True, slots=True)
class Handed:
    """The broker has an attempt's start for a proplet that will not confirm it; that counts as its word."""

    proplet_id: str | None
    attempt: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A proplet's result."""

    result: Result

    @property
    def attempt(self) -> int | None:
        """The attempt it says it is of."""
        return self.result.ext.attempt if self.result.ext else None


@dataclass(frozen=True, slots=True)
class Unsendable:
    """The broker does not take the start, and never will: it is too large."""

    attempt: int
    message: str


@dataclass(frozen=True, slots=True)
class SessionLost:
    """What was under way may be gone: the broker has forgotten its sessions, or a proplet without memory restarted."""


Signal = Holds | Lacks | Handed | Ended | Unsendable | SessionLost


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendStart:
    """Publish a start, then note it in the contact."""

    proplet_id: str | None
    command: Start


@dataclass(frozen=True, slots=True)
class SendStop:
    """Publish a stop, then note it in the contact. `farewell`: nobody waits for an answer."""

    proplet_id: str | None
    command: Stop
    farewell: bool = False


Effect = SendStart | SendStop


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows: the status to record (None: it stays), what to do then, and when to look again (monotonic).

    `why` is one word for why it is pending. `mark`: put our finalizer on the task (True) or take it off (False).
    """

    status: TaskStatus | None = None
    then: tuple[Effect, ...] = ()
    wake: float = math.inf
    delete: bool = False
    crowded: bool = False  # pending only because the fitting proplets are full
    awaiting: bool = False  # pending until a proplet comes that fits
    why: str = ""
    mark: bool | None = None


# --- contacts ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Contact:
    """One attempt on one proplet, as far as this process knows: what was sent, what was heard, what is due when."""

    attempt: int
    since: float
    ask_at: float  # when the start is to be published (again), monotonic
    sends: int = 0
    broken: int = 0  # publishes in a row that the broker did not take
    heard: bool = False
    missing: bool = False
    stop_at: float = 0.0
    stops: int = 0

    def sent(self, mono: float, policy: Policy, *, tells: bool) -> None:
        """The start was taken by the broker."""
        self.sends += 1
        self.broken = 0
        self.missing = False
        self.ask_at = mono + policy.confirm_s * 2.0 ** min(self.sends - 1, 4) if tells else math.inf

    def unsent(self, mono: float, pause: float = 1.0) -> None:
        """A publish failed; a reconnect asks again at once, and failing that this does, after `pause` seconds or more.

        From the second time on a reconnect does not: what costs the connection must leave room for others.
        """
        self.broken += 1
        self.ask_at = self.stop_at = mono + min(60.0, pause * 2.0 ** min(self.broken - 1, 5))

    def hear(self, mono: float, policy: Policy, *, ended: bool = False) -> None:
        """The proplet holds it. Inventories are asked for all the time, so its word holds for a few of them only.

        A result that is said to be on the way may have passed while the broker had forgotten us: it is soon asked for,
        and one that is promised again and again but never comes is given up at last.
        """
        self.heard, self.missing = True, False
        if ended:
            self.ask_at = min(self.ask_at, mono + 2 * policy.confirm_s)
        else:
            self.sends = 0
            self.ask_at = mono + HELLOS_MISSED * policy.hello_every_s

    def miss(self, mono: float, policy: Policy) -> None:
        """The proplet does not hold it; a result or the start may still be in flight."""
        if not self.missing:
            self.heard, self.missing = False, True
            self.ask_at = min(self.ask_at, mono + policy.missing_grace_s)

    def stopped(self, mono: float, policy: Policy, *, tells: bool) -> None:
        """The stop was taken by the broker."""
        self.stops += 1
        self.broken = 0
        self.stop_at = mono + (policy.confirm_s * 2.0 ** min(self.stops - 1, 4) if tells else policy.silent_stop_s)


@dataclass(slots=True)
class Contacts:
    """The contacts of one task, by proplet; of its current attempt only. None is the shared topic."""

    _by_proplet: dict[str | None, Contact] = field(default_factory=dict)

    def of(self, proplet_id: str | None, attempt: int, mono: float, *, ask_at: float) -> Contact:
        """Return the contact for this attempt; a new one has its start due at `ask_at`."""
        contact = self._by_proplet.get(proplet_id)
        if contact is None or contact.attempt != attempt:
            contact = self._by_proplet[proplet_id] = Contact(attempt, mono, ask_at)
        return contact

    def known(self, proplet_id: str | None, attempt: int) -> Contact | None:
        """Return the contact for this attempt, if there is one."""
        contact = self._by_proplet.get(proplet_id)
        return contact if contact is not None and contact.attempt == attempt else None

    def reconnected(self, mono: float, policy: Policy, *, unsent: bool) -> None:
        """The broker is back. What was not sent is due now; what was, after the proplets have said what they hold."""
        for contact in self._by_proplet.values():
            if contact.ask_at < math.inf:
                first = unsent and contact.sends == 0
                if first:
                    contact.ask_at = mono if contact.broken < _BROKEN_TWICE else max(contact.ask_at, mono)
                else:
                    contact.ask_at = max(contact.ask_at, mono + policy.confirm_s)
            contact.stop_at = min(contact.stop_at, mono)
