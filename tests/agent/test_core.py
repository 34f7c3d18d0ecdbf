"""The agent's decisions, told as stories: an event, and what is saved and done."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.agent import wire
from proplet.agent.admission import CoreSettings
from proplet.agent.core import Core
from proplet.agent.events import (
    Cancel,
    CommandRefused,
    Deliver,
    ModuleFailed,
    ModuleReady,
    Note,
    Outcome,
    Prepare,
    Recovered,
    RecoveredAttempt,
    Run,
    RunEnded,
    RunKey,
    SaveAccepted,
    SaveOutcome,
    SaveReply,
    SaveResend,
    SaveState,
    StartKind,
    StartReceived,
    Step,
    StopReceived,
    TellInventory,
    Tick,
)
from proplet.agent.lifecycle import State
from proplet.agent.wire import DirectoryGrant, Permissions, Reason, RestartPolicy, Start, StartTerms


def start(
    task_id: str = "t",
    attempt: int | None = 1,
    policy: RestartPolicy | None = None,
    **more: Any,
) -> Start:
    ext = (
        None
        if attempt is None
        else StartTerms(attempt=attempt, restart_policy=policy, backoff_limit=more.pop("limit", None))
    )
    return Start(task_id, "main", inputs=("10", "32"), ext=ext, **more)


def received(command: Start, *, duplicate: bool = False, payload_hash: str = "h") -> StartReceived:
    return StartReceived(command, "sha256:m", payload_hash, duplicate)


def core(**more: Any) -> Core:
    return Core(CoreSettings("me", **more))


def message(step: Step) -> dict[str, Any]:
    (saved,) = (s for s in step.save if isinstance(s, (SaveOutcome, SaveReply)))
    return json.loads(saved.payload)


def kinds(step: Step) -> list[str]:
    return [type(x).__name__ for x in (*step.save, *step.then)]


OK = Outcome(Reason.OK, "42", cpu_s=0.001, peak_memory_bytes=65536, run_s=0.002)


def run_to(state: State, command: Start | None = None, **more: Any) -> tuple[Core, RunKey]:
    agent = core(**more)
    key = RunKey("t", 1)
    agent.handle(received(command or start()), 0.0)
    if state in (State.RUNNING, State.STOPPING):
        agent.handle(ModuleReady(key), 1.0)
    if state is State.STOPPING:
        agent.handle(StopReceived("t", 1), 2.0)
    return agent, key


def test_a_start_is_journalled_before_its_module_is_fetched_and_run_before_it_is_reported() -> None:
    agent = core()
    key = RunKey("t", 1)
    step = agent.handle(received(start()), 10.0)
    assert step.save == (SaveAccepted(key, start(), "sha256:m", "h", 10.0),)
    assert step.then == (Prepare(key, start(), "sha256:m"),)
    step = agent.handle(ModuleReady(key, fetch_s=0.5, compile_s=0.25, start_kind=StartKind.COLD), 11.0)
    assert step.save == (SaveState(key, State.RUNNING, 11.0),)
    assert step.then == (Run(key, start()),)
    step = agent.handle(RunEnded(key, OK), 12.0)
    assert kinds(step) == ["SaveOutcome", "Deliver"]
    assert message(step) == {
        "task_id": "t",
        "proplet_id": "me",
        "results": "42",
        "error": None,
        "ext": {
            "attempt": 1,
            "reason": "ok",
            "usage": {
                "cpu_seconds": 0.001,
                "peak_memory_bytes": 65536,
                "wall_seconds": {
                    "queue": 0.25,
                    "fetch": 0.5,
                    "compile": 0.25,
                    "worker": 0.998,
                    "run": 0.002,
                    "total": 2.0,
                },
                "start_kind": "cold",
            },
        },
    }
    assert len(agent) == 0


def test_a_start_for_another_proplet_is_ignored() -> None:
    assert core().handle(received(start(proplet_id="other")), 0.0) == Step()


@pytest.mark.parametrize(
    "meant", [{"proplet_id": "me"}, {"proplet_id": ""}, {}, {"proplet_id": "x", "broadcast": True}]
)
def test_a_start_that_names_this_proplet_nobody_or_everybody_is_taken(meant: dict[str, Any]) -> None:
    assert kinds(core().handle(received(start(**meant)), 0.0)) == ["SaveAccepted", "Prepare"]


def test_a_repeated_start_of_a_running_attempt_is_answered_with_the_inventory() -> None:
    agent, _ = run_to(State.RUNNING)
    assert agent.handle(received(start()), 5.0) == Step(then=(TellInventory(),))
    assert agent.inventory() == (wire.InventoryItem("t", 1, "running", 1.0),)


def test_a_repeated_start_of_a_finished_attempt_is_answered_with_its_result() -> None:
    agent, key = run_to(State.RUNNING)
    agent.handle(RunEnded(key, OK), 2.0)
    assert agent.handle(received(start()), 5.0) == Step((SaveResend(key),), (Deliver(),))


def test_a_newer_attempt_stops_the_older_one_and_waits_for_its_end() -> None:
    agent, key = run_to(State.RUNNING)
    newer = RunKey("t", 2)
    step = agent.handle(received(start(attempt=2)), 5.0)
    assert kinds(step) == ["SaveState", "SaveAccepted", "Cancel"]
    step = agent.handle(RunEnded(key, Outcome(Reason.STOPPED)), 6.0)
    assert message(step)["ext"]["reason"] == "superseded"
    assert step.then == (Deliver(), Prepare(newer, start(attempt=2), "sha256:m"))


def test_an_older_attempt_that_comes_late_is_not_run_and_the_sender_is_told() -> None:
    agent = core()
    agent.handle(received(start(attempt=2)), 0.0)
    step = agent.handle(received(start(attempt=1)), 1.0)
    assert message(step)["ext"] == {**message(step)["ext"], "attempt": 1, "reason": "superseded"}


def test_a_peer_without_attempts_may_run_the_same_id_again_after_it_finished() -> None:
    agent = core()
    plain = start(attempt=None)
    agent.handle(received(plain), 0.0)
    assert kinds(agent.handle(received(plain), 1.0)) == ["Note"]
    agent.handle(ModuleReady(RunKey("t", 0)), 1.0)
    agent.handle(RunEnded(RunKey("t", 0), OK), 2.0)
    assert kinds(agent.handle(received(plain), 3.0)) == ["SaveAccepted", "Prepare"]


def test_a_redelivery_to_a_peer_without_attempts_is_answered_and_not_run_again() -> None:
    agent = core()
    plain = start(attempt=None)
    agent.handle(received(plain), 0.0)
    agent.handle(ModuleReady(RunKey("t", 0)), 1.0)
    agent.handle(RunEnded(RunKey("t", 0), OK), 2.0)
    assert agent.handle(received(plain, duplicate=True), 3.0) == Step((SaveResend(RunKey("t", 0)),), (Deliver(),))
    other = received(plain, duplicate=True, payload_hash="changed")
    assert kinds(agent.handle(other, 3.0)) == ["SaveAccepted", "Prepare"]


def test_a_command_that_cannot_be_read_gets_a_failed_result() -> None:
    step = core().handle(CommandRefused("t", None, "file is not standard base64"), 0.0)
    assert message(step)["error"] == "file is not standard base64"
    assert message(step)["ext"]["reason"] == "invalid_command"


def test_a_refused_command_never_ends_a_run_that_goes_on() -> None:
    agent, _ = run_to(State.RUNNING)
    assert agent.handle(CommandRefused("t", 1, "bad"), 2.0) == Step(then=(TellInventory(),))
    assert [type(e) for e in agent.handle(CommandRefused("t", None, "bad"), 2.0).then] == [Note]


@pytest.mark.parametrize("fields", [{"encrypted": True}, {"latent": True, "daemon": True}], ids=str)
def test_what_this_version_cannot_do_is_refused_with_a_result(fields: dict[str, bool]) -> None:
    step = core().handle(received(start(**fields)), 0.0)
    assert message(step)["ext"]["reason"] == "not_supported"


def test_a_waiting_task_is_stopped_at_once() -> None:
    agent = core(max_active=1)
    agent.handle(received(start("a")), 0.0)
    agent.handle(received(start("b")), 0.0)
    step = agent.handle(StopReceived("b"), 1.0)
    assert message(step)["error"] == "Task b was stopped before completion"
    assert step.then == (Deliver(),)


@pytest.mark.parametrize("state", [State.PREPARING, State.RUNNING])
def test_a_stop_cancels_what_is_under_way_and_reports_when_it_has_ended(state: State) -> None:
    agent, key = run_to(state)
    step = agent.handle(StopReceived("t"), 2.0)
    assert step == Step((SaveState(key, State.STOPPING, 2.0),), (Cancel(key),))
    assert agent.handle(StopReceived("t"), 2.5) == Step()
    step = agent.handle(RunEnded(key, Outcome(Reason.STOPPED)), 3.0)
    assert message(step)["ext"]["reason"] == "stopped"


def test_a_guest_that_ends_well_before_its_stop_takes_effect_has_ended_well() -> None:
    agent, key = run_to(State.STOPPING)
    assert message(agent.handle(RunEnded(key, OK), 3.0))["results"] == "42"


def test_a_module_that_is_ready_just_when_the_stop_comes_still_ends_as_stopped() -> None:
    agent, key = run_to(State.PREPARING)
    agent.handle(StopReceived("t"), 2.0)
    step = agent.handle(ModuleReady(key), 2.1)
    assert message(step)["ext"]["reason"] == "stopped"
    assert len(agent) == 0


def test_a_stop_of_another_attempt_is_not_meant_for_this_one() -> None:
    agent, _ = run_to(State.RUNNING)
    assert agent.handle(StopReceived("t", 7), 2.0) == Step()


def test_a_stop_that_crosses_the_result_is_answered_with_the_result() -> None:
    agent, key = run_to(State.RUNNING)
    agent.handle(RunEnded(key, OK), 2.0)
    assert agent.handle(StopReceived("t", 1), 3.0) == Step((SaveResend(key),), (Deliver(),))


def test_a_module_that_cannot_be_had_fails_the_task_with_the_reason() -> None:
    agent, key = run_to(State.PREPARING)
    step = agent.handle(ModuleFailed(key, Reason.DIGEST_MISMATCH, "wrong digest"), 1.0)
    assert (message(step)["error"], message(step)["ext"]["reason"]) == ("wrong digest", "digest_mismatch")


def test_only_as_many_tasks_as_there_are_slots_are_active_and_the_longest_waiting_comes_next() -> None:
    agent = core(max_active=2)
    for name in "abcd":
        agent.handle(received(start(name)), 0.0)
    step = agent.handle(ModuleFailed(RunKey("b", 1), Reason.INVALID_MODULE, "no"), 1.0)
    assert [e.key.task_id for e in step.then if isinstance(e, Prepare)] == ["c"]


def test_more_tasks_than_may_wait_are_refused_and_not_remembered() -> None:
    agent = core(max_active=1, max_accepted=1)
    agent.handle(received(start("a")), 0.0)
    agent.handle(received(start("b")), 0.0)
    step = agent.handle(received(start("c")), 0.0)
    assert message(step)["ext"]["reason"] == "overloaded"
    agent.handle(ModuleFailed(RunKey("a", 1), Reason.INVALID_MODULE, "no"), 1.0)
    assert kinds(agent.handle(received(start("c")), 2.0)) == ["SaveAccepted"]


def test_a_failed_task_runs_again_after_a_growing_backoff_and_fails_at_its_limit() -> None:
    agent, key = run_to(State.RUNNING, start(policy=RestartPolicy.ON_FAILURE, limit=2))
    bad = RunEnded(key, Outcome(Reason.TRAP, error="unreachable"))
    step = agent.handle(bad, 10.0)
    assert step.save == (SaveState(key, State.WAITING, 10.0, 1, 11.0),)
    assert agent.next_due() == 11.0
    assert agent.handle(Tick(), 10.9) == Step()
    assert kinds(agent.handle(Tick(), 11.0)) == ["Prepare"]
    agent.handle(ModuleReady(key), 11.0)
    agent.handle(bad, 12.0)
    assert agent.next_due() == 14.0
    agent.handle(Tick(), 14.0)
    agent.handle(ModuleReady(key), 14.0)
    step = agent.handle(bad, 15.0)
    assert message(step)["error"] == "unreachable (given up after 3 runs: backoffLimit is 2)"
    assert message(step)["ext"]["restarts"] == 2


def test_the_stages_of_all_runs_and_the_waits_between_them_add_up_to_the_total() -> None:
    agent, key = core(), RunKey("t", 1)
    agent.handle(received(start(policy=RestartPolicy.ON_FAILURE, limit=1)), 10.0)
    agent.handle(ModuleReady(key, fetch_s=0.5, compile_s=0.25), 11.0)
    agent.handle(RunEnded(key, Outcome(Reason.TRAP, error="x", run_s=0.5)), 12.0)
    agent.handle(Tick(), 13.5)
    agent.handle(ModuleReady(key), 13.75)
    step = agent.handle(RunEnded(key, replace(OK, run_s=1.0)), 15.0)
    took = message(step)["ext"]["usage"]["wall_seconds"]
    assert took.pop("total") == 5.0
    assert took == {"queue": 0.5, "fetch": 0.5, "compile": 0.25, "worker": 0.75, "run": 1.5, "backoff": 1.5}
    assert sum(took.values()) == 5.0


@pytest.mark.parametrize("policy", [None, RestartPolicy.NEVER])
def test_without_a_restart_policy_a_failure_is_final(policy: RestartPolicy | None) -> None:
    agent, key = run_to(State.RUNNING, start(policy=policy))
    assert message(agent.handle(RunEnded(key, Outcome(Reason.TRAP, error="x")), 2.0))["error"] == "x"


def held(state: State, policy: RestartPolicy | None = None, **more: Any) -> Recovered:
    row = RecoveredAttempt(RunKey("t", 1), start(policy=policy, **more), "sha256:m", "h", state, 0.0)
    return Recovered((row,), {RunKey("done", 1): "h"})


@pytest.mark.parametrize("state", [State.ACCEPTED, State.PREPARING, State.WAITING])
def test_after_a_restart_of_the_node_what_had_not_begun_to_run_begins_again(state: State) -> None:
    step = core().recover(held(state), 100.0)
    assert kinds(step) == ["Prepare"]


@pytest.mark.parametrize("policy", [None, RestartPolicy.NEVER])
def test_after_a_restart_of_the_node_what_was_running_is_reported_as_interrupted(policy: RestartPolicy | None) -> None:
    step = core().recover(held(State.RUNNING, policy), 100.0)
    assert message(step)["ext"]["reason"] == "interrupted"
    assert "restarted while it ran" in message(step)["error"]


@pytest.mark.parametrize("policy", [RestartPolicy.ON_FAILURE, RestartPolicy.ALWAYS])
def test_after_a_restart_of_the_node_what_was_running_runs_again_where_its_policy_says_so(
    policy: RestartPolicy,
) -> None:
    step = core().recover(held(State.RUNNING, policy), 100.0)
    assert kinds(step) == ["SaveState", "Note", "Prepare"]
    assert step.save == (SaveState(RunKey("t", 1), State.WAITING, 100.0, 1, 100.0),)


def test_a_task_that_takes_the_node_down_every_time_is_not_run_for_ever() -> None:
    row = RecoveredAttempt(
        RunKey("t", 1), start(policy=RestartPolicy.ON_FAILURE), None, "h", State.RUNNING, 0.0, restarts=6
    )
    assert message(core().recover(Recovered((row,)), 1.0))["ext"]["reason"] == "interrupted"


def test_after_a_restart_of_the_node_what_was_being_stopped_is_stopped() -> None:
    step = core().recover(held(State.STOPPING), 100.0)
    assert message(step)["ext"]["reason"] == "stopped"


def test_a_result_from_before_a_restart_still_answers_a_repeated_start() -> None:
    agent = core()
    agent.recover(held(State.ACCEPTED), 0.0)
    assert agent.handle(received(start("done")), 1.0).save == (SaveResend(RunKey("done", 1)),)


def test_after_a_restart_of_the_node_a_backoff_still_says_when_it_ends() -> None:
    row = RecoveredAttempt(RunKey("t", 1), start(), None, "h", State.WAITING, 0.0, 7, not_before=1060.0)
    agent = core()
    agent.recover(Recovered((row,)), 1000.0)
    (item,) = agent.inventory()
    assert item.message == "restarted 7 times, next in 60 s; the node was restarted meanwhile"


def test_a_clock_that_was_set_back_does_not_keep_a_backoff_waiting() -> None:
    row = RecoveredAttempt(RunKey("t", 1), start(), None, "h", State.WAITING, 0.0, 1, not_before=1e9)
    agent = core()
    agent.recover(Recovered((row,)), 1000.0)
    due = agent.next_due()
    assert due is not None
    assert due <= 1300.0


def test_finished_attempts_are_remembered_within_a_bound() -> None:
    agent = core(known_attempts=3)
    for n in range(10):
        agent.handle(received(start(f"t{n}")), 0.0)
        agent.handle(ModuleFailed(RunKey(f"t{n}", 1), Reason.INVALID_MODULE, "no"), 0.0)
    assert kinds(agent.handle(received(start("t9")), 1.0)) == ["SaveResend", "Deliver"]
    assert kinds(agent.handle(received(start("t0")), 1.0)) == ["SaveAccepted", "Prepare"]


def test_a_guest_that_may_not_write_is_told_how_its_task_asks_for_it() -> None:
    dirs = (DirectoryGrant("/srv/in", "/in"), DirectoryGrant("/srv/out", "/out", read_only=False))
    command = Start("t", "main", ext=StartTerms(attempt=1, permissions=Permissions(dirs=dirs)))
    for said, told in (("Operation not permitted (os error 63)", True), ("no such file", False)):
        agent, key = run_to(State.RUNNING, command)
        failed = Outcome(Reason.EXIT_CODE, error=f"exit status 1: {said}", exit_code=1)
        error = message(agent.handle(RunEnded(key, failed), 3.0))["error"]
        assert ("/in for reading only" in error and "readOnly: false" in error and "/out" not in error) is told, error


def test_a_round_of_federated_learning_is_answered_in_the_references_shape() -> None:
    agent, key = run_to(State.RUNNING, start(env={"ROUND_ID": "r1", "FL_NUM_SAMPLES": "7"}))
    results = message(agent.handle(RunEnded(key, OK), 2.0))["results"]
    assert results == {
        "task_id": "t",
        "round_id": "r1",
        "proplet_id": "me",
        "num_samples": 7,
        "update_b64": "NDI=",
        "format": "f32-delta",
        "metrics": {},
    }


# --- no sequence of events loses or doubles anything ------------------------------------------------------------------

TASKS = st.sampled_from(["a", "b"])
MOVES = st.one_of(
    st.tuples(st.just("start"), TASKS, st.sampled_from([None, 1, 2]), st.sampled_from([None, *RestartPolicy])),
    st.tuples(st.just("stop"), TASKS, st.sampled_from([None, 1, 2])),
    st.tuples(st.just("outcome"), st.sampled_from([Reason.OK, Reason.TRAP, Reason.INVALID_MODULE])),
    st.tuples(st.just("advance")),
    st.tuples(st.just("time"), st.floats(0, 400)),
    st.tuples(st.just("crash")),
)


class World:
    """A journal and adapters as the shell would drive them, with crashes between any two turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rows: dict[RunKey, RecoveredAttempt] = {}
        self.finished: dict[RunKey, str] = {}
        self.outcomes: list[RunKey] = []
        self.boot()

    def boot(self) -> None:
        self.preparing: list[RunKey] = []
        self.running: list[RunKey] = []
        self.core = core(max_active=2)
        self.obey(self.core.recover(Recovered(tuple(self.rows.values()), dict(self.finished)), self.now))

    def obey(self, step: Step) -> None:
        for save in step.save:
            match save:
                case SaveAccepted(key, command, digest, payload_hash, at):
                    assert key not in self.rows
                    self.rows[key] = RecoveredAttempt(key, command, digest, payload_hash, State.ACCEPTED, at)
                case SaveState(key, state, _, restarts, not_before):
                    old = self.rows[key]
                    self.rows[key] = RecoveredAttempt(
                        key,
                        old.start,
                        old.module_digest,
                        old.payload_hash,
                        state,
                        old.received_at,
                        restarts,
                        not_before,
                    )
                case SaveOutcome(key):
                    self.rows.pop(key, None)
                    self.finished[key] = save.payload_hash
                    self.outcomes.append(key)
                case SaveResend(key):
                    assert key in self.finished
        for effect in step.then:
            match effect:
                case Prepare(key):
                    self.preparing.append(key)
                case Run(key):
                    assert not any(k.task_id == key.task_id for k in self.running), "two attempts of a task run at once"
                    self.running.append(key)
                case Cancel(key):
                    assert key in self.preparing or key in self.running

    def tell(self, event: Any) -> None:
        self.obey(self.core.handle(event, self.now))

    def move(self, move: tuple[Any, ...]) -> None:
        match move:
            case ("start", task, attempt, policy):
                self.tell(received(start(task, attempt, policy)))
            case ("stop", task, attempt):
                self.tell(StopReceived(task, attempt))
            case ("advance",) if self.preparing:
                key = self.preparing.pop(0)
                self.tell(ModuleReady(key))
            case ("outcome", reason) if self.running:
                self.tell(RunEnded(self.running.pop(0), Outcome(reason)))
            case ("outcome", reason) if self.preparing:
                key = self.preparing.pop(0)
                stopping = self.rows[key].state is State.STOPPING
                self.tell(
                    RunEnded(key, Outcome(Reason.STOPPED))
                    if stopping
                    else ModuleFailed(key, Reason.MODULE_UNAVAILABLE, "away")
                )
            case ("time", seconds):
                self.now += seconds
                self.tell(Tick())
            case ("crash",):
                self.boot()


@settings(max_examples=300)
@given(st.lists(MOVES, max_size=40))
def test_no_sequence_of_events_and_crashes_loses_or_doubles_an_outcome(moves: list[tuple[Any, ...]]) -> None:
    world = World()
    for move in moves:
        world.move(move)
        assert len(world.core) == len(world.rows), "the core and the journal disagree about what is unfinished"
    for _ in range(200):  # left alone, everything comes to an end
        world.move(("advance",))
        world.move(("outcome", Reason.OK))
        world.move(("time", 301.0))
    assert not world.rows
    assert len(world.core) == 0
    assert len(set(world.outcomes)) == len(world.outcomes), "an attempt ended twice"
