"""Invocations of latent tasks: their modules lie ready, every call is a run of its own, the answer goes to who asked.

Place in the flow: the shell says what is deployed and hands invocations over; runs go straight to the runtime. Nothing
here is durable: whoever invokes waits for the answer and asks again. An invocation that the broker delivers twice runs
once and is answered twice.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from anyio.abc import TaskGroup

from proplet.agent import codec, wire
from proplet.agent.events import Invoked, Outcome, RunKey, Spent
from proplet.agent.log_feed import Voice
from proplet.agent.mqtt_model import Delivery, MessageTooLargeError, NotConnectedError
from proplet.agent.ports import Job, Link, ModuleError, Modules, ModuleWanted, Runtime, StorageError
from proplet.agent.results import error_of
from proplet.agent.terms import explained
from proplet.agent.topics import Route, Topics
from proplet.agent.wire import Invoke, InvokeResult, Reason

log = logging.getLogger(__name__)

PATIENCE_S: Final = 30.0  # how long managers wait, ours and the reference's; an answer after it reaches nobody
_UNSENT_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class InvocationBounds:
    """How many invocations may be open at once, the bytes of their inputs and results, what is remembered of others.

    An invocation is open until its answer is sent. As many refusals may wait to be sent as invocations may be open.
    """

    open: int = 256
    open_bytes: int = 64 * 1024 * 1024
    remembered: int = 1024
    remembered_bytes: int = 1024 * 1024


@dataclass(slots=True, eq=False)
class _Deployed:
    """A latent task that can be invoked. `job` is its run with the inputs and environment of the start."""

    job: Job
    wanted: ModuleWanted
    attempt: int | None
    voice: Voice
    live: set[str] = field(default_factory=set)
    spent: Spent = field(default_factory=Spent)  # by the invocations that have been answered
    retired: str | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    invoke: Invoke
    size: int
    since: float  # monotonic

    @property
    def mark(self) -> tuple[str, str]:
        return self.invoke.id, self.invoke.invocation_id


class Invocations:
    """Those of one node. `open` comes before everything else."""

    def __init__(
        self, bounds: InvocationBounds, invocable: Callable[[str], RunKey | str], runtime: Runtime, modules: Modules
    ) -> None:
        """`invocable` names the run of a task that can be invoked, or says why there is none."""
        self._bounds = bounds
        self._invocable = invocable
        self._proplet_id = ""
        self._asked_at: frozenset[str] = frozenset()
        self._runtime = runtime
        self._modules = modules
        self._link: Link
        self._topic: str
        self._tasks: TaskGroup
        self._deployed: dict[RunKey, _Deployed] = {}
        self._waiting: dict[RunKey, list[_Call]] = {}
        self._open: set[tuple[str, str]] = set()
        self._open_count = 0
        self._open_bytes = 0
        self._answered: OrderedDict[tuple[str, str], InvokeResult] = OrderedDict()
        self._answered_bytes = 0
        self._unsent: deque[tuple[float, InvokeResult]] = deque(maxlen=_UNSENT_MAX)
        self._number = 0
        self._sending = 0
        self.spent_in_all = Spent()

    def open(self, link: Link, topics: Topics, proplet_id: str, tasks: TaskGroup) -> None:
        """Answer over `link` from now on; what is begun runs in `tasks`."""
        self._link, self._tasks, self._proplet_id = link, tasks, proplet_id
        self._topic = topics.build(Route.INVOKE_RESULTS)
        self._asked_at = frozenset({topics.build(Route.INVOKE), topics.build(Route.OWN_INVOKE, proplet_id)})

    # --- what can be invoked ----------------------------------------------------------------------------------------

    def deploy(self, key: RunKey, job: Job, wanted: ModuleWanted, attempt: int | None, voice: Voice) -> None:
        """A latent task is ready; whoever waits for it is served. What its runs print is said by `voice`."""
        deployed = self._deployed[key] = _Deployed(job, wanted, attempt, voice)
        for call in self._waiting.pop(key, ()):
            if time.monotonic() - call.since < PATIENCE_S:
                self._tasks.start_soon(self._serve, call, deployed)
            else:
                self._close(call, None)

    def retire(self, key: RunKey, why: str) -> None:
        """A latent task cannot be invoked any more, or could not be made ready; calls of it end with `why`."""
        deployed = self._deployed.pop(key, None)
        if deployed is not None:
            deployed.retired = why
            for run in deployed.live:
                self._runtime.stop(run)
        for call in self._waiting.pop(key, ()):
            answer = self._refusal(call.invoke, why)
            self._close(call, answer)
            self._send_soon(answer)

    def tally(self, key: RunKey) -> tuple[Spent, Collection[str]]:
        """Return what the answered invocations of a task have cost, and the keys of those that run."""
        deployed = self._deployed.get(key)
        return (deployed.spent, deployed.live) if deployed else (Spent(), ())

    def spent(self, task_id: str) -> Iterator[Invoked]:
        """Yield what the invocations of a task that lies ready have cost so far."""
        for key, deployed in self._deployed.items():
            if key.task_id == task_id:
                yield Invoked(key, deployed.spent)

    # --- calls --------------------------------------------------------------------------------------------------------

    def take(self, delivery: Delivery) -> bool:
        """Begin an invocation and acknowledge it: nothing of it has to be durable first. False: it is none."""
        if delivery.topic not in self._asked_at:
            return False
        try:
            invoke: Invoke = codec.decode(Route.INVOKE, delivery.payload)
        except codec.WireError:
            return False  # whoever reads the others says what is wrong with it
        self.call(invoke)
        self._link.acknowledge(delivery)
        return True

    def call(self, invoke: Invoke) -> None:
        """Begin an invocation, or answer why there is none; nothing if it is another proplet's. Returns at once."""
        if invoke.proplet_id and invoke.proplet_id != self._proplet_id and not invoke.broadcast:
            return
        where = self._invocable(invoke.id)
        if isinstance(where, str):
            self._send_soon(self._refusal(invoke, where))
            return
        size = sum(map(len, invoke.inputs)) + sum(map(len, invoke.env)) + sum(map(len, invoke.env.values()))
        call = _Call(invoke, size, time.monotonic())
        if invoke.invocation_id:
            if call.mark in self._open:
                return  # its answer is on the way
            if (known := self._answered.get(call.mark)) is not None:
                self._send_soon(known)
                return
        if self._open_count >= self._bounds.open or self._open_bytes + size > self._bounds.open_bytes:
            why = f"{self._open_count} invocations are under way on this proplet, as many as it takes: try again later"
            self._send_soon(self._refusal(invoke, why, Reason.OVERLOADED))
            return
        self._open.add(call.mark)
        self._open_count += 1
        self._open_bytes += size
        deployed = self._deployed.get(where)
        if deployed is None:
            self._waiting.setdefault(where, []).append(call)
        else:
            self._tasks.start_soon(self._serve, call, deployed)

    def connected(self) -> None:
        """The broker is there again: answers that somebody may still wait for are sent."""
        unsent, self._unsent = self._unsent, deque(maxlen=_UNSENT_MAX)
        for since, answer in unsent:
            if time.monotonic() - since < PATIENCE_S:
                self._send_soon(answer)

    async def _serve(self, call: _Call, deployed: _Deployed) -> None:
        answer: InvokeResult | None = None
        waits = 0
        try:
            outcome = await self._outcome(call, deployed)
            deployed.spent = deployed.spent.plus(outcome)
            self.spent_in_all = self.spent_in_all.plus(outcome)
            answer = self._answer(call, deployed, outcome)
            del outcome
            if self._open_bytes + _size(answer) > self._bounds.open_bytes:
                answer = _without_results(answer)
            waits = _size(answer)
            self._open_bytes += waits
            await self._send(answer)
        finally:
            self._open_bytes -= waits
            self._close(call, answer)

    async def _outcome(self, call: _Call, deployed: _Deployed) -> Outcome:
        job, invoke = deployed.job, call.invoke
        self._number += 1
        job = Job(
            f"{job.key}-inv-{self._number}",
            job.artefact,
            job.export,
            invoke.inputs or job.inputs,
            job.argv,
            {**job.env, **invoke.env} if invoke.env else job.env,
            job.limits,
            job.permissions,
            job.stdin,
            invoked=True,
            lowered=job.lowered,
        )
        try:
            outcome = await self._run(job, deployed)
            if outcome.reason is Reason.MODULE_UNAVAILABLE:  # the store has dropped it
                outcome = await self._run(await self._prepared_again(job, deployed), deployed)
        except ModuleError as error:
            return Outcome(error.reason, error=str(error))
        except StorageError as error:
            return Outcome(Reason.STORAGE, error=str(error))
        except Exception as error:  # a defect of ours must end one call, not the node
            log.exception("an invocation could not be run")
            return Outcome(Reason.INTERNAL, error=f"internal error while running the module: {error!r}")
        return outcome

    async def _prepared_again(self, job: Job, deployed: _Deployed) -> Job:
        artefact = await self._modules.prepare(deployed.wanted, lambda _stage: None)
        deployed.job = replace(deployed.job, artefact=artefact)
        return replace(job, artefact=artefact)

    async def _run(self, job: Job, deployed: _Deployed) -> Outcome:
        if deployed.retired is not None:
            return Outcome(Reason.STOPPED, error=deployed.retired)
        deployed.live.add(job.key)
        speaker = deployed.voice.run()
        try:
            outcome = explained(await self._runtime.run(job, speaker.hear), job)
        finally:
            deployed.live.discard(job.key)
        speaker.end(outcome)
        if outcome.reason is Reason.STOPPED and deployed.retired is not None:
            return replace(outcome, error=deployed.retired, results="")
        return outcome

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, call: _Call, deployed: _Deployed, outcome: Outcome) -> InvokeResult:
        stages = {"run": round(outcome.run_s, 6), "total": round(time.monotonic() - call.since, 6)}
        kind = outcome.start_kind.value if outcome.start_kind else None
        usage = wire.Usage(
            outcome.cpu_s, outcome.peak_memory_bytes, stages, kind, outcome.memory_note, outcome.fuel_used
        )
        ext = wire.ResultTerms(deployed.attempt, outcome.reason, outcome.exit_code, usage=usage)
        invoke = call.invoke
        error = error_of(outcome, invoke.id)
        return InvokeResult(invoke.id, invoke.invocation_id, self._proplet_id, outcome.results, error, ext)

    def _refusal(self, invoke: Invoke, why: str, reason: Reason = Reason.NOT_SUPPORTED) -> InvokeResult:
        ext = wire.ResultTerms(reason=reason)
        return InvokeResult(invoke.id, invoke.invocation_id, self._proplet_id, error=why, ext=ext)

    def _close(self, call: _Call, answer: InvokeResult | None) -> None:
        """A call is open no more; its answer is remembered for a while."""
        self._open.discard(call.mark)
        self._open_count -= 1
        self._open_bytes -= call.size
        if answer is None or not answer.invocation_id:
            return
        self._answered[call.mark] = answer
        self._answered_bytes += _size(answer)
        bounds = self._bounds
        while len(self._answered) > bounds.remembered or self._answered_bytes > bounds.remembered_bytes:
            _, oldest = self._answered.popitem(last=False)
            self._answered_bytes -= _size(oldest)

    def _send_soon(self, answer: InvokeResult) -> None:
        """Send unless too many wait for that: who asks faster than the broker takes answers gets none."""
        if self._sending < 2 * self._bounds.open:
            self._sending += 1
            self._tasks.start_soon(self._send_counted, answer)

    async def _send_counted(self, answer: InvokeResult) -> None:
        try:
            await self._send(answer)
        finally:
            self._sending -= 1

    async def _send(self, answer: InvokeResult) -> None:
        try:
            try:
                await self._link.publish(self._topic, codec.encode(answer), 1)
            except MessageTooLargeError as error:
                short = replace(answer, results="", error=f"the result is too large to be sent: {error}")
                await self._link.publish(self._topic, codec.encode(short), 1)
        except NotConnectedError:
            self._unsent.append((time.monotonic(), answer))


def _without_results(answer: InvokeResult) -> InvokeResult:
    if answer.error is not None:
        return replace(answer, results="")
    text = f"its result of {len(answer.results)} characters was dropped: too much waits to be sent, try again later"
    ext = replace(answer.ext or wire.ResultTerms(), reason=Reason.OVERLOADED)
    return replace(answer, results="", error=text, ext=ext)


def _size(answer: InvokeResult) -> int:
    return 200 + len(answer.results) + len(answer.error or "")
