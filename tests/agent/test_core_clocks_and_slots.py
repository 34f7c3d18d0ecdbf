"""Odd hours and full houses: what the core does when a clock is set or no slot is free."""

import pytest

from proplet.agent.core import BACKOFF_MAX_S, Core, CoreSettings
from proplet.agent.events import ModuleFailed, Prepare, RunKey, StartReceived, Tick
from proplet.agent.ports import GuestLimits
from proplet.agent.terms import NodeLimits, granted
from proplet.agent.wire import Limits, Reason, RestartPolicy, Start, StartTerms


def received(task_id: str) -> StartReceived:
    terms = StartTerms(attempt=1, restart_policy=RestartPolicy.ON_FAILURE)
    return StartReceived(Start(task_id, "main", ext=terms), "sha256:m", "h")


def one_backs_off(now: float, max_active: int = 1) -> Core:
    core = Core(CoreSettings("me", max_active=max_active))
    core.handle(received("t"), now)
    core.handle(ModuleFailed(RunKey("t", 1), Reason.MODULE_UNAVAILABLE, "no network"), now)
    return core


def test_nobody_is_woken_for_a_backoff_while_no_slot_is_free() -> None:
    core = one_backs_off(1000.0)
    assert core.next_due() == 1001.0
    core.handle(received("daemon"), 1000.0)
    assert core.next_due() is None
    step = core.handle(ModuleFailed(RunKey("daemon", 1), Reason.INVALID_MODULE, "no"), 2000.0)
    assert [e.key.task_id for e in step.then if isinstance(e, Prepare)] == ["t"], "the freed slot is given on"


def test_a_clock_that_is_set_back_by_years_holds_a_backoff_up_for_minutes() -> None:
    core = one_backs_off(2e9)
    core.handle(Tick(), 1e9)
    due = core.next_due()
    assert due is not None
    assert due <= 1e9 + BACKOFF_MAX_S
    assert any(isinstance(e, Prepare) for e in core.handle(Tick(), due).then)


@pytest.mark.parametrize(("asked", "given"), [(None, 500), (2**64 - 1, 1000), (7, 7)])
def test_the_fuel_granted_is_never_more_than_the_ceiling(asked: int | None, given: int) -> None:
    node = NodeLimits(GuestLimits(fuel=500), GuestLimits(fuel=1000))
    start = Start("t", "main", ext=StartTerms(limits=Limits(fuel=asked)))
    assert granted(start, node).fuel == given


def test_a_ceiling_of_fuel_holds_for_a_task_that_names_none() -> None:
    assert granted(Start("t", "main"), NodeLimits(GuestLimits(), GuestLimits(fuel=1000))).fuel == 1000


def test_daemons_keep_no_other_task_from_its_slot() -> None:
    core = Core(CoreSettings("me", max_active=2, max_daemons=3))
    for n in range(5):
        core.handle(StartReceived(Start(f"d{n}", "main", daemon=True), "sha256:m", "h"), 1.0)
    begun = [core.handle(received(f"t{n}"), 1.0) for n in range(3)]
    assert [sum(isinstance(e, Prepare) for e in step.then) for step in begun] == [1, 1, 0]
    freed = core.handle(ModuleFailed(RunKey("d0", 0), Reason.INVALID_MODULE, "no"), 2.0)
    assert [e.key.task_id for e in freed.then if isinstance(e, Prepare)] == ["d3"]
    freed = core.handle(ModuleFailed(RunKey("t0", 1), Reason.INVALID_MODULE, "no"), 2.0)
    assert [e.key.task_id for e in freed.then if isinstance(e, Prepare)] == ["t2"]


def test_a_daemon_is_refused_where_none_may_run() -> None:
    core = Core(CoreSettings("me", max_daemons=0))
    step = core.handle(StartReceived(Start("d", "main", daemon=True), "sha256:m", "h"), 1.0)
    assert not any(isinstance(e, Prepare) for e in step.then)
    assert len(core) == 0
