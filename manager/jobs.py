"""What a PropellerJob comes to, pure: the job and its Tasks in, its status and the Tasks to make out.

A job makes a Task of each of its `tasks`, and looks at those that `taskRefs` names, which it neither starts nor owns.

* `parallel`: all Tasks are made at once.
* `sequential`: the next Task is made when those before it have ended. After one that did not complete, only Tasks with
  `runIf: failure` are still made; the others are counted as skipped. While all complete, those are skipped.
* `configurable`: Tasks are made at once, with the names of their dependencies rewritten; whether they run is then their
  own affair. One that depends on a Task of `taskRefs`, directly or not, is made when its dependencies have ended, and
  counted as skipped if `runIf` says so: that Task is not of this job, so nobody else could wait for it.

A job that waits for its start (`held`) makes its Tasks at once, suspended, so that they can be seen and given modules.

A job ends when all its Tasks have ended: `Completed` unless one has failed or was interrupted. A Task of `taskRefs`
that is not there is waited for. What has ended stays as it is; its Tasks may be started again without the job.

Everything follows from how things are, so a job whose Tasks were made and whose status was not recorded finds them.
A Task that somebody deletes while the job is under way is made again. Times to live count from the end of the job.
"""

from dataclasses import replace
from typing import Final

from proplet.manager.conditions import settled
from proplet.manager.job_plan import BAD, HELD, STOP, Plan, task_name
from proplet.manager.model import Condition, JobStatus, PropellerJob, WorkPhase
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.rules_task import MODULE_GIVEN
from proplet.manager.rules_work import JOB_RULES, check_tasks
from proplet.manager.work import Related, Told, WorkDecision

ENDED: Final = frozenset({WorkPhase.COMPLETED, WorkPhase.FAILED})
RUNNING: Final = "Running"
COMPLETE: Final = "Complete"
FAILED: Final = "Failed"

_NAMED: Final = 5
_MESSAGE: Final = 1024


def decide_job(job: PropellerJob, related: Related, now: float) -> WorkDecision:
    """Return what follows from a job and the Tasks that are there; `now` in epoch seconds."""
    if job.status.phase in ENDED:
        return _retire(job, related, now)
    problem = "" if job.status.start_time else _invalid(job)
    if problem:
        return _refused(job, problem, now)
    plan = Plan(job, related.tasks)
    plan.make()
    if HELD in job.meta.annotations and STOP not in job.meta.annotations:
        status = replace(job.status, task_count=_size(job), observed_generation=job.meta.generation)
        shown = [Condition(RUNNING, status=False, reason="NotStarted", message="The job waits for its start")]
        return WorkDecision(
            replace(job, status=replace(status, conditions=_settled(job, shown, now))), tuple(plan.create)
        )
    status = _status(job, plan, now)
    return WorkDecision(
        replace(job, status=status),
        tuple(plan.create),
        stop=tuple(plan.stop),
        release=tuple(plan.release),
        told=_told(job, status),
    )


# --- the status -------------------------------------------------------------------------------------------------------


def _size(job: PropellerJob) -> int:
    return len(job.spec.tasks) + len(job.spec.task_refs)


def _status(job: PropellerJob, plan: Plan, now: float) -> JobStatus:
    phases = [*plan.made.values(), *plan.referred.values()]
    status = replace(
        job.status,
        phase=WorkPhase.RUNNING,
        start_time=job.status.start_time or now,
        task_count=_size(job),
        completed_count=phases.count(Phase.COMPLETED),
        failed_count=phases.count(Phase.FAILED),
        skipped_count=phases.count(Phase.SKIPPED),
        interrupted_count=phases.count(Phase.INTERRUPTED),
        observed_generation=job.meta.generation,
    )
    if not all(phase in TERMINAL for phase in phases):
        return replace(status, conditions=_settled(job, [_under_way(plan)], now))
    problem = _why_failed(job, plan)
    return _ended(job, status, problem, now)


def _under_way(plan: Plan) -> Condition:
    if plan.taken:
        text = f"Not of this job, but of the name of its Task: {_list(plan.taken)}; delete it, or the job"
        return Condition(RUNNING, status=False, reason="NameTaken", message=text)
    if plan.missing:
        text = f"There is no Task {_list(plan.missing)} of taskRefs; the job waits for it"
        return Condition(RUNNING, status=False, reason="TaskMissing", message=text)
    return Condition(RUNNING, status=True, reason="TasksUnderWay", message="Tasks are under way")


