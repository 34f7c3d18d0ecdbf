"""Invocations of latent Tasks: which proplet is asked, what is done when it lacks the module, and who waits for what.

Place in the flow: the API asks `Invoking.invoke`, the hearing hands every answer over. Nothing is recorded: whoever
invokes waits, and asks again if nobody answers. A Task on one proplet is invoked there; one on all of them in turn,
on those that are alive. A proplet that has lost the module is sent the start again, and meanwhile the next one is
asked.
"""

import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio

from proplet.agent.wire import Invoke, InvokeResult, Start
from proplet.manager.model import Task
from proplet.manager.phases import Phase
from proplet.manager.ports import Bus, BusError, InvocationError, NoAnswerError

#: How long an invocation may take, in the reference, too; its proplets give up then.
PATIENCE_S: Final = 30.0
#: What a proplet says that does not have the module; the reference's managers look for the same words.
LACKING: Final = "has not been precompiled"
_WAITERS_MAX: Final = 1000
_TURNS_KEPT: Final = 10_000
_LOOK_S: Final = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


class _Waiter:
    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.done = anyio.Event()
        self.answer: InvokeResult | None = None


class Invoking:
    """The invocations of one manager. `find` returns a Task as it is now, `alive` whether a proplet is heard of."""

    def __init__(
        self,
        find: Callable[[str], Task | None],
        alive: Callable[[str], bool],
        start_of: Callable[[Task, str], Start],
        away_s: float,
    ) -> None:
        """`away_s`: how long a proplet may take to be heard of; this manager may have started just now."""
        self._away_s = away_s
        self._find = find
        self._alive = alive
        self._start_of = start_of
        self._bus: Bus | None = None
        self._waiters: dict[str, _Waiter] = {}
        self._turns: OrderedDict[str, int] = OrderedDict()  # of Tasks on many proplets: whose turn it is

    def open(self, bus: Bus) -> None:
        """Send by this bus from now on."""
        self._bus = bus

    def heard(self, answer: InvokeResult) -> None:
        """A proplet has answered."""
        waiter = self._waiters.get(answer.invocation_id)
        if waiter is not None and waiter.task_id == answer.task_id and waiter.answer is None:
            waiter.answer = answer
            waiter.done.set()

    async def invoke(
        self, uid: str, inputs: Sequence[str], env: Mapping[str, str], timeout_s: float = PATIENCE_S
    ) -> InvokeResult:
        """Return what a proplet answers, an error of the guest included.

        Raises:
            InvocationError: the Task cannot be invoked as it is now, or too many invocations are under way.
            NoAnswerError: nobody answered in time.
            BusError: the broker did not take it.
        """
        if len(self._waiters) >= _WAITERS_MAX:
            raise InvocationError("busy", f"{_WAITERS_MAX} invocations are under way; try again later")
        asked = ""
        with anyio.move_on_after(timeout_s):
            await self._ready(uid)
            told, pause, since = set[str](), _FIRST_PAUSE_S, anyio.current_time()
            while True:
                places = self._places(uid)
                if not places and anyio.current_time() - since >= self._away_s:
                    raise InvocationError("no_proplet", "no proplet that has the task is there now; try again later")
                for asked in places:
                    answer = await self._ask(asked, uid, inputs, env)
                    if LACKING not in (answer.error or ""):
                        return answer
                    await self._deploy_again(uid, asked, told)
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
        if not asked:
            await self._ready(uid, wait=False)
        raise NoAnswerError(f"proplet {asked} did not answer within {timeout_s:g} s")

    async def _ready(self, uid: str, *, wait: bool = True) -> None:
        """Return once the Task is with a proplet. Raises InvocationError: it never will be, or is not now."""
        while True:
            task = self._find(uid)
            if task is None:
                raise InvocationError("not_found", "the task was deleted")
            if not task.spec.latent:
                raise InvocationError(
                    "not_latent", f"task {task.meta.name} is not latent: set spec.latent, start it anew"
                )
            phase, said = task.status.phase, task.status.message or task.status.error
            if phase in (Phase.SCHEDULED, Phase.RUNNING):
                return
            if phase is not Phase.PENDING or task.spec.held or not wait:
                why = f"{phase.value}{f' ({said})' if said else ''}"
                raise InvocationError("not_running", f"task {task.meta.name} is {why}: start it, then invoke it")
            await anyio.sleep(_LOOK_S)

    def _places(self, uid: str) -> list[str]:
        """The proplets to ask, in order; those that are not heard of are left out."""
        task = self._find(uid)
        if task is None or task.status.phase not in (Phase.SCHEDULED, Phase.RUNNING):
            said = "" if task is None else task.status.error or task.status.message
            raise InvocationError("not_running", f"the task has ended meanwhile{f': {said}' if said else ''}")
        places = [task.status.proplet_id or ""]
        if task.spec.broadcast:
            open_phases = (Phase.SCHEDULED.value, Phase.RUNNING.value)
            places = [str(e["proplet_id"]) for e in task.status.broadcast_results if e.get("phase") in open_phases]
        alive = [place for place in places if self._alive(place)]
        if len(alive) <= 1:
            return alive
        turn = self._turns.pop(uid, 0) % len(alive)
        self._turns[uid] = turn + 1
        while len(self._turns) > _TURNS_KEPT:
            self._turns.popitem(last=False)
        return alive[turn:] + alive[:turn]

    async def _ask(self, proplet_id: str, uid: str, inputs: Sequence[str], env: Mapping[str, str]) -> InvokeResult:
        number, waiter = str(uuid.uuid4()), _Waiter(uid)
        self._waiters[number] = waiter
        try:
            await self._by().invoke(proplet_id, Invoke(uid, number, tuple(inputs), dict(env), proplet_id))
            await waiter.done.wait()
        finally:
            del self._waiters[number]
        assert waiter.answer is not None
        return waiter.answer

    async def _deploy_again(self, uid: str, proplet_id: str, told: set[str]) -> None:
        task = self._find(uid)
        if task is not None and proplet_id not in told:
            told.add(proplet_id)
            await self._by().start(proplet_id, self._start_of(task, proplet_id))

    def _by(self) -> Bus:
        if self._bus is None:
            raise BusError("the manager is not connected to its broker")
        return self._bus
