"""Latent tasks and restarts in the core's decisions, told as stories."""

import json
from typing import Any

from proplet.agent.admission import CoreSettings
from proplet.agent.core import Core
from proplet.agent.events import (
    Deploy,
    ModuleFailed,
    ModuleReady,
    Note,
    Outcome,
    Prepare,
    Recovered,
    RecoveredAttempt,
    Retire,
    Run,
    RunEnded,
    RunKey,
    SaveOutcome,
    SaveReply,
    SaveState,
    StartReceived,
    Step,
    StopReceived,
    Tick,
    Waits,
)
from proplet.agent.lifecycle import State
from proplet.agent.wire import PullPolicy, Reason, RestartPolicy, Start, StartTerms

KEY = RunKey("f", 1)
CRASH = Outcome(Reason.EXIT_CODE, error="exit status 1", exit_code=1, run_s=0.5)


def latent(task_id: str = "f", attempt: int = 1, **terms: Any) -> Start:
    return Start(task_id, "main", latent=True, ext=StartTerms(attempt=attempt, **terms))


def daemon(**terms: Any) -> Start:
    return Start("f", "main", daemon=True, ext=StartTerms(attempt=1, **terms))


def received(start: Start) -> StartReceived:
    return StartReceived(start, "sha256:m", "h")


def deployed(**settings: Any) -> Core:
    core = Core(CoreSettings("me", **settings))
    core.handle(received(latent()), 1.0)
    core.handle(ModuleReady(KEY), 2.0)
    return core


def states(core: Core) -> dict[str, str]:
    return {item.id: item.state for item in core.inventory()}


def told(step: Step) -> dict[str, Any]:
    (saved,) = (s for s in step.save if isinstance(s, (SaveOutcome, SaveReply)))
    return json.loads(saved.payload)  # type: ignore[no-any-return]


def recovered(start: Start, state: State, restarts: int = 0) -> RecoveredAttempt:
    return RecoveredAttempt(KEY, start, "sha256:m", "h", state, 0.0, restarts)


def test_a_latent_task_rests_deployed_without_a_result_and_without_a_slot() -> None:
    core = Core(CoreSettings("me", max_active=1))
    core.handle(received(latent()), 1.0)
    step = core.handle(ModuleReady(KEY), 2.0)
    assert step == Step((SaveState(KEY, State.DEPLOYED, 2.0),), (Deploy(KEY, latent(), "sha256:m"),))
    assert core.invocable("f") == KEY
    other = core.handle(received(Start("t", "main", ext=StartTerms(attempt=1))), 3.0)
    assert any(isinstance(effect, Prepare) for effect in other.then), "the only slot is free"


def test_a_stop_of_a_deployed_task_ends_it_and_its_invocations() -> None:
    core = deployed()
    step = core.handle(StopReceived("f"), 3.0)
    assert told(step)["ext"]["reason"] == "stopped"
    assert Retire(KEY, "Task f was stopped before completion") in step.then
    assert "has not been precompiled" in str(core.invocable("f"))


def test_a_newer_attempt_of_a_deployed_task_takes_its_place() -> None:
    core = deployed()
    step = core.handle(received(latent(attempt=2)), 3.0)
    assert told(step)["ext"]["reason"] == "superseded"
    assert [type(effect) for effect in step.then][-2:] == [Retire, Prepare]


def test_a_latent_task_that_cannot_be_prepared_fails_with_the_reason() -> None:
    core = Core(CoreSettings("me"))
    core.handle(received(latent()), 1.0)
    step = core.handle(ModuleFailed(KEY, Reason.INVALID_MODULE, "no wasm"), 2.0)
    assert told(step)["error"] == "no wasm"
    assert Retire(KEY, "no wasm") in step.then


def test_after_a_restart_it_is_prepared_again_from_what_is_at_hand() -> None:
    core = Core(CoreSettings("me"))
    start = latent(pull_policy=PullPolicy.ALWAYS)
    step = core.recover(Recovered((recovered(start, State.DEPLOYED),)), 9.0)
    assert step.then == (Prepare(KEY, start, "sha256:m", again=True),)
    step = core.handle(ModuleFailed(KEY, Reason.MODULE_UNAVAILABLE, "the registry is away"), 10.0)
    assert not any(isinstance(save, SaveOutcome) for save in step.save), "it was ready once: that passes"
    assert states(core) == {"f": "waiting"}
    assert core.invocable("f") == "task f is not ready to be invoked: restarted once, next in 1 s: the registry is away"


def test_no_more_latent_tasks_than_the_bound_are_taken_but_a_newer_attempt_is() -> None:
    core = deployed(max_latent=1)
    step = core.handle(received(latent("g")), 3.0)
    assert told(step)["ext"]["reason"] == "overloaded"
    assert "max_latent" in told(step)["error"]
    assert core.handle(received(latent(attempt=2)), 4.0).save


