"""Odd hours and full houses: what the core does when a clock is set or no slot is free."""

from dataclasses import replace
from pathlib import Path

import pytest

from proplet.agent.admission import CoreSettings
from proplet.agent.core import BACKOFF_MAX_S, Core
from proplet.agent.events import ModuleFailed, Outcome, Prepare, RunKey, StartReceived, Tick
from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleKind
from proplet.agent.terms import NodeLimits, explained, granted, lowered
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


@pytest.mark.parametrize(
    ("daemon", "deadline_s", "given"),
    [(True, None, None), (True, 5.0, 2.0), (True, 1.0, 1.0), (False, None, 2.0), (False, 5.0, 2.0)],
)
def test_the_ceiling_of_time_is_for_what_ends_or_has_a_deadline(
    *, daemon: bool, deadline_s: float | None, given: float | None
) -> None:
    node = NodeLimits(GuestLimits(wall_s=2.0), GuestLimits(cpu_s=None, wall_s=2.0))
    start = Start("t", "main", daemon=daemon, ext=StartTerms(deadline_s=deadline_s))
    assert granted(start, node).wall_s == given
    assert lowered(start, node) == ({"wall"} if deadline_s == 5.0 else set())


def test_what_serves_is_no_more_bound_by_the_ceiling_of_time_than_a_daemon() -> None:
    node = NodeLimits(GuestLimits(), GuestLimits(wall_s=2.0))
    assert granted(Start("t", "main"), node, serves=True).wall_s is None


@pytest.mark.parametrize(
    ("reason", "error", "name"),
    [
        (Reason.TIMEOUT, "ended after 2 s, its limit of time", "wall"),
        (Reason.CPU_LIMIT, "ended after 2 s of CPU time, its limit", "cpu"),
        (Reason.CPU_LIMIT, "it used up its 7 units of fuel", "fuel"),
        (Reason.MEMORY_LIMIT, "it may have 65536 bytes of memory", "memory"),
        (Reason.OUTPUT_LIMIT, "its answer has more characters than the 9 allowed", "output"),
        (Reason.TRAP, "wasm trap: call stack exhausted; it may have 65536 bytes of stack (limits.stack)", "stack"),
        (Reason.TRAP, "wasm trap: unreachable; it may have 65536 bytes of memory (limits.memory)", "memory"),
    ],
)
def test_who_ends_at_a_limit_that_the_node_has_lowered_is_told_so(reason: Reason, error: str, name: str) -> None:
    job = Job("k", Artefact("sha256:m", Path("/m"), ModuleKind.CORE), "main", lowered=frozenset({name}))
    told = explained(Outcome(reason, error=error), job)
    assert told.error == f"{error} (the most this node allows: [agent.ceilings] {name})"
    asked_for = replace(job, lowered=frozenset({"another"}))
    assert explained(Outcome(reason, error=error), asked_for).error == error
    fine = Outcome(Reason.EXIT_CODE, error="exit status 1")
    assert explained(fine, job) == fine


def test_output_dropped_above_a_lowered_limit_is_told_so() -> None:
    job = Job("k", Artefact("sha256:m", Path("/m"), ModuleKind.CORE), "main", lowered=frozenset({"output"}))
    note = "[proplet: 7 bytes of stdout above the output limit were dropped]\n"
    told = explained(Outcome(Reason.OK, f"x\n{note}", stderr=note.encode()), job)
    expected = note.replace("limit", "limit (the most this node allows: [agent.ceilings] output)")
    assert (told.results, told.stderr) == (f"x\n{expected}", expected.encode())


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
