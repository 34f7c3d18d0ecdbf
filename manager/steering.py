"""The controls of whichever controller is at work now, for an HTTP API that outlives it: implements `ports.Control`."""

from collections.abc import Callable, Mapping, Sequence

import anyio

from proplet.agent.wire import InvokeResult, PropletMetrics, TaskMetrics
from proplet.manager.controller import Controller
from proplet.manager.model import Task
from proplet.manager.ports import Liveness, Printed, StoreUnavailableError


class Steering:
    """Hands everything on; between turns commands are refused, and nothing is known of anybody's life."""

    def __init__(self, current: Callable[[], Controller | None]) -> None:
        self._current = current

    def _at_work(self) -> Controller:
        control = self._current()
        if control is None:
            raise StoreUnavailableError("this manager is not at work now: the cluster is away, or another one is")
        return control

    async def start(self, uid: str) -> Task:
        """See `Controller`. Raises StoreUnavailableError: none is at work."""
        return await self._at_work().start(uid)

    async def stop(self, uid: str) -> Task:
        """See `Controller`. Raises StoreUnavailableError: none is at work."""
        return await self._at_work().stop(uid)

    async def invoke(self, uid: str, inputs: Sequence[str], env: Mapping[str, str], timeout_s: float) -> InvokeResult:
        """See `Controller`. Raises StoreUnavailableError: none is at work."""
        return await self._at_work().invoke(uid, inputs, env, timeout_s)

    def liveness(self, proplet_id: str) -> Liveness:
        """See `Controller`."""
        control = self._current()
        return control.liveness(proplet_id) if control else Liveness(alive=False, reason="this manager is not at work")

    def proplet_metrics(self, proplet_id: str) -> Sequence[PropletMetrics]:
        """See `Controller`."""
        control = self._current()
        return control.proplet_metrics(proplet_id) if control else ()

    def task_metrics(self, uid: str) -> Sequence[TaskMetrics]:
        """See `Controller`."""
        control = self._current()
        return control.task_metrics(uid) if control else ()

    def task_states(self, uid: str) -> Mapping[str, tuple[int | None, str]]:
        """See `Controller`."""
        control = self._current()
        return control.task_states(uid) if control else {}

    def task_logs(self, uid: str, since: int = 0) -> Sequence[Printed]:
        """See `Controller`."""
        control = self._current()
        return control.task_logs(uid, since) if control else ()

    async def task_printed(self, uid: str) -> None:
        """See `Controller`; never, while none is at work."""
        if control := self._current():
            await control.task_printed(uid)
        else:
            await anyio.sleep_forever()