def test_daemons_and_tasks_that_run_once_are_not_invocable() -> None:
    core = Core(CoreSettings("me"))
    core.handle(received(daemon()), 1.0)
    core.handle(received(Start("t", "main", ext=StartTerms(attempt=1))), 1.0)
    assert "is a daemon" in str(core.invocable("f"))
    assert "run once" in str(core.invocable("t"))


# --- daemons --------------------------------------------------------------------------------------------------------


def running(start: Start) -> Core:
    core = Core(CoreSettings("me"))
    core.handle(received(start), 0.0)
    core.handle(ModuleReady(KEY), 0.0)
    return core


def crash(core: Core, now: float, outcome: Outcome = CRASH) -> tuple[float, Step]:
    """The guest ends; return the seconds until it runs again, and what was done. It runs again then."""
    step = core.handle(RunEnded(KEY, outcome), now)
    due = core.next_due()
    assert due is not None
    core.handle(Tick(), due)
    core.handle(ModuleReady(KEY), due)
    return due - now, step


def test_a_daemon_that_crashes_waits_longer_every_time_and_is_then_called_a_crash_loop() -> None:
    core, waits, words = running(daemon(restart_policy=RestartPolicy.ALWAYS)), list[float](), list[Any]()
    for n in range(12):
        waited, step = crash(core, 1000.0 * n)
        waits.append(waited)
        words += [effect.stage for effect in step.then if isinstance(effect, Waits)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert words == ["waiting", "waiting"] + ["crash_loop"] * 10


def test_a_person_is_told_how_often_it_was_restarted_when_it_is_next_and_why() -> None:
    core = running(daemon(restart_policy=RestartPolicy.ALWAYS))
    for n in range(4):
        crash(core, 1000.0 * n)
    core.handle(RunEnded(KEY, CRASH), 9000.0)
    (item,) = core.inventory()
    assert (item.state, item.message) == ("crash_loop", "restarted 5 times, next in 16 s: exit status 1")


def test_a_daemon_that_was_healthy_for_long_begins_anew_with_its_backoff() -> None:
    core = running(daemon(restart_policy=RestartPolicy.ALWAYS))
    for n in range(6):
        crash(core, 1000.0 * n)
    healthy = Outcome(Reason.EXIT_CODE, error="exit status 1", exit_code=1, run_s=600.0)
    waited, step = crash(core, 9000.0, healthy)
    assert waited == 1
    assert [e.stage for e in step.then if isinstance(e, Waits)] == ["waiting"]


def test_a_daemon_that_ends_well_is_restarted_only_under_always() -> None:
    well = Outcome(Reason.OK, "bye", run_s=1.0)
    ended = running(daemon(restart_policy=RestartPolicy.ON_FAILURE)).handle(RunEnded(KEY, well), 5.0)
    assert told(ended)["results"] == "bye"
    _, step = crash(running(daemon(restart_policy=RestartPolicy.ALWAYS)), 5.0, well)
    assert [effect.text for effect in step.then if isinstance(effect, Note)] == [
        "restarted once, next in 1 s: it ended"
    ]


def test_a_daemon_without_a_policy_is_not_restarted() -> None:
    for policy in (None, RestartPolicy.NEVER):
        step = running(daemon(restart_policy=policy)).handle(RunEnded(KEY, CRASH), 5.0)
        assert told(step)["error"] == "exit status 1"


def test_a_daemons_backoff_limit_counts_failures_in_a_row() -> None:
    core = running(daemon(restart_policy=RestartPolicy.ALWAYS, backoff_limit=2))
    crash(core, 1000.0)
    crash(core, 2000.0, Outcome(Reason.EXIT_CODE, error="exit status 1", run_s=700.0))
    crash(core, 3000.0)
    step = core.handle(RunEnded(KEY, CRASH), 4000.0)
    assert told(step)["ext"]["restarts"] == 3


def test_a_daemon_that_ran_is_run_again_after_a_restart_of_the_node_from_what_is_at_hand() -> None:
    core = Core(CoreSettings("me"))
    start = daemon(restart_policy=RestartPolicy.ON_FAILURE, pull_policy=PullPolicy.ALWAYS)
    step = core.recover(Recovered((recovered(start, State.RUNNING, restarts=7),)), 9.0)
    assert Prepare(KEY, start, "sha256:m", again=True) in step.then
    step = core.handle(ModuleReady(KEY), 10.0)
    assert Run(KEY, start, 8) in step.then
    waited, _ = crash(core, 20.0)
    assert waited == 1, "a reboot ends the row of failures"


def test_a_daemon_without_a_policy_is_run_again_after_a_restart_of_the_node_and_one_that_never_may_is_not() -> None:
    core = Core(CoreSettings("me"))
    step = core.recover(Recovered((recovered(daemon(), State.RUNNING),)), 9.0)
    assert [type(effect) for effect in step.then] == [Note, Prepare]
    never = daemon(restart_policy=RestartPolicy.NEVER)
    step = Core(CoreSettings("me")).recover(Recovered((recovered(never, State.RUNNING),)), 9.0)
    assert told(step)["ext"]["reason"] == "interrupted"
