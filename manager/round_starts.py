"""Rounds that are started over MQTT (``fl/rounds/start``) as FederatedJobs of one round.

Managers of the reference publish them, and its operator makes such jobs of them. A start that arrives again finds its
job there already; it is acknowledged when the job is stored.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import anyio

from proplet.agent.wire import RoundStart
from proplet.manager import rules
from proplet.manager.bus import BusEvent, Heard
from proplet.manager.model import (
    Aggregator,
    FederatedJob,
    FederatedSpec,
    Kind,
    Meta,
    Participant,
    Proplet,
    Rounds,
)
from proplet.manager.participation import name_of
from proplet.manager.ports import AlreadyExistsError, Store, StoreError, StoreUnavailableError

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 60  # as the reference's coordinator has it, where a start says none
RETRY_S: Final = 1.0
GIVE_UP_AFTER: Final = 60  # attempts: while a start waits, nothing behind it is acknowledged


def job_of(start: RoundStart, proplets: Iterable[Proplet]) -> FederatedJob:
    """Return the job that a start asks for.

    A start names proplets by their ids on the wire, a job by their resources; the job is in the namespace of theirs.
    Where it does not say how many updates are enough, all are needed.
    """
    known = {proplet.id: proplet.meta.key for proplet in reversed(list(proplets))}
    taking_part = [known.get(each) for each in start.participants]
    namespace = next((key.namespace for key in taking_part if key is not None), "default")
    names = [
        each if key is None or key.namespace != namespace else key.name
        for each, key in zip(start.participants, taking_part, strict=True)
    ]
    return FederatedJob(
        Meta(name_of("fl", start.experiment_id or start.round_id), namespace),
        FederatedSpec(
            experiment_id=start.experiment_id or start.round_id,
            model_ref=start.model_uri,
            task_wasm_image=start.task_wasm_image,
            participants=tuple(map(Participant, names)),
            hyperparams=dict(start.hyperparams) or None,
            k_of_n=start.k_of_n or len(names),
            timeout_seconds=start.timeout_seconds or TIMEOUT_S,
            rounds=Rounds(1),
            aggregator=Aggregator("fedavg"),
        ),
    )


class RoundStarts:
    """Takes starts of rounds out of what the bus says, hands on everything else, and makes their jobs in `run`."""

    def __init__(self, store: Store, on_event: Callable[[BusEvent], None], *, retry_s: float = RETRY_S) -> None:
        self._store = store
        self._retry_s = retry_s
        self._on_event = on_event
        self._waiting: deque[Heard] = deque()
        self._news = anyio.Event()

    def hear(self, event: BusEvent) -> None:
        """Take what the bus says; in order, from the event loop."""
        if isinstance(event, Heard) and isinstance(event.message, RoundStart):
            self._waiting.append(event)
            self._news.set()
        else:
            self._on_event(event)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            while self._waiting:
                await self._make(self._waiting[0].message)
                self._waiting.popleft().done()

    async def _make(self, start: RoundStart) -> None:
        said = f"round {start.round_id[:80]!r} was started over MQTT"
        for _ in range(GIVE_UP_AFTER):
            try:
                log.info("%s: %s", said, await self._attempt(start))
                return
            except StoreUnavailableError as error:
                log.warning("%s and cannot be stored, trying again: %s", said, error)
                await anyio.sleep(self._retry_s)
            except (StoreError, ValueError) as error:
                log.warning("%s and is dropped: %s", said, error)
                return
        log.error("%s and is dropped: the store has not taken it %d times", said, GIVE_UP_AFTER)

    async def _attempt(self, start: RoundStart) -> str:
        """Make the job; return what to say. Raises StoreError, and ValueError where it would be none."""
        listing = await self._store.list(Kind.PROPLET)
        job = job_of(start, (item for item in listing.items if isinstance(item, Proplet)))
        problems = rules.check(job)
        if problems:
            raise ValueError("; ".join(map(str, problems)))
        try:
            await self._store.create(job)
        except AlreadyExistsError:
            return f"again, FederatedJob {job.meta.key} is there"
        return f"FederatedJob {job.meta.key}"
