"""What a task has cost, over all its runs and invocations, as its result says it."""

import json
from typing import Any

import pytest

from proplet.agent.admission import CoreSettings
from proplet.agent.core import Core
from proplet.agent.events import (
    Invoked,
    ModuleReady,
    Outcome,
    RunEnded,
    RunKey,
    SaveOutcome,
    Spent,
    StartReceived,
    Step,
    StopReceived,
    Tick,
)
from proplet.agent.wire import Reason, RestartPolicy, Start, StartTerms

KEY = RunKey("t", 1)
OK = Outcome(Reason.OK, results="42", cpu_s=0.25, peak_memory_bytes=65536, run_s=0.5)


def begun(**fields: Any) -> Core:
    core = Core(CoreSettings("me"))
    policy = fields.pop("policy", None)
    start = Start("t", "main", ext=StartTerms(attempt=1, restart_policy=policy, backoff_limit=3), **fields)
    core.handle(StartReceived(start, "sha256:m", "h"), 10.0)
    core.handle(ModuleReady(KEY), 10.0)
    return core


def usage(step: Step) -> dict[str, Any]:
    (saved,) = (save for save in step.save if isinstance(save, SaveOutcome))
    found: dict[str, Any] = json.loads(saved.payload)["ext"]["usage"]
    return found


def test_the_costs_of_a_task_that_ran_again_are_those_of_all_its_runs() -> None:
    core = begun(policy=RestartPolicy.ON_FAILURE)
    failed = Outcome(Reason.TRAP, error="trap", cpu_s=1.0, peak_memory_bytes=131072, run_s=2.0, fuel_used=7)
    core.handle(RunEnded(KEY, failed), 12.0)
    core.handle(Tick(), 13.0)
    core.handle(ModuleReady(KEY), 13.0)
    cost = usage(core.handle(RunEnded(KEY, OK), 14.0))
    assert (cost["cpu_seconds"], cost["peak_memory_bytes"], cost["fuel_used"]) == (1.25, 131072, 7)
    assert cost["wall_seconds"]["run"] == 2.5
    assert cost["wall_seconds"]["total"] == 4.0
    assert cost["restarts"] == 1


def test_a_measure_that_could_not_be_taken_is_left_out_and_the_reason_is_said() -> None:
    cost = usage(begun().handle(RunEnded(KEY, Outcome(Reason.OK, memory_note="not known: shared")), 11.0))
    assert cost.keys() == {"wall_seconds", "memory_note"}
    assert cost["memory_note"] == "not known: shared"


@pytest.mark.parametrize(
    "end", [StopReceived("t", 1), StartReceived(Start("t", "x", ext=StartTerms(attempt=2)), "m", "g")]
)
def test_a_latent_task_ends_with_the_costs_of_its_invocations(end: StopReceived | StartReceived) -> None:
    core = begun(latent=True)
    core.handle(Invoked(KEY, Spent().plus(OK).plus(OK)), 12.0)
    cost = usage(core.handle(end, 13.0))
    assert (cost["invocations"], cost["cpu_seconds"], cost["peak_memory_bytes"]) == (2, 0.5, 65536)
    assert cost["wall_seconds"]["run"] == 1.0


def test_the_note_on_memory_is_that_of_the_run_with_the_highest_peak() -> None:
    low = Outcome(Reason.OK, peak_memory_bytes=10, memory_note="its worker's")
    high = Outcome(Reason.OK, peak_memory_bytes=20)
    unknown = Outcome(Reason.OK, memory_note="not known")
    assert Spent().plus(low).plus(high).memory_note is None
    assert Spent().plus(unknown).plus(low).memory_note == "its worker's"
    assert Spent().plus(low).plus(unknown).memory_note == "its worker's"
    assert Spent().plus(unknown).plus(high).memory_note is None
