"""Tasks that depend on others: when they run, when they are left out, and circles."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.model import Key, Meta, Task, TaskSpec, TaskStatus
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.workflow import Verdict, circle_of, judge
from tests.manager.worlds import Story, story


def dependent(*names: str, **spec: object) -> Story:
    return story("a", depends_on=names, workflow_id="w", **spec)


def test_it_runs_when_all_have_completed() -> None:
    told = dependent("b", "c")
    told.other("b", Phase.COMPLETED, workflow_id="w")
    told.other("c", Phase.RUNNING, workflow_id="w")
    told.look()
    assert (told.status.phase, told.condition("Scheduled")) == (
        Phase.PENDING,
        (False, "WaitingForDependencies", "it waits for c"),
    )
    assert told.look().decision.status is None
    told.other("c", Phase.COMPLETED, workflow_id="w")
    assert told.look().status.phase is Phase.SCHEDULED


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.SKIPPED, Phase.INTERRUPTED])
def test_it_is_skipped_as_soon_as_one_has_ended_otherwise(phase: Phase) -> None:
    told = dependent("b", "c")
    told.other("b", Phase.RUNNING, workflow_id="w")
    told.other("c", phase, workflow_id="w")
    told.look()
    assert (told.status.phase, told.starts) == (Phase.SKIPPED, [])
    assert told.status.error == f"it runs only if these complete: c ({phase.value})"
    assert told.condition("Completed") == (False, "Skipped", told.status.error)


def test_with_run_if_failure_it_runs_when_all_have_ended_and_one_badly() -> None:
    told = dependent("b", "c", run_if="failure")
    told.other("b", Phase.FAILED, workflow_id="w")
    told.other("c", Phase.RUNNING, workflow_id="w")
    assert told.look().status.phase is Phase.PENDING
    told.other("c", Phase.COMPLETED, workflow_id="w")
    assert told.look().status.phase is Phase.SCHEDULED


def test_with_run_if_failure_it_is_skipped_when_all_completed() -> None:
    told = dependent("b", run_if="failure")
    told.other("b", Phase.COMPLETED, workflow_id="w")
    assert told.look().status.phase is Phase.SKIPPED


def test_what_is_missing_or_of_another_group_is_waited_for() -> None:
    told = dependent("b", "c", "d")
    told.other("c", Phase.COMPLETED, workflow_id="another")
    told.other("d", Phase.COMPLETED, namespace="elsewhere", workflow_id="w")
    told.look()
    assert (told.status.phase, told.status.message) == (
        Phase.PENDING,
        "there is no Task b, d in the namespace default; c is not of its workflow or job w",
    )


def test_tasks_of_one_job_may_depend_on_each_other() -> None:
    told = story("a", depends_on=("b",), job_id="j")
    told.other("b", Phase.COMPLETED, job_id="j")
    assert told.look().status.phase is Phase.SCHEDULED


def test_a_circle_fails_and_is_named() -> None:
    told = dependent("b")
    told.other("b", depends_on=("x", "c"), workflow_id="w")
    told.other("x", workflow_id="w")
    told.other("c", depends_on=("add",), workflow_id="w")
    told.look()
    assert (told.status.phase, told.status.error) == (
        Phase.FAILED,
        "its dependencies go in a circle: add -> b -> c -> add",
    )


def test_a_task_that_depends_on_itself_fails() -> None:
    assert dependent("add").look().status.error == "its dependencies go in a circle: add -> add"


NAMES = ("a", "b", "c", "d", "e")


@given(
    st.dictionaries(
        st.sampled_from(NAMES), st.tuples(st.lists(st.sampled_from(NAMES), max_size=3), st.sampled_from(Phase))
    )
)
def test_a_task_waits_only_for_what_can_still_change(graph: dict[str, tuple[list[str], Phase]]) -> None:
    tasks = {
        Key(name): Task(Meta(name, uid=name), TaskSpec(depends_on=tuple(on), workflow_id="w"), TaskStatus(phase=phase))
        for name, (on, phase) in graph.items()
    }
    pending = [task for task in tasks.values() if task.status.phase is Phase.PENDING]
    verdicts = {task.meta.name: judge(task, tasks.get).verdict for task in pending}
    for task in pending:
        ahead = [tasks.get(Key(name)) for name in task.spec.depends_on]
        if verdicts[task.meta.name] is Verdict.RUN:
            assert all(one is not None and one.status.phase is Phase.COMPLETED for one in ahead)
        if verdicts[task.meta.name] is Verdict.WAIT:
            assert any(one is None or one.status.phase not in TERMINAL for one in ahead)
        circle = circle_of(task, tasks.get)
        if circle:
            assert (circle[0], circle[-1]) == (task.meta.name, task.meta.name)
            for name, following in itertools.pairwise(circle):
                assert following in tasks[Key(name)].spec.depends_on
    whole = bool(pending) and all(name in graph for task in pending for name in task.spec.depends_on)
    if whole and all(task.status.phase in (*TERMINAL, Phase.PENDING) for task in tasks.values()):
        assert set(verdicts.values()) != {Verdict.WAIT}, "somebody can go on, or nobody ever would"


def test_who_waits_for_what_it_waited_for_does_not_search_again() -> None:
    chain = {
        name: Task(Meta(name, uid=name), TaskSpec(workflow_id="w", depends_on=on))
        for name, on in (("a", ("b",)), ("b", ("c",)), ("c", ("d",)), ("d", ("e",)))
    }
    asked = list[str]()

    def find(key: Key) -> Task | None:
        asked.append(key.name)
        return chain.get(key.name)

    told = judge(chain["a"], find)
    assert (told.verdict, asked[-1]) == (Verdict.WAIT, "e")
    asked.clear()
    waiting = Task(chain["a"].meta, chain["a"].spec, TaskStatus(message=told.message))
    assert judge(waiting, find) == told
    assert asked == ["b"]
