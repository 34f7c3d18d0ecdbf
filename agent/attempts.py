"""The attempts a device holds: which are live, which wait for a slot and in what order, which ended not long ago.

Pure bookkeeping for `core`, which decides; nothing here changes a state.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from proplet.agent.events import RecoveredAttempt, RunKey, Spent, StartKind
from proplet.agent.lifecycle import State
from proplet.agent.wire import Reason, RestartPolicy, Start

DEFAULT_BACKOFF_LIMIT = 6


@dataclass(slots=True)
class Attempt:
    """One attempt that has not ended."""

    key: RunKey
    start: Start
    module_digest: str | None
    payload_hash: str
    received_at: float
    state: State = State.ACCEPTED
    since: float = 0.0
    restarts: int = 0
    not_before: float = 0.0
    image_digest: str | None = None
    start_kind: StartKind | None = None
    stages: dict[str, float] = field(default_factory=dict)  # wall seconds
    ending: Reason = Reason.STOPPED  # why it is being stopped
    failures: int = 0  # runs in a row that ended soon
    trouble: str = ""  # why it waits, for people
    prepared: bool = False  # its module was ready once
    served: bool = False  # it accepted connections once
    port: int = 0  # where it does
    spent: Spent = field(default_factory=Spent)  # by runs, or invocations, that have ended in this node's life

    @classmethod
    def recovered(cls, row: RecoveredAttempt, now: float) -> "Attempt":
        """Return what the journal held of an attempt."""
        return cls(
            row.key,
            row.start,
            row.module_digest,
            row.payload_hash,
            row.received_at,
            row.state,
            now,
            row.restarts,
            row.not_before,
            row.image_digest,
            failures=row.restarts if row.state is State.WAITING else 0,
            trouble="the node was restarted meanwhile",
            prepared=row.state in (State.RUNNING, State.SERVING, State.DEPLOYED, State.WAITING),
            served=row.state is State.SERVING,
        )

    @property
    def stays(self) -> bool:
        """Whether it runs until it is stopped: a daemon, or a service, which nobody has to call one."""
        return self.start.daemon or self.served

    @property
    def number(self) -> int | None:
        """The attempt's number on the wire; None from peers that send none."""
        return self.start.attempt

    @property
    def policy(self) -> RestartPolicy | None:
        """Its restart policy; None where the peer named none."""
        return self.start.ext.restart_policy if self.start.ext else None

    @property
    def backoff_limit(self) -> int:
        """How often it may be run again."""
        limit = self.start.ext.backoff_limit if self.start.ext else None
        return DEFAULT_BACKOFF_LIMIT if limit is None else limit


class Attempts:
    """All of them. `known` ended ones are remembered."""

    def __init__(self, known: int) -> None:
        self._known = known
        self._live: dict[RunKey, Attempt] = {}
        self._runs: dict[str, list[RunKey]] = {}  # per task, live runs, oldest first
        # Accepted or backing off, in order of arrival; daemons, who keep their slot, apart.
        self._waiting: dict[bool, OrderedDict[RunKey, None]] = {False: OrderedDict(), True: OrderedDict()}
        self._backing_off: set[RunKey] = set()
        self._ended: OrderedDict[RunKey, str] = OrderedDict()  # key to payload hash
        self._newest: dict[str, int] = {}  # per task, the newest ended run still known

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._live.values())

    def __contains__(self, key: RunKey) -> bool:
        return key in self._live

    def get(self, key: RunKey) -> Attempt | None:
        """Return a live attempt."""
        return self._live.get(key)

    def of_task(self, task_id: str) -> list[Attempt]:
        """Return a task's live attempts, oldest first."""
        return [self._live[key] for key in self._runs.get(task_id, ())]

    @property
    def waiting(self) -> int:
        """How many wait for a slot or the end of a backoff."""
        return sum(map(len, self._waiting.values()))

    def next_due(self, daemons: Sequence[bool]) -> float | None:
        """Return when the next backoff ends of tasks that are daemons or not, or None."""
        backing_off = (self._live[key] for key in self._backing_off)
        return min((a.not_before for a in backing_off if a.start.daemon in daemons), default=None)

    def due_by(self, latest: float) -> None:
        """Let every backoff end at `latest` at the latest."""
        for key in self._backing_off:
            attempt = self._live[key]
            attempt.not_before = min(attempt.not_before, latest)

    def latent_besides(self, task_id: str) -> int:
        """Return how many live attempts of other tasks are latent."""
        return sum(attempt.start.latent and key.task_id != task_id for key, attempt in self._live.items())

    def hold(self, attempt: Attempt) -> None:
        """Take a live attempt in; its state is what recovery or acceptance says."""
        self._live[attempt.key] = attempt
        self._runs.setdefault(attempt.key.task_id, []).append(attempt.key)

    def wait(self, attempt: Attempt) -> None:
        """Queue a live attempt, which is accepted or backs off."""
        self._waiting[attempt.start.daemon][attempt.key] = None
        if attempt.state is State.WAITING:
            self._backing_off.add(attempt.key)

    def take(self, most: int, now: float, *, daemons: bool) -> list[Attempt]:
        """Take out of the queue, oldest first, at most so many that may go on now."""
        waiting = self._waiting[daemons]
        chosen: list[Attempt] = []
        if most > 0:
            for key in waiting:
                attempt = self._live[key]
                # Others back off, or an older attempt of the same task is still being stopped.
                if attempt.not_before <= now and self._runs[key.task_id][0] == key:
                    chosen.append(attempt)
                    if len(chosen) == most:
                        break
        for attempt in chosen:
            del waiting[attempt.key]
            self._backing_off.discard(attempt.key)
        return chosen

    def end(self, key: RunKey, payload_hash: str) -> None:
        """Remember an attempt as ended; it is live no more, if it ever was."""
        self._live.pop(key, None)
        for waiting in self._waiting.values():
            waiting.pop(key, None)
        self._backing_off.discard(key)
        runs = self._runs.get(key.task_id, [])
        if key in runs:
            runs.remove(key)
        if not runs:
            self._runs.pop(key.task_id, None)
        self._ended[key] = payload_hash
        self._newest[key.task_id] = max(key.run, self._newest.get(key.task_id, key.run))
        while len(self._ended) > self._known:
            old, _ = self._ended.popitem(last=False)
            if self._newest.get(old.task_id) == old.run:
                del self._newest[old.task_id]

    def has_ended(self, key: RunKey) -> bool:
        """Whether an attempt is known to have ended."""
        return key in self._ended

    def last_ended(self, task_id: str) -> tuple[RunKey, str] | None:
        """Return the newest ended run of a task and the hash of its command."""
        run = self._newest.get(task_id)
        if run is None:
            return None
        key = RunKey(task_id, run)
        return key, self._ended[key]

    def newest_run(self, task_id: str) -> int:
        """Return the highest run of a task that is known, live or ended; -1 if there is none."""
        live = (key.run for key in self._runs.get(task_id, ()))
        return max(max(live, default=-1), self._newest.get(task_id, -1))
