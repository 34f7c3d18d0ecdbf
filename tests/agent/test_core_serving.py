"""Services as the core sees them: they stay, their peers learn where they serve, and they come back."""

import json
from typing import Any

from proplet.agent.admission import CoreSettings
from proplet.agent.core import Core
from proplet.agent.events import (
    Deliver,
    ModuleReady,
    Outcome,
    Prepare,
    Recovered,
    RecoveredAttempt,
    RunEnded,
    RunKey,
    SaveOutcome,
    SaveReply,
    SaveState,
    Served,
    StartReceived,
    Step,
    StopReceived,
)
from proplet.agent.lifecycle import State
from proplet.agent.wire import Reason, RestartPolicy, Start, StartTerms

KEY = RunKey("t", 1)


def told(step: Step) -> list[dict[str, Any]]:
    return [json.loads(s.payload) for s in step.save if isinstance(s, (SaveOutcome, SaveReply))]


def serving(start: Start, key: RunKey = KEY, **bounds: Any) -> tuple[Core, Step]:
    agent = Core(CoreSettings("me", **bounds))
    agent.handle(StartReceived(start, "sha256:m", "h"), 0.0)
    agent.handle(ModuleReady(key), 1.0)
    return agent, agent.handle(Served(key, 8222), 2.0)


def ours(**terms: Any) -> Start:
    return Start("t", "_start", ext=StartTerms(attempt=1, **terms))


def test_a_peer_of_ours_sees_in_the_inventory_where_a_task_serves_and_gets_no_result_yet() -> None:
    agent, step = serving(ours())
    assert told(step) == []
    assert step.save == (SaveState(KEY, State.SERVING, 2.0),)
    (item,) = agent.inventory()
    assert (item.state, item.message) == ("serving", "started at port 8222")


def test_a_peer_of_the_reference_gets_the_port_as_the_result_and_once_only() -> None:
    key = RunKey("t", 0)
    agent, step = serving(Start("t", "_start"), key)
    assert told(step) == [{"task_id": "t", "proplet_id": "me", "results": "started at port 8222", "error": None}]
    assert step.then == (Deliver(),)
    assert [item.state for item in agent.inventory()] == ["serving"]
    assert told(agent.handle(Served(key, 8222), 3.0)) == []


def test_a_service_does_not_keep_a_slot_from_tasks_that_end() -> None:
    agent, _ = serving(ours(), max_active=1)
    other = agent.handle(StartReceived(Start("other", "main"), "sha256:m", "h"), 3.0)
    assert [type(effect) for effect in other.then] == [Prepare]
    agent.handle(RunEnded(KEY, Outcome(Reason.EXIT_CODE, error="gone")), 4.0)
    third = agent.handle(StartReceived(Start("third", "main"), "sha256:m", "h"), 5.0)
    assert third.then == ()


def test_one_that_fails_comes_back_as_its_policy_says_and_tells_its_new_port() -> None:
    agent, _ = serving(ours(restart_policy=RestartPolicy.ALWAYS))
    agent.handle(RunEnded(KEY, Outcome(Reason.WORKER_CRASHED, error="killed")), 3.0)
    (item,) = agent.inventory()
    assert item.state == "waiting"
    assert "killed" in item.message
    agent.handle(StartReceived(Start("tick", "main"), "sha256:m", "h"), 10.0)
    agent.handle(ModuleReady(KEY), 11.0)
    agent.handle(Served(KEY, 8223), 12.0)
    assert [i.message for i in agent.inventory() if i.id == "t"] == ["started at port 8223"]


def test_without_a_policy_its_failure_is_its_result() -> None:
    agent, _ = serving(ours())
    (result,) = told(agent.handle(RunEnded(KEY, Outcome(Reason.WORKER_CRASHED, error="killed")), 3.0))
    assert (result["error"], result["ext"]["reason"]) == ("killed", "worker_crashed")


def test_a_service_is_started_again_after_the_node_was() -> None:
    for start, key in ((ours(), KEY), (Start("t", "_start"), RunKey("t", 0))):
        agent = Core(CoreSettings("me"))
        held = RecoveredAttempt(key, start, "sha256:m", "h", State.SERVING, 1.0)
        step = agent.recover(Recovered((held,)), 100.0)
        assert told(step) == []
        assert step.then[-1] == Prepare(key, start, "sha256:m", again=True)


def test_one_that_may_never_run_again_is_not() -> None:
    agent = Core(CoreSettings("me"))
    held = RecoveredAttempt(KEY, ours(restart_policy=RestartPolicy.NEVER), "sha256:m", "h", State.SERVING, 1.0)
    (result,) = told(agent.recover(Recovered((held,)), 100.0))
    assert result["ext"]["reason"] == "interrupted"


def test_news_of_a_port_after_the_stop_changes_nothing() -> None:
    agent, _ = serving(ours())
    agent.handle(StopReceived("t"), 3.0)
    assert agent.handle(Served(KEY, 8222), 3.5) == Step()
    (result,) = told(agent.handle(RunEnded(KEY, Outcome(Reason.STOPPED)), 4.0))
    assert result["error"] == "Task t was stopped before completion"
