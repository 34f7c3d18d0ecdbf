"""The agent's one loop: messages and outcomes in, the core's decisions, the journal, and only then the effects.

Place in the flow: adapters put events into the inbox; a turn takes everything that waits, asks the core, commits once,
acknowledges to the broker in order, then does what the core wants done, whose outcomes come back as events. Never
decides anything about a task itself.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import anyio
from anyio.abc import TaskGroup

from proplet.agent import wire
from proplet.agent.core import Core
from proplet.agent.events import (
    Cancel,
    Deliver,
    Deploy,
    Effect,
    Event,
    ModuleFailed,
    ModuleReady,
    Note,
    Outcome,
    Prepare,
    Retire,
    Run,
    RunEnded,
    RunKey,
    Served,
    Spent,
    StartReceived,
    Step,
    StopReceived,
    TellInventory,
    Tick,
    Waits,
)
from proplet.agent.grants import Ceiling, Granted, GrantError, Grants
from proplet.agent.holding import Holding
from proplet.agent.interpreting import Interpreter, on_one_line
from proplet.agent.invocations import InvocationBounds, Invocations
from proplet.agent.lifecycle import State
from proplet.agent.mqtt_model import Connected, Delivery, Disconnected, LinkEvent
from proplet.agent.outbox import Outbox
from proplet.agent.persisting import Persistence
from proplet.agent.ports import (
    Artefact,
    Holds,
    Job,
    Journal,
    Link,
    ModuleError,
    Modules,
    ModuleWanted,
    Notice,
    Runtime,
    Serving,
    StorageError,
)
from proplet.agent.presence import Presence
from proplet.agent.terms import NodeLimits, explained, job_of, wanted_by
from proplet.agent.topics import Topics
from proplet.agent.wire import PullPolicy, Reason

log = logging.getLogger(__name__)

_TURN_MAX = 512
_BEYOND_THE_LAST = 2**62


@dataclass(frozen=True, slots=True)
class ShellSettings:
    """The node's own terms for tasks."""

    limits: NodeLimits = field(default_factory=NodeLimits)
    permissions: Ceiling = field(default_factory=Ceiling)
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    invocations: InvocationBounds = field(default_factory=InvocationBounds)