def _why_failed(job: PropellerJob, plan: Plan) -> tuple[str, str] | None:
    """The reason and the words for a job that did not complete."""
    made = {task_name(job.meta.name, name): phase for name, phase in plan.made.items()}
    bad = [f"{name} ({phase.value})" for name, phase in {**made, **plan.referred}.items() if phase in BAD]
    if STOP in job.meta.annotations and not all(phase is Phase.COMPLETED for phase in plan.made.values()):
        return "Stopped", "The job was stopped"
    return ("TasksFailed", f"Tasks did not complete: {_list(bad)}") if bad else None


def _ended(job: PropellerJob, status: JobStatus, problem: tuple[str, str] | None, now: float) -> JobStatus:
    if problem is None:
        shown = [
            Condition(RUNNING, status=False, reason="Completed", message="The job has ended"),
            Condition(COMPLETE, status=True, reason="Completed", message="All Tasks have ended, none failed"),
        ]
    else:
        reason, message = problem
        shown = [
            Condition(RUNNING, status=False, reason=reason, message="The job has ended"),
            Condition(FAILED, status=True, reason=reason, message=message),
        ]
    return replace(
        status,
        phase=WorkPhase.COMPLETED if problem is None else WorkPhase.FAILED,
        finish_time=now,
        conditions=_settled(job, shown, now),
    )


def _settled(job: PropellerJob, shown: list[Condition], now: float) -> tuple[Condition, ...]:
    return settled(shown, job.status.conditions, now)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _told(job: PropellerJob, status: JobStatus) -> tuple[Told, ...]:
    """What is new in the status, for a person."""
    if status.phase in ENDED:
        end = status.conditions[-1]
        counts = f"{status.completed_count} of {status.task_count} Tasks completed"
        return (Told(end.reason, f"{end.message}: {counts}", warning=status.phase is WorkPhase.FAILED),)
    now, before = status.conditions[0], job.status.conditions
    told = []
    if not job.status.start_time:
        told.append(Told("Started", f"{status.task_count} Tasks, {job.spec.execution_mode.value}"))
    if not now.status and all(condition.message != now.message for condition in before):
        told.append(Told(now.reason, now.message, warning=True))
    return tuple(told)


# --- its end, before and after ----------------------------------------------------------------------------------------


def _invalid(job: PropellerJob) -> str:
    """What is wrong with a job that got past the rules, "" if nothing; it is looked at before it starts."""
    problems = [f"{rule.path} {rule.message}" for rule in JOB_RULES if rule.broken(job)]
    # A Task without a module may get one by an upload; it is the one to fail otherwise.
    problems += [f"{problem.path} {problem.text}" for problem in check_tasks(job, ignoring=MODULE_GIVEN)]
    return "; ".join(problems)[:_MESSAGE]


def _refused(job: PropellerJob, problem: str, now: float) -> WorkDecision:
    status = replace(job.status, start_time=now, task_count=_size(job), observed_generation=job.meta.generation)
    status = _ended(job, status, ("InvalidSpec", problem), now)
    return WorkDecision(replace(job, status=status), told=(Told("InvalidSpec", problem, warning=True),))


def _retire(job: PropellerJob, related: Related, now: float) -> WorkDecision:
    """Of a job that has ended: Tasks go when their time to live is over, counted from the end of the job.

    Those that wait for the start they will not get are ended.
    """
    gone, left, wake_at = [], [], 0.0
    for spec in job.spec.tasks:
        keep = spec.ttl_seconds_after_finished
        task = related.tasks.get(task_name(job.meta.name, spec.name))
        if task is None or task.meta.owner is None or task.meta.owner.uid != job.meta.uid:
            continue
        if task.status.phase is Phase.PENDING and HELD in task.meta.annotations:
            left.append(task.meta.key)
        if keep is None or task.status.phase not in TERMINAL:
            continue
        due = max(job.status.finish_time, task.status.finished_at) + keep
        if due <= now:
            gone.append(task.meta.key)
        else:
            wake_at = min(wake_at or due, due)
    return WorkDecision(job, delete=tuple(gone), stop=tuple(left), wake_at=wake_at)
