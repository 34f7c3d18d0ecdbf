"""What a PropellerJob decides, told as stories, and for jobs of any shape."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.manager import rules
from proplet.manager.job_plan import HELD, JOB_LABEL, STOP, TASK_IDS, cut, task_name
from proplet.manager.jobs import ENDED, decide_job
from proplet.manager.model import (
    Condition,
    ExecutionMode,
    JobSpec,
    Key,
    Meta,
    Owner,
    PropellerJob,
    Task,
    TaskSpec,
    TaskStatus,
    WorkPhase,
)
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.work import Related, WorkDecision
from proplet.manager.workflow import Verdict, judge

IMAGE = "localhost:5000/add:1"
DONE, BAD, STOPPED = Phase.COMPLETED, Phase.FAILED, Phase.INTERRUPTED


def spec(name: str, *depends_on: str, **more: Any) -> TaskSpec:
    return TaskSpec(name, image_url=IMAGE, depends_on=depends_on, **more)


def job(*specs: TaskSpec, mode: str = "configurable", refs: tuple[str, ...] = (), **meta: Any) -> PropellerJob:
    of = JobSpec("a job", ExecutionMode(mode), specs, refs)
    return PropellerJob(Meta("job", uid="u-1", generation=1, **meta), of)


def standing(name: str, phase: Phase = Phase.PENDING, owner: str = "") -> Task:
    meta = Meta(name, uid=f"uid of {name}", owner=Owner("PropellerJob", "job", owner) if owner else None)
    return Task(meta, spec(name), TaskStatus(phase=phase))


def freed(task: Task) -> Task:
    annotations = {name: text for name, text in task.meta.annotations.items() if name != HELD}
    meta = replace(task.meta, annotations=annotations)
    return replace(task, meta=meta, spec=replace(task.spec, suspend=False))


class Scene:
    """A job, the Tasks that are there, and what was decided last; times pass second by second."""

    def __init__(self, of: PropellerJob, *there: Task) -> None:
        self.job = of
        self.tasks = {task.meta.name: task for task in there}
        self.now = 1000.0
        self.last = WorkDecision(of)

    def look(self) -> list[str]:
        """Decide and carry it out; the names of the Tasks made."""
        self.now += 1
        self.last = decision = decide_job(self.job, Related(dict(self.tasks)), self.now)
        for task in decision.create:
            assert isinstance(task, Task)
            assert task.meta.name not in self.tasks
            self.tasks[task.meta.name] = task
        for key in decision.delete:
            del self.tasks[key.name]
        assert isinstance(decision.work, PropellerJob)
        self.job = decision.work
        return [task.meta.name for task in decision.create]

    def release(self) -> None:
        """Let go what was decided to be."""
        for key in self.last.release:
            self.tasks[key.name] = freed(self.tasks[key.name])

    def end(self, name: str, phase: Phase = DONE) -> None:
        task = self.tasks[name]
        self.tasks[name] = replace(task, status=replace(task.status, phase=phase, finished_at=self.now))

    @property
    def phase(self) -> WorkPhase:
        return self.job.status.phase

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        status = self.job.status
        return (
            status.task_count,
            status.completed_count,
            status.failed_count,
            status.skipped_count,
            status.interrupted_count,
        )

    def condition(self, kind: str) -> Condition:
        return next(condition for condition in self.job.status.conditions if condition.type == kind)


# --- what it makes ----------------------------------------------------------------------------------------------------


def test_a_parallel_job_makes_all_its_tasks_at_once_and_completes_with_the_last() -> None:
    scene = Scene(job(spec("a"), spec("b"), mode="parallel"))
    assert scene.look() == ["job-a", "job-b"]
    assert (scene.phase, scene.job.status.start_time) == (WorkPhase.RUNNING, 1001)
    scene.end("job-a")
    assert scene.look() == []
    assert (scene.phase, scene.counts) == (WorkPhase.RUNNING, (2, 1, 0, 0, 0))
    scene.end("job-b")
    scene.look()
    assert (scene.phase, scene.counts, scene.job.status.finish_time) == (WorkPhase.COMPLETED, (2, 2, 0, 0, 0), 1003)
    assert scene.condition("Complete").status


def test_a_sequential_job_makes_the_next_task_when_the_one_before_has_completed() -> None:
    scene = Scene(job(spec("a"), spec("b"), spec("c"), mode="sequential"))
    assert scene.look() == ["job-a"]
    scene.end("job-a", Phase.RUNNING)
    assert scene.look() == []
    scene.end("job-a")
    assert scene.look() == ["job-b"]
    scene.end("job-b")
    assert scene.look() == ["job-c"]
    scene.end("job-c")
    scene.look()
    assert scene.phase is WorkPhase.COMPLETED


def test_after_a_failure_a_sequential_job_starts_nothing_more_and_counts_the_rest_as_skipped() -> None:
    scene = Scene(job(spec("a"), spec("b"), spec("c"), mode="sequential"))
    scene.look()
    scene.end("job-a", BAD)
    assert scene.look() == []
    assert (scene.phase, scene.counts) == (WorkPhase.FAILED, (3, 0, 1, 2, 0))
    assert scene.condition("Failed").message == "Tasks did not complete: job-a (failed)"


def test_a_sequential_task_that_runs_if_one_failed_runs_then_and_only_then() -> None:
    specs = spec("a"), spec("b"), spec("sweep", run_if="failure")
    scene = Scene(job(*specs, mode="sequential"))
    scene.look()
    scene.end("job-a", BAD)
    assert scene.look() == ["job-sweep"]
    assert scene.tasks["job-sweep"].spec.run_if is None
    scene.end("job-sweep")
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.FAILED, (3, 1, 1, 1, 0))
    scene = Scene(job(*specs, mode="sequential"))
    for name in ("job-a", "job-b"):
        assert scene.look() == [name]
        scene.end(name)
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.COMPLETED, (3, 2, 0, 1, 0))


def test_a_configurable_job_makes_all_at_once_with_the_names_of_its_tasks_as_dependencies() -> None:
    scene = Scene(job(spec("Load_1"), spec("sum", "Load_1", run_if="failure")))
    assert scene.look() == ["job-load-1", "job-sum"]
    child = scene.tasks["job-sum"]
    assert (child.spec.depends_on, child.spec.run_if, child.spec.job_id) == (("job-load-1",), "failure", "u-1")
    assert child.meta.owner == Owner("PropellerJob", "job", "u-1")
    assert child.meta.labels[JOB_LABEL] == "job"
    scene.end("job-load-1")
    scene.end("job-sum", Phase.SKIPPED)
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.COMPLETED, (2, 1, 0, 1, 0))


def test_a_task_that_depends_on_one_referred_to_is_made_when_that_has_completed() -> None:
    scene = Scene(job(spec("a", "other"), spec("b", "a"), refs=("other",)), standing("other", Phase.RUNNING))
    assert scene.look() == []
    scene.end("other")
    assert scene.look() == ["job-a"]
    assert scene.tasks["job-a"].spec.depends_on == ()
    scene.end("job-a")
    assert scene.look() == ["job-b"]


def test_what_depends_on_a_failed_task_referred_to_is_skipped_with_all_that_depends_on_it() -> None:
    specs = spec("a", "other"), spec("b", "a"), spec("rescue", "b", run_if="failure")
    scene = Scene(job(*specs, refs=("other",)), standing("other", BAD))
    assert scene.look() == ["job-rescue"]
    scene.end("job-rescue")
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.FAILED, (4, 1, 1, 2, 0))


def test_a_task_referred_to_that_is_missing_is_waited_for_and_never_counted() -> None:
    scene = Scene(job(spec("a"), refs=("gone",)))
    assert scene.look() == ["job-a"]
    scene.end("job-a")
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.RUNNING, (2, 1, 0, 0, 0))
    assert scene.condition("Running").reason == "TaskMissing"
    assert "gone" in scene.condition("Running").message
    scene.tasks["gone"] = standing("gone", DONE)
    scene.look()
    assert scene.phase is WorkPhase.COMPLETED
    assert scene.tasks["gone"].meta.owner is None


def test_an_interrupted_task_makes_the_job_fail() -> None:
    scene = Scene(job(spec("a"), mode="parallel"))
    scene.look()
    scene.end("job-a", STOPPED)
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.FAILED, (1, 0, 0, 0, 1))


def test_a_job_without_tasks_is_complete_at_once() -> None:
    scene = Scene(job())
    assert scene.look() == []
    assert scene.phase is WorkPhase.COMPLETED


def test_a_task_of_somebody_elses_under_the_childs_name_is_told_and_waited_for() -> None:
    scene = Scene(job(spec("a"), mode="parallel"), standing("job-a", DONE, owner="u-2"))
    assert scene.look() == []
    assert (scene.phase, scene.condition("Running").reason) == (WorkPhase.RUNNING, "NameTaken")
    assert [told.reason for told in scene.last.told if told.warning] == ["NameTaken"]
    scene.look()
    assert scene.last.told == ()
    del scene.tasks["job-a"]
    assert scene.look() == ["job-a"]


def test_a_job_that_got_past_the_rules_fails_with_what_is_wrong() -> None:
    for bad in (job(spec("a", "b"), spec("b", "a")), job(spec("a"), spec("A")), job(spec("a", "nobody"))):
        scene = Scene(bad)
        assert scene.look() == []
        assert (scene.phase, scene.condition("Failed").reason) == (WorkPhase.FAILED, "InvalidSpec")


def test_a_spec_that_becomes_a_circle_under_way_does_not_keep_the_job_from_ending() -> None:
    scene = Scene(job(spec("a"), mode="configurable"))
    scene.look()
    scene.job = replace(scene.job, spec=replace(scene.job.spec, tasks=(spec("a", "b"), spec("b", "a"))))
    scene.end("job-a")
    scene.look()
    assert scene.phase is WorkPhase.FAILED


# --- start, stop, end -------------------------------------------------------------------------------------------------


def test_a_held_job_makes_its_tasks_suspended_and_lets_them_go_at_its_start_each_in_its_turn() -> None:
    scene = Scene(job(spec("a"), spec("b"), mode="sequential", annotations={HELD: "true"}))
    assert scene.look() == ["job-a", "job-b"]
    assert scene.look() == []
    assert all(task.spec.suspend for task in scene.tasks.values())
    assert (scene.phase, scene.condition("Running").reason) == (WorkPhase.PENDING, "NotStarted")
    scene.job = replace(scene.job, meta=replace(scene.job.meta, annotations={}))
    assert scene.look() == []
    assert scene.last.release == (Key("job-a"),)
    scene.release()
    assert not scene.tasks["job-a"].spec.suspend
    scene.look()
    assert scene.last.release == ()
    scene.end("job-a")
    scene.look()
    assert scene.last.release == (Key("job-b"),)


def test_a_held_jobs_tasks_keep_their_dependencies_and_those_a_person_suspended_stay_suspended() -> None:
    scene = Scene(job(spec("a"), spec("b", "a", suspend=True), annotations={HELD: "true"}))
    scene.look()
    assert scene.tasks["job-b"].spec.depends_on == ("job-a",)
    scene.job = replace(scene.job, meta=replace(scene.job.meta, annotations={}))
    scene.look()
    assert scene.last.release == (Key("job-a"),)
    scene.release()
    scene.look()
    assert scene.tasks["job-b"].spec.suspend


def test_what_a_job_never_let_go_is_ended_with_it() -> None:
    scene = Scene(job(spec("a"), spec("b"), mode="sequential", annotations={HELD: "true"}))
    scene.look()
    scene.job = replace(scene.job, meta=replace(scene.job.meta, annotations={}))
    scene.look()
    scene.release()
    scene.end("job-a", BAD)
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.FAILED, (2, 0, 1, 1, 0))
    scene.look()
    assert scene.last.stop == (Key("job-b"),)
    scene.end("job-b", STOPPED)
    scene.look()
    assert scene.last.stop == ()


def test_a_stopped_job_stops_what_runs_and_starts_nothing() -> None:
    scene = Scene(job(spec("a"), spec("b"), mode="sequential"))
    scene.look()
    scene.job = replace(scene.job, meta=replace(scene.job.meta, annotations={STOP: "true"}))
    assert scene.look() == []
    assert scene.last.stop == (Key("job-a"),)
    scene.end("job-a", STOPPED)
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.FAILED, (2, 0, 0, 1, 1))
    assert scene.condition("Failed").reason == "Stopped"


def test_a_held_job_that_is_stopped_has_failed_at_once() -> None:
    scene = Scene(job(spec("a"), annotations={HELD: "true", STOP: "true"}))
    scene.look()
    assert (scene.phase, scene.counts) == (WorkPhase.FAILED, (1, 0, 0, 1, 0))


def test_a_job_that_has_ended_stays_as_it_is() -> None:
    scene = Scene(job(spec("a"), mode="parallel"))
    scene.look()
    scene.end("job-a")
    scene.look()
    ended = scene.job
    scene.end("job-a", BAD)
    assert scene.look() == []
    assert scene.job == ended
    scene.tasks.clear()
    assert scene.look() == []


def test_tasks_live_as_long_as_their_job_and_their_time_to_live_after_it() -> None:
    scene = Scene(job(spec("a", ttl_seconds_after_finished=10), spec("b"), mode="sequential"))
    scene.look()
    assert scene.tasks["job-a"].spec.ttl_seconds_after_finished is None
    scene.end("job-a")
    scene.look()
    scene.now += 100
    scene.end("job-b")
    scene.look()
    end = scene.job.status.finish_time
    scene.look()
    assert (scene.last.delete, scene.last.wake_at) == ((), end + 10)
    scene.now = end + 10
    scene.look()
    assert scene.last.delete == (Key("job-a"),)
    assert list(scene.tasks) == ["job-b"]


def test_uids_that_were_promised_are_kept() -> None:
    scene = Scene(job(spec("a"), annotations={TASK_IDS: '{"a": "11111111-1111-4111-8111-111111111111"}'}))
    scene.look()
    assert scene.tasks["job-a"].meta.uid.startswith("11111111-")


def test_a_person_is_told_of_the_start_and_of_the_end_once() -> None:
    scene = Scene(job(spec("a"), mode="parallel"))
    scene.look()
    assert [told.reason for told in scene.last.told] == ["Started"]
    scene.look()
    assert scene.last.told == ()
    assert scene.last.work.status == scene.job.status
    scene.end("job-a", BAD)
    scene.look()
    assert [(told.reason, told.warning) for told in scene.last.told] == [("TasksFailed", True)]
    scene.look()
    assert scene.last.told == ()


# --- names ------------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("abcXYZ019-_. é"), max_size=300), st.sampled_from(["j", "a.b-c", "x" * 253]))
def test_the_name_of_a_child_is_always_a_name(name: str, of: str) -> None:
    specs = (spec(name),)
    if rules.check(replace(job(*specs, mode="parallel"), meta=Meta("j"))):
        return
    assert rules.check_meta(Meta(task_name(of, name))) == []
    assert rules.check_meta(Meta("x", labels={"a": cut(of, 63)})) == []


def test_long_names_that_differ_at_their_end_stay_different() -> None:
    assert task_name("j" * 250, "one") != task_name("j" * 250, "two")
    assert len(task_name("j" * 250, "one")) == 253


# --- any job ----------------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d", "e")


@st.composite
def jobs(draw: st.DrawFn) -> PropellerJob:
    mode = draw(st.sampled_from(ExecutionMode))
    names = draw(st.permutations(NAMES))[: draw(st.integers(0, 5))]
    refs = draw(st.permutations(("r1", "r2")))[: draw(st.integers(0, 2))]
    specs = []
    for index, name in enumerate(names):
        known = [*names[:index], *refs]
        dependent = mode is ExecutionMode.CONFIGURABLE and known
        others = draw(st.lists(st.sampled_from(known), unique=True, max_size=3)) if dependent else []
        run_if = draw(st.sampled_from([None, "success", "failure"]))
        if mode is ExecutionMode.PARALLEL or (mode is ExecutionMode.CONFIGURABLE and not others):
            run_if = None
        specs.append(spec(name, *others, run_if=run_if))
    specs = draw(st.permutations(specs)) if mode is ExecutionMode.CONFIGURABLE else specs
    held = {HELD: "true"} if draw(st.booleans()) else {}
    made = job(*specs, mode=mode.value, refs=tuple(refs), annotations=held)
    assert rules.check(made) == []
    return made


def check_order(of: PropellerJob, child: Task, tasks: Mapping[str, Task]) -> None:
    """Nothing is started before its turn: what a child waits for has ended, or the child itself says so."""
    names = [task_name("job", s.name) for s in of.spec.tasks]
    index = names.index(child.meta.name)
    if of.spec.execution_mode is ExecutionMode.SEQUENTIAL:
        needed = [name for name in names[:index] if name in tasks]
    else:
        needed = [task_name("job", n) if task_name("job", n) in names else n for n in of.spec.tasks[index].depends_on]
        needed = [name for name in needed if name not in child.spec.depends_on]
    for name in needed:
        skipped = name not in tasks or tasks[name].spec.suspend  # it was made to wait, and will never run
        assert skipped or tasks[name].status.phase in TERMINAL, f"{child.meta.name} before {name}"


@settings(max_examples=150, deadline=None)
@given(jobs(), st.data())
def test_any_job_ends_in_order_whatever_is_lost_on_the_way(of: PropellerJob, data: st.DataObject) -> None:
    tasks: dict[str, Task] = {}
    refs = list(of.spec.task_refs)
    now, crashes = 0.0, data.draw(st.integers(0, 6))
    for _ in range(60):
        now += 1
        decision = decide_job(of, Related(dict(tasks)), now)
        # A crash: some of the children are there, and perhaps not the status.
        whole = len(decision.create) + 1
        done = data.draw(st.integers(0, whole)) if crashes else whole
        crashes -= done < whole
        for child in decision.create[:done]:
            assert isinstance(child, Task)
            assert child.meta.name not in tasks
            if not child.spec.suspend:
                check_order(of, child, tasks)
            tasks[child.meta.name] = child
        for key in decision.release if done >= len(decision.create) else ():
            check_order(of, tasks[key.name], tasks)
            tasks[key.name] = freed(tasks[key.name])
        for key in decision.stop:
            task = tasks[key.name]
            tasks[key.name] = replace(task, status=replace(task.status, phase=STOPPED))
        if of.meta.annotations and (crashes == 0 or data.draw(st.booleans())):
            of = replace(of, meta=replace(of.meta, annotations={}))
        if done > len(decision.create):
            assert isinstance(decision.work, PropellerJob)
            of = replace(decision.work, meta=of.meta)
            if of.status.phase in ENDED and not decision.stop and decide_job(of, Related(tasks), now).stop == ():
                break
        if refs and (crashes == 0 or data.draw(st.booleans())):
            name = refs.pop()
            tasks[name] = standing(name)
        unfinished = [task for task in tasks.values() if task.status.phase not in TERMINAL and not task.spec.suspend]
        if unfinished:
            task = data.draw(st.sampled_from(unfinished))
            verdict = judge(task, lambda key: tasks.get(key.name)).verdict
            if verdict is Verdict.RUN:
                phase = data.draw(st.sampled_from([DONE, DONE, BAD, STOPPED]))
                tasks[task.meta.name] = replace(task, status=replace(task.status, phase=phase))
            elif verdict is not Verdict.WAIT:
                assert verdict is Verdict.SKIP
                tasks[task.meta.name] = replace(task, status=replace(task.status, phase=Phase.SKIPPED))
    status = of.status
    assert status.phase in ENDED
    ends = (status.completed_count, status.failed_count, status.skipped_count, status.interrupted_count)
    assert sum(ends) == status.task_count == len(of.spec.tasks) + len(of.spec.task_refs)
    assert (status.phase is WorkPhase.FAILED) == bool(status.failed_count + status.interrupted_count)
    assert all(task.status.phase in TERMINAL for task in tasks.values())
    assert decide_job(of, Related(tasks), now + 1) == WorkDecision(of)
