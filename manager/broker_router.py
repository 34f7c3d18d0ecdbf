"""Who receives a message in the embedded broker: sessions, subscriptions, retained messages. No I/O, no library.

Everything happens within one call, so nothing changes under a delivery's feet.
"""

import logging
from collections.abc import Iterable

from proplet.manager.broker_rules import Identity, Rules, filter_matches, is_filter
from proplet.manager.broker_session import Bounds, Message, Session

log = logging.getLogger(__name__)

REFUSED = 0x80


class Router:
    """The sessions of all clients, and what is retained for subscribers to come."""

    def __init__(self, identities: Iterable[tuple[Identity, Rules]], bounds: Bounds) -> None:
        self._known: dict[str, tuple[Identity, Rules]] = {}
        self._bounds = bounds
        self._sessions: dict[str, Session] = {}
        self._exact: dict[str, dict[Session, int]] = {}
        self._wild: dict[str, dict[Session, int]] = {}
        self._retained: dict[str, Message] = {}
        self._retained_bytes = 0
        self.know(identities)

    def know(self, identities: Iterable[tuple[Identity, Rules]]) -> None:
        """Replace who may have a session; the sessions of others are forgotten."""
        self._known = {identity.username: (identity, rules) for identity, rules in identities}
        for name in self._sessions.keys() - self._known.keys():
            self.forget(name)

    @property
    def sessions(self) -> set[str]:
        """The names of the clients that are remembered."""
        return set(self._sessions)

    def session(self, name: str, *, clean: bool) -> tuple[Session, bool]:
        """The session of an authenticated client, and whether it was there before."""
        if clean:
            self.forget(name)
        present = name in self._sessions
        if not present:
            identity, rules = self._known[name]
            self._sessions[name] = Session(identity, rules, self._bounds)
        return self._sessions[name], present

    def forget(self, name: str) -> None:
        """End a session with all it holds."""
        session = self._sessions.pop(name, None)
        if session is not None:
            for wanted in list(session.subscriptions):
                self.unsubscribe(session, wanted)

    def subscribe(self, session: Session, wanted: str, qos: int) -> int:
        """The return code of a SUBSCRIBE: the granted QoS (at most 1), or 0x80 where it is not allowed."""
        full = len(session.subscriptions) >= self._bounds.subscriptions and wanted not in session.subscriptions
        if full or not is_filter(wanted) or not session.rules.may_subscribe(wanted):
            log.warning("%s may not subscribe to %r", session.name, wanted)
            return REFUSED
        granted = min(qos, 1)
        session.subscriptions[wanted] = granted
        self._index(wanted).setdefault(wanted, {})[session] = granted
        return granted

    def send_retained(self, session: Session, wanted: str) -> None:
        """Give a new subscription what is retained for it, and to nobody else."""
        granted = session.subscriptions[wanted]
        for message in self._retained.values():
            if filter_matches(wanted, message.topic):
                session.offer(Message(message.topic, message.payload, min(message.qos, granted), retained=True))

    def unsubscribe(self, session: Session, wanted: str) -> None:
        """Forget a subscription; unknown ones are ignored."""
        session.subscriptions.pop(wanted, None)
        index = self._index(wanted)
        holders = index.get(wanted, {})
        holders.pop(session, None)
        if not holders:
            index.pop(wanted, None)

    def publish(self, session: Session, message: Message) -> None:
        """Deliver a client's message (or will) to each subscriber once, if its rules allow the topic."""
        if not session.rules.may_publish(message.topic):
            log.warning("%s may not publish to %r", session.name, message.topic)
            return
        if message.retained:
            self._retain(message)
        receivers = dict(self._exact.get(message.topic, {}))
        for wanted, holders in self._wild.items():
            if filter_matches(wanted, message.topic):
                for holder, qos in holders.items():
                    receivers[holder] = max(qos, receivers.get(holder, 0))
        for receiver, qos in receivers.items():
            receiver.offer(Message(message.topic, message.payload, min(message.qos, qos)))

    def _retain(self, message: Message) -> None:
        old = self._retained.pop(message.topic, None)
        self._retained_bytes -= old.cost if old else 0
        if not message.payload:
            return
        full = len(self._retained) >= self._bounds.queued_messages
        if full or self._retained_bytes + message.cost > self._bounds.queued_bytes:
            log.warning("no room to retain a message on %r", message.topic)
            return
        self._retained[message.topic] = message
        self._retained_bytes += message.cost

    def _index(self, wanted: str) -> dict[str, dict[Session, int]]:
        return self._wild if "+" in wanted or "#" in wanted else self._exact
