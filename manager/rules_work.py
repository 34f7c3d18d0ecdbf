"""The rules of PropellerJobs, FederatedJobs and TrainingRounds; a job's tasks must keep a Task's rules, too."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from proplet.manager.model import ExecutionMode, Kind, Meta, PropellerJob, Resource, Task, TaskSpec, WorkPhase
from proplet.manager.reading import Problem, Rule, camel
from proplet.manager.rules_task import DEPENDENCIES_HAVE_A_GROUP, TASK_RULES

ALGORITHMS: Final = ("fedavg",)
_NAME_CHARACTERS: Final = 253
_MANIFEST_NAMES: Final = {"federated_job": "federatedJobRef"}


def _job(name: str, path: str, broken: Callable[[PropellerJob], bool], message: str) -> Rule:
    return Rule(name, Kind.JOB, path, broken, message)


def child_name(name: str) -> str:
    """Return the part of a Task's resource name that a job makes of its spec's `name`."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in name.lower()).strip("-")


def _duplicates(job: PropellerJob) -> bool:
    names = [child_name(spec.name) for spec in job.spec.tasks]
    return len(set(names)) < len(names)


def _unnameable(job: PropellerJob) -> bool:
    return any(spec.name and not child_name(spec.name) for spec in job.spec.tasks)


def _unknown_dependency(job: PropellerJob) -> bool:
    known = {spec.name for spec in job.spec.tasks} | set(job.spec.task_refs)
    return any(name not in known for spec in job.spec.tasks for name in spec.depends_on)


def _cyclic(job: PropellerJob) -> bool:
    return cycle({spec.name: spec.depends_on for spec in job.spec.tasks}) is not None


