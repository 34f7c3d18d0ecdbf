"""What the core is told, what it wants saved, and what it wants done: plain values, the core's whole vocabulary.

Times are seconds since the Unix epoch. Nothing here does I/O or decides anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from proplet.agent.lifecycle import State
from proplet.agent.wire import Reason, Start


@dataclass(frozen=True, slots=True)
class RunKey:
    """One run of a task: its id, and the attempt's number, or one counted here for peers that send no attempt."""

    task_id: str
    run: int

    def __str__(self) -> str:
        return f"{self.task_id}#{self.run}"


class StartKind(Enum):
    """How warm a run began: compiled just now; compiled earlier and loaded from disk; already loaded in the worker."""

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `results` is what goes on the wire; `stdout` and `stderr` are capped at the output limit.

    A measure that could not be taken of this task alone is None: `cpu_s` is the guest's own CPU time,
    `peak_memory_bytes` its linear memory where the engine tells it, else that of its worker if it had one to itself.
    `memory_note` says which of these it is when it is not linear memory, and why there is none.
    """

    reason: Reason
    results: str = ""
    error: str | None = None
    exit_code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    run_s: float = 0.0
    start_kind: StartKind | None = None
    memory_note: str | None = None
    fuel_used: int | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What runs have cost together: CPU seconds, fuel and wall seconds summed up, of memory the highest peak.

    None is not known of any. `memory_note` is that of the run with this peak, or of the last if there is none.
    """

    runs: int = 0
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    memory_note: str | None = None
    fuel_used: int | None = None
    run_s: float = 0.0

    def plus(self, outcome: Outcome) -> "Spent":
        """Return this and one more run."""
        peak, note = self.peak_memory_bytes, self.memory_note
        found = outcome.peak_memory_bytes
        if peak is None or (found is not None and found >= peak):
            peak, note = found, outcome.memory_note or (note if found is None else None)
        return Spent(
            self.runs + 1,
            _sum(self.cpu_s, outcome.cpu_s),
            peak,
            note,
            _sum(self.fuel_used, outcome.fuel_used),
            self.run_s + outcome.run_s,
        )


_Number = TypeVar("_Number", int, float)


def _sum(one: _Number | None, other: _Number | None) -> _Number | None:
    return one if other is None else other if one is None else one + other


# --- what the core is told --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartReceived:
    """A start arrived. Its inline module, if any, is already kept: `start.file` is None, `module_digest` names it."""

    start: Start
    module_digest: str | None
    payload_hash: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """A command could not be read or carried out, but its task is known: the sender is to be told."""

    task_id: str
    attempt: int | None
    detail: str
    reason: Reason = Reason.INVALID_COMMAND


@dataclass(frozen=True, slots=True)
class StopReceived:
    """A stop arrived; without an attempt it means whatever runs."""

    task_id: str
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class ModuleReady:
    """The module of a run can be used now."""

    key: RunKey
    image_digest: str | None = None
    fetch_s: float = 0.0
    compile_s: float = 0.0
    start_kind: StartKind | None = None


@dataclass(frozen=True, slots=True)
class ModuleFailed:
    """The module of a run cannot be had or used."""

    key: RunKey
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Served:
    """The guest accepts connections at `port` from now on."""

    key: RunKey
    port: int


@dataclass(frozen=True, slots=True)
class Invoked:
    """What the invocations of a latent task have cost so far. Told before what may end it."""

    key: RunKey
    spent: Spent


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The guest is no more. Also told when a cancelled preparation has ended."""

    key: RunKey
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = StartReceived | CommandRefused | StopReceived | ModuleReady | ModuleFailed | Served | Invoked | RunEnded | Tick


# --- what is to be durable --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveAccepted:
    """A new attempt, not finished. `start` is the command without its inline module."""

    key: RunKey
    start: Start
    module_digest: str | None
    payload_hash: str
    received_at: float


@dataclass(frozen=True, slots=True)
class SaveState:
    """An unfinished attempt's new state; only what recovery must know is saved."""

    key: RunKey
    state: State
    since: float
    restarts: int = 0
    not_before: float = 0.0
    image_digest: str | None = None  # what its image turned out to be; None leaves what was saved before


@dataclass(frozen=True, slots=True)
class SaveOutcome:
    """An attempt ended: its last state, and the message that says so, in one. Creates the attempt if it is unknown."""

    key: RunKey
    state: State
    at: float
    payload_hash: str
    route: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SaveReply:
    """A message to deliver that belongs to no attempt."""

    route: str
    payload: bytes
    at: float


@dataclass(frozen=True, slots=True)
class SaveResend:
    """A finished attempt's message is to be delivered once more."""

    key: RunKey


Save = SaveAccepted | SaveState | SaveOutcome | SaveReply | SaveResend


@dataclass(frozen=True, slots=True)
class RecoveredAttempt:
    """An attempt that the journal holds as not finished."""

    key: RunKey
    start: Start
    module_digest: str | None
    payload_hash: str
    state: State
    received_at: float
    restarts: int = 0
    not_before: float = 0.0
    image_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the journal held, oldest first: unfinished attempts, and finished ones (key to payload hash)."""

    unfinished: tuple[RecoveredAttempt, ...] = ()
    finished: Mapping[RunKey, str] = field(default_factory=dict)


# --- what is to be done once that is durable --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    """Fetch, verify and compile the run's module; then tell ModuleReady or ModuleFailed.

    `again`: it was ready before, so what is at hand will do, whatever the pull policy: the network may be away.
    `image_digest` is what its image was then: a tag is looked up once for a task.
    """

    key: RunKey
    start: Start
    module_digest: str | None
    again: bool = False
    image_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Run the prepared module; then tell RunEnded."""

    key: RunKey
    start: Start
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Deploy:
    """The prepared module of a latent task can be invoked from now on."""

    key: RunKey
    start: Start
    module_digest: str | None


@dataclass(frozen=True, slots=True)
class Retire:
    """A latent task cannot be invoked (any more); `why` is told to those who wait for it or are inside."""

    key: RunKey
    why: str


@dataclass(frozen=True, slots=True)
class Waits:
    """A task waits for its next run: whoever follows it is to be told. `stage` is the inventory's word."""

    key: RunKey
    start: Start
    stage: str
    why: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the run or its preparation; then tell RunEnded."""

    key: RunKey


@dataclass(frozen=True, slots=True)
class Deliver:
    """There is something new in the outbox."""


@dataclass(frozen=True, slots=True)
class TellInventory:
    """Somebody asked about attempts we hold: say which those are."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person reading the log may want to know."""

    text: str
    task_id: str
    warning: bool = False


Effect = Prepare | Run | Deploy | Retire | Waits | Cancel | Deliver | TellInventory | Note


@dataclass(frozen=True, slots=True)
class Step:
    """The core's answer to an event: first what must be durable, then what may be done."""

    save: tuple[Save, ...] = ()
    then: tuple[Effect, ...] = ()