class Shell:
    """Runs the core against the world. One per node; `serve` is its whole life."""

    def __init__(
        self,
        settings: ShellSettings,
        core: Core,
        *,
        journal: Journal,
        modules: Modules,
        runtime: Runtime,
        topics: Topics,
        presence: Presence,
        holds: Holds | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._holding = Holding(holds)
        self._core = core
        self._journal = journal
        self._modules = modules
        self._runtime = runtime
        self._topics = topics
        self._presence = presence
        self._clock = clock
        self._inbox: deque[LinkEvent | Event] = deque()
        self._wake, self._turned, self._asked = anyio.Event(), anyio.Event(), anyio.Event()
        self._jobs: dict[RunKey, Job] = {}
        self._grants = Grants(settings.permissions)
        self._preparing: dict[RunKey, anyio.CancelScope] = {}
        self._cancelled: set[RunKey] = set()
        self._lowered: set[str] = set()  # limits of which the log says already that the ceiling is in force
        self._link: Link
        self._outbox: Outbox
        self._invocations = Invocations(settings.invocations, core.invocable, runtime, modules)
        self._interpreter = Interpreter(
            topics, presence.proplet_id, keep=self._keep, invoke=self._invocations.call, asked=self._ask
        )
        self._deciding = True  # until what the journal holds is taken over
        self._tasks: TaskGroup
        self._persistence = Persistence(self._tell_turned)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be saved; None while all is well."""
        return self._persistence.trouble

    @property
    def invoked(self) -> Spent:
        """What all invocations have cost since the node was started."""
        return self._invocations.spent_in_all

    def put(self, event: LinkEvent | Event) -> None:
        """Add an event to the inbox; from the event loop's thread only."""
        if self._inbox or self._deciding or not (isinstance(event, Delivery) and self._invocations.take(event)):
            self._inbox.append(event)
            self._wake.set()

    async def serve(self, link: Link, *, ready: Callable[[], None] = lambda: None) -> None:
        """Recover, say `ready`, then work until cancelled.

        Raises:
            StorageError: the journal cannot be read.
        """
        self._link = link
        self._outbox = Outbox(self._journal, link, self._topics)
        recovered = await self._journal.load()
        self._holding.recovered(recovered)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._invocations.open(link, self._topics, self._presence.proplet_id, tasks)
            await self._carry_out(self._shortened(self._core.recover(recovered, self._clock())), ())
            tasks.start_soon(self._outbox.serve, name="outbox")
            tasks.start_soon(self._keep_time, name="backoff timer")
            tasks.start_soon(self._presence.serve, link, name="presence")
            tasks.start_soon(self._introduce, name="introductions")
            self._deciding = False
            ready()
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                while self._inbox:
                    batch = [self._inbox.popleft() for _ in range(min(len(self._inbox), _TURN_MAX))]
                    await self._turn(batch)

    async def proof_of_life(self) -> None:
        """Return once the loop has taken another turn and the journal has answered, if only that it cannot."""
        self.put(Tick())
        await self._turned.wait()
        with suppress(StorageError):
            await self._journal.pending(_BEYOND_THE_LAST, 1)

    # --- a turn ---------------------------------------------------------------------------------------------------

    async def _turn(self, batch: Sequence[LinkEvent | Event]) -> None:
        deliveries: list[Delivery] = []
        steps: list[Step] = []
        self._deciding = True
        for item in batch:
            event: Event | None = None
            match item:
                case Delivery():
                    deliveries.append(item)
                    event = await self._interpreter.event_of(item)
                case Connected():
                    self._on_connected()
                case Disconnected(reason):
                    log.warning("not connected to the broker: %s", reason)
                case _:
                    event = item
            if event is not None:
                steps += self._decide(event)
        self._deciding = False
        await self._carry_out(steps, deliveries)
        self._tell_turned()

    def _tell_turned(self) -> None:
        self._turned.set()
        self._turned = anyio.Event()

    def _decide(self, event: Event) -> list[Step]:
        ends = event.task_id if isinstance(event, StopReceived) else ""
        ends = event.start.id if isinstance(event, StartReceived) else ends
        for told in self._invocations.spent(ends) if ends else ():
            self._core.handle(told, self._clock())
        step = self._core.handle(event, self._clock())
        begun = {e.key for e in step.then if isinstance(e, Run | Deploy)}
        if isinstance(event, ModuleReady) and event.key not in begun:
            # It was stopped meanwhile and will not run.
            self._jobs.pop(event.key, None)
            self._cancelled.discard(event.key)
            self._presence.ended(event.key)
            self._holding.ended(event.key)
        return self._shortened(step)

    def _shortened(self, step: Step) -> list[Step]:
        """A module that is at hand needs no preparation: its run is decided, and committed, together with `step`."""
        steps, left = [step], list[Effect]()
        for effect in step.then:
            ready = self._at_hand(effect) if isinstance(effect, Prepare) else None
            if ready is None:
                left.append(effect)
            else:
                steps += self._decide(ready)
        steps[0] = replace(step, then=tuple(left))
        return steps

    def _wanted(self, effect: Prepare) -> ModuleWanted:
        return wanted_by(effect, self._settings.pull_policy, self._settings.limits)

    def _at_hand(self, effect: Prepare) -> Event | None:
        if effect.start.latent:
            return None  # whether it can be loaded is asked first
        given = self._grants.at_once(effect.start)
        if given is None or (artefact := self._modules.ready(self._wanted(effect))) is None:
            return None
        self._presence.began(effect.key, effect.start)
        return self._prepared(effect, artefact, given)

    async def _carry_out(self, steps: Sequence[Step], deliveries: Sequence[Delivery]) -> None:
        """Durable first, then acknowledged, then done."""
        saves = [save for step in steps for save in step.save]
        if saves:
            await self._persistence.done(lambda: self._journal.commit(saves))
        self._holding.saved(saves)
        for delivery in deliveries:
            self._link.acknowledge(delivery)
        for step in steps:
            for effect in step.then:
                self._do(effect)

    # --- introductions ----------------------------------------------------------------------------------------------

    async def _keep(self, module: bytes) -> str:
        return await self._persistence.done(lambda: self._modules.keep(module))

    def _ask(self) -> None:
        self._asked.set()

    def _on_connected(self) -> None:
        self._presence.meters.counts.connects += 1
        self._outbox.wake(from_start=True)
        self._invocations.connected()
        self._asked.set()

    async def _introduce(self) -> None:
        """Whenever it was asked, say who we are and what we hold; a crowd that asks at once is answered once.

        What ended and was not yet acknowledged still counts as held.
        """
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            undelivered = await self._persistence.done(self._journal.unsent_attempts)
            finished = tuple(wire.InventoryItem(key.task_id, key.run, wire.FINISHED) for key in undelivered)
            await self._presence.introduce(self._link, (*self._core.inventory(), *finished))

    # --- effects ------------------------------------------------------------------------------------------------------

    def _do(self, effect: Effect) -> None:
        match effect:
            case Prepare(key, start):
                self._presence.began(key, start)
                self._preparing[key] = anyio.CancelScope()
                self._tasks.start_soon(self._prepare, effect, name="prepare")
            case Run():
                self._tasks.start_soon(self._run, effect, name="run")
            case Deploy():
                self._deploy(effect)
            case Retire(key, why):
                self._presence.meters.retired(key)
                self._invocations.retire(key, why)
            case Waits(key, start, stage, why):
                self._tasks.start_soon(self._presence.rests, self._link, key, start, stage, why)
            case Cancel(key):
                self._cancel(key)
            case Deliver():
                self._outbox.wake()
            case TellInventory():
                self._asked.set()
            case Note(text, task_id, warning):
                level = logging.WARNING if warning else logging.INFO
                log.log(level, "task %s: %s", on_one_line(task_id), on_one_line(text))

    def _prepared(self, effect: Prepare, artefact: Artefact, given: Granted) -> ModuleReady | ModuleFailed:
        key, start = effect.key, effect.start
        if start.latent and artefact.serves_http:
            self._presence.ended(key)
            return ModuleFailed(key, Reason.NOT_SUPPORTED, "what serves HTTP cannot be latent: start it as a daemon")
        self._holding.ready(key, artefact)
        self._presence.meters.prepared(artefact.start_kind)
        job = job_of(key, start, artefact, self._settings.limits, given, proplet_id=self._presence.proplet_id)
        self._jobs[key] = job
        if news := job.lowered - self._lowered:
            self._lowered |= news
            text = "task %s asks for more %s than this node allows ([agent.ceilings]) and gets less; said once"
            log.warning(text, on_one_line(key.task_id), " and ".join(sorted(news)))
        return ModuleReady(key, artefact.image_digest, artefact.fetch_s, artefact.compile_s, artefact.start_kind)

    async def _prepare(self, effect: Prepare) -> None:
        key, wanted = effect.key, self._wanted(effect)
        event: Event = RunEnded(key, Outcome(Reason.STOPPED))
        with self._preparing[key]:
            try:
                given = await self._grants.grant(effect.start)
                self._runtime.warm()  # while the module is made ready
                artefact = await self._modules.prepare(wanted, lambda stage: self._presence.stage(key, stage))
                event = self._prepared(effect, artefact, given)
                if effect.start.latent and isinstance(event, ModuleReady):
                    event = await self._refused(key) or event
            except (GrantError, ModuleError) as error:
                event = ModuleFailed(key, error.reason, str(error))
            except StorageError as error:
                event = ModuleFailed(key, Reason.STORAGE, str(error))
            except Exception as error:  # a defect of ours must end one task, not the node
                log.exception("the module of task %s could not be prepared", on_one_line(key.task_id))
                event = ModuleFailed(key, Reason.INTERNAL, f"internal error while preparing the module: {error!r}")
        del self._preparing[key]
        if not isinstance(event, ModuleReady):
            self._presence.ended(key)
        self.put(event)

    async def _refused(self, key: RunKey) -> ModuleFailed | None:
        """Load a latent task's module: what would end every invocation ends the deployment."""
        refusal = await self._runtime.preload(self._jobs[key])
        if refusal is None:
            return None
        del self._jobs[key]
        return ModuleFailed(key, refusal.reason, refusal.error or refusal.reason.value)

    def _deploy(self, effect: Deploy) -> None:
        key, start = effect.key, effect.start
        self._presence.deployed(key, start, lambda: self._invocations.tally(key))
        self._tasks.start_soon(self._presence.rests, self._link, key, start, State.DEPLOYED.value)
        image = self._jobs[key].artefact.image_digest
        wanted = self._wanted(Prepare(key, start, effect.module_digest, again=True, image_digest=image))
        voice = self._presence.voice(key, start)
        self._invocations.deploy(key, self._jobs.pop(key), wanted, start.attempt, voice)

    async def _run(self, effect: Run) -> None:
        key, job = effect.key, self._jobs.pop(effect.key)
        outcome = Outcome(Reason.STOPPED)
        speaker = self._presence.voice(key, effect.start).run()
        try:
            if key not in self._cancelled:
                self._presence.running(key, effect.restarts, job.artefact.image_digest)
                outcome = await self._runtime.run(job, lambda notice: self._hear(key, speaker.hear, notice))
                outcome = explained(outcome, job)
        except Exception as error:  # the same
            log.exception("task %s could not be run", on_one_line(key.task_id))
            outcome = Outcome(Reason.INTERNAL, error=f"internal error while running the module: {error!r}")
        self._cancelled.discard(key)
        speaker.end(outcome)
        self._presence.ended(key, outcome, job.artefact.start_kind)
        self.put(RunEnded(key, outcome))

    def _hear(self, key: RunKey, speaker: Callable[[Notice], None], notice: Notice) -> None:
        speaker(notice)
        if isinstance(notice, Serving):
            self._presence.serves(key, notice.port)
            self.put(Served(key, notice.port))

    def _cancel(self, key: RunKey) -> None:
        if (scope := self._preparing.get(key)) is not None:
            scope.cancel()
            return
        if key in self._jobs:  # its run has not begun; what runs or has ended leaves nothing to remember
            self._cancelled.add(key)
        self._runtime.stop(str(key))

    async def _keep_time(self) -> None:
        """Tell the core when a backoff has ended."""
        while True:
            turned, due = self._turned, self._core.next_due()
            # Looked at again at least every minute: the wall clock may jump.
            with anyio.move_on_after(60.0 if due is None else min(60.0, max(0.01, due - self._clock()))) as waiting:
                await turned.wait()
            if waiting.cancelled_caught and self._core.next_due() is not None:
                self.put(Tick())