def cycle(edges: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the names along one cycle, the first of them repeated at its end, or None."""
    done: set[str] = set()
    for root in edges:
        path: list[str] = []
        # Each entry: a name, and those it depends on that were not looked at yet. A recursion could be too deep.
        stack = [(root, iter(edges[root]))]
        on_path = {root: 0}
        path.append(root)
        while stack and root not in done:
            name, rest = stack[-1]
            following = next((other for other in rest if other in edges and other not in done), None)
            if following is None:
                stack.pop()
                path.pop()
                del on_path[name]
                done.add(name)
            elif following in on_path:
                return (*path[on_path[following] :], following)
            else:
                on_path[following] = len(path)
                path.append(following)
                stack.append((following, iter(edges[following])))
    return None


JOB_RULES: Final = (
    _job("name is given", "spec.name", lambda j: not j.spec.name, "is required: what a person calls the job"),
    _job("name fits", "spec.name", lambda j: len(j.spec.name) > _NAME_CHARACTERS, "must have at most 253 characters"),
    _job(
        "tasks have names of their own",
        "spec.tasks",
        _duplicates,
        "each task needs a name of its own (letters and digits count, case and punctuation do not); rename one",
    ),
    _job("tasks can be named", "spec.tasks", _unnameable, "each task's name must have a letter or a digit"),
    _job(
        "dependencies are in the job",
        "spec.tasks",
        _unknown_dependency,
        "dependsOn must name tasks of this job, or of its taskRefs",
    ),
    _job(
        "dependencies are no cycle",
        "spec.tasks",
        _cyclic,
        "dependsOn leads back to where it began; remove one of the dependencies",
    ),
    _job(
        "sequential jobs have no dependencies",
        "spec.executionMode",
        lambda j: j.spec.execution_mode is not ExecutionMode.CONFIGURABLE and any(s.depends_on for s in j.spec.tasks),
        "must be configurable where tasks have dependsOn",
    ),
    _job(
        "references are names",
        "spec.taskRefs",
        lambda j: len(set(j.spec.task_refs)) < len(j.spec.task_refs) or not all(j.spec.task_refs),
        "must be names of Tasks, each once",
    ),
    _job(
        "tasks of a job run once",
        "spec.tasks",
        lambda j: any(s.is_recurring for s in j.spec.tasks),
        "cannot be recurring: a job ends when its tasks have ended; make it a Task of its own",
    ),
)


def _learning(kind: Kind) -> tuple[Rule, ...]:
    """What a FederatedJob and a TrainingRound have in common."""

    def rule(name: str, path: str, broken: Callable[[Any], bool], message: str) -> Rule:
        return Rule(name, kind, path, lambda resource: broken(resource.spec), message)

    return (
        rule("model is given", "spec.modelRef", lambda s: not s.model_ref, "is required: the model to train"),
        rule(
            "module is given",
            "spec.taskWasmImage",
            lambda s: not s.task_wasm_image,
            "is required: the module that trains, as an image URL",
        ),
        rule("somebody takes part", "spec.participants", lambda s: not s.participants, "at least one is required"),
        rule(
            "participants differ",
            "spec.participants",
            lambda s: len(set(s.participants)) < len(s.participants) or not all(map(_proplet, s.participants)),
            "must name proplets, each once",
        ),
        rule(
            "enough updates, not too many",
            "spec.kOfN",
            lambda s: not 1 <= s.k_of_n <= len(s.participants),
            "must be from 1 to the number of participants",
        ),
        rule("time is bounded", "spec.timeoutSeconds", lambda s: s.timeout_seconds <= 0, "must be more than 0"),
    )


def _proplet(participant: Any) -> str:
    return participant if isinstance(participant, str) else str(participant.proplet_id)


FEDERATED_RULES: Final = (
    *_learning(Kind.FEDERATED_JOB),
    Rule(
        "experiment is given",
        Kind.FEDERATED_JOB,
        "spec.experimentId",
        lambda job: not job.spec.experiment_id,
        "is required: what the updates belong to",
    ),
    Rule(
        "there are rounds",
        Kind.FEDERATED_JOB,
        "spec.rounds.total",
        lambda job: not 1 <= job.spec.rounds.total <= 10_000,
        "must be from 1 to 10000",
    ),
    Rule(
        "algorithm is known",
        Kind.FEDERATED_JOB,
        "spec.aggregator.algorithm",
        lambda job: job.spec.aggregator.algorithm not in ALGORITHMS,
        f"must be one of {', '.join(ALGORITHMS)}",
    ),
)

ROUND_RULES: Final = (
    *_learning(Kind.ROUND),
    Rule(
        "round is named",
        Kind.ROUND,
        "spec.roundId",
        lambda r: not r.spec.round_id,
        "is required: such as round-1",
    ),
    Rule(
        "job is named",
        Kind.ROUND,
        "spec.federatedJobRef.name",
        lambda r: not r.spec.federated_job.name,
        "is required: the FederatedJob it belongs to",
    ),
    Rule(
        "algorithm is known",
        Kind.ROUND,
        "spec.algorithm",
        lambda r: r.spec.algorithm not in ("", *ALGORITHMS),
        f"must be one of {', '.join(ALGORITHMS)}",
    ),
)

WORK_RULES: Final = JOB_RULES + FEDERATED_RULES + ROUND_RULES


def check_tasks(job: PropellerJob, ignoring: str = "") -> list[Problem]:
    """Return what is wrong with the Tasks that a job would make, by a Task's own rules but the one named `ignoring`."""
    return [
        problem
        for index, spec in enumerate(job.spec.tasks)
        for problem in _check_task(spec, f"spec.tasks[{index}]", (DEPENDENCIES_HAVE_A_GROUP, ignoring))
    ]


def _check_task(spec: TaskSpec, where: str, ignoring: tuple[str, ...]) -> list[Problem]:
    task = Task(Meta(""), spec)
    return [
        Problem(where + rule.path.removeprefix("spec"), rule.message)
        for rule in TASK_RULES
        if rule.name not in ignoring and rule.broken(task)
    ]


def frozen_in_works(old: Resource, new: Resource) -> list[str]:
    """Return the paths of the fields that a work changes although it has started; none: it may be stored."""
    status: Any = old.status
    if status.phase is WorkPhase.PENDING and not status.start_time:
        return []
    return [
        f"spec.{_MANIFEST_NAMES.get(f.name) or camel(f.name)}"
        for f in fields(type(old.spec))
        if getattr(old.spec, f.name) != getattr(new.spec, f.name, None)
    ]
