"""Which Tasks a PropellerJob consists of, how each of them stands, and which are to be made now. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import Final

from proplet.manager.manifest import GROUPS
from proplet.manager.model import ExecutionMode, Key, Kind, Meta, Owner, PropellerJob, Task, TaskSpec
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.rules_work import child_name

JOB_LABEL: Final = f"{GROUPS[0]}/job"
SPEC_INDEX: Final = f"{GROUPS[0]}/spec-index"
SPEC_NAME: Final = f"{GROUPS[0]}/spec-name"
# Annotations of a job: it waits for its start, and so do its Tasks; it is to stop; its Tasks' uids, by their names.
HELD: Final = f"{GROUPS[0]}/held"
STOP: Final = f"{GROUPS[0]}/stop"
TASK_IDS: Final = f"{GROUPS[0]}/task-ids"

BAD: Final = frozenset({Phase.FAILED, Phase.INTERRUPTED})

_NAME: Final = 253
_LABEL: Final = 63
_HASH: Final = 8
_ON_FAILURE: Final = "failure"


# --- names ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def task_name(job: str, spec: str) -> str:
    """Return the name of the Task that the job named `job` makes of the spec named `spec`."""
    return cut(f"{job}-{child_name(spec)}", _NAME)


def cut(name: str, most: int) -> str:
    """Return a name of at most `most` characters: of a longer one, a hash of all of it replaces the end."""
    if len(name) <= most:
        return name
    digest = sha256(name.encode()).hexdigest()[:_HASH]
    return f"{name[: most - _HASH - 1].rstrip('-.')}-{digest}"


def task_names(job: PropellerJob) -> list[str]:
    """Return the names of the Tasks that a job makes, in the order of their specs."""
    return [task_name(job.meta.name, spec.name) for spec in job.spec.tasks]


def task_of(job: PropellerJob, index: int) -> Task:
    """Return the Task that a job makes of its spec at `index`, without what makes it wait for others."""
    spec = job.spec.tasks[index]
    meta = Meta(
        task_name(job.meta.name, spec.name),
        job.meta.namespace,
        uid=task_ids(job).get(spec.name, ""),
        labels={JOB_LABEL: cut(job.meta.name, _LABEL)},
        annotations={SPEC_INDEX: str(index), SPEC_NAME: spec.name},
        owner=Owner(Kind.JOB.value, job.meta.name, job.meta.uid),
    )
    own = replace(spec, job_id=job.meta.uid, held=False, ttl_seconds_after_finished=None, depends_on=(), run_if=None)
    return Task(meta, own)


def task_ids(job: PropellerJob) -> Mapping[str, str]:
    """Return the uids that a job's Tasks are to have, by the names of their specs; of some or of none."""
    try:
        found = json.loads(job.meta.annotations.get(TASK_IDS, "{}"))
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: uid for name, uid in found.items() if isinstance(uid, str)}


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Plan:
    """How each Task of a job stands, by the name of its spec or of the Task referred to, and what is to be made.

    What is not made yet stands at `pending`, what never will be at `skipped`. Of a job that waits for its start, all
    Tasks are made, suspended; released, they are then instead of made.
    """

    job: PropellerJob
    tasks: Mapping[str, Task]
    made: dict[str, Phase] = field(default_factory=dict)
    referred: dict[str, Phase] = field(default_factory=dict)
    create: list[Task] = field(default_factory=list)
    stop: list[Key] = field(default_factory=list)
    release: list[Key] = field(default_factory=list)
    held: dict[str, Task] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def make(self) -> None:
        """Look at every Task and plan those that are not there."""
        for name in self.job.spec.task_refs:
            task = self.tasks.get(name)
            if task is None:
                self.missing.append(name)
            self.referred[name] = Phase.PENDING if task is None else task.status.phase
        if STOP in self.job.meta.annotations:
            self._stop()
        elif HELD in self.job.meta.annotations:
            self._hold()
        elif self.job.spec.execution_mode is ExecutionMode.SEQUENTIAL:
            self._one_after_the_other()
        elif self.job.spec.execution_mode is ExecutionMode.PARALLEL:
            for index in range(len(self.job.spec.tasks)):
                if not self._find(index):
                    self._create(index, ())
        else:
            self._as_they_depend()

    def _find(self, index: int) -> bool:
        """Note how a Task stands that is there, or whose name is taken; false if neither, or if it is held."""
        spec = self.job.spec.tasks[index]
        task = self.tasks.get(task_name(self.job.meta.name, spec.name))
        if task is None:
            return False
        if task.meta.owner is None or task.meta.owner.uid != self.job.meta.uid:
            self.taken.append(task.meta.name)
            self.made[spec.name] = Phase.PENDING
        elif HELD in task.meta.annotations and task.status.phase is Phase.PENDING:
            self.held[spec.name] = task
            return False
        else:
            self.made[spec.name] = task.status.phase
        return True

    def _create(self, index: int, depends_on: tuple[str, ...]) -> None:
        spec = self.job.spec.tasks[index]
        self.made[spec.name] = Phase.PENDING
        if spec.name in self.held:
            self.release.append(self.held[spec.name].meta.key)
            return
        self.create.append(self._child(index, depends_on))

    def _child(self, index: int, depends_on: tuple[str, ...]) -> Task:
        spec, task = self.job.spec.tasks[index], task_of(self.job, index)
        if depends_on:
            names = tuple(task_name(self.job.meta.name, name) for name in depends_on)
            task = replace(task, spec=replace(task.spec, depends_on=names, run_if=spec.run_if))
        return task

    def _hold(self) -> None:
        waits = self._waiting_for_others()
        for index, spec in enumerate(self.job.spec.tasks):
            if not self._find(index) and spec.name not in self.held:
                task = self._child(index, () if spec.name in waits else spec.depends_on)
                if not spec.suspend:
                    annotations = {**task.meta.annotations, HELD: "true"}
                    meta = replace(task.meta, annotations=annotations)
                    task = replace(task, meta=meta, spec=replace(task.spec, suspend=True))
                self.create.append(task)
            self.made.setdefault(spec.name, Phase.PENDING)

    def _waiting_for_others(self) -> set[str]:
        """The names of those that depend on a Task of `taskRefs`, directly or not."""
        ours, waits = {spec.name for spec in self.job.spec.tasks}, set[str]()
        for index in in_order(self.job.spec.tasks):
            spec = self.job.spec.tasks[index]
            if any(name not in ours or name in waits for name in spec.depends_on):
                waits.add(spec.name)
        return waits

    def _stop(self) -> None:
        for index, spec in enumerate(self.job.spec.tasks):
            task = self.tasks.get(task_name(self.job.meta.name, spec.name))
            if not self._find(index) or task is None or task.meta.name in self.taken:
                self.made[spec.name] = Phase.SKIPPED
            elif task.status.phase not in TERMINAL and not task.status.stop_requested:
                self.stop.append(task.meta.key)
        self.referred = {name: p if p in TERMINAL else Phase.SKIPPED for name, p in self.referred.items()}
        self.taken.clear()
        self.missing.clear()

    def _one_after_the_other(self) -> None:
        turn = failed = False
        for index, spec in enumerate(self.job.spec.tasks):
            wanted = failed == (spec.run_if == _ON_FAILURE)
            if not self._find(index):
                if turn:
                    self.made[spec.name] = Phase.PENDING
                elif wanted:
                    self._create(index, ())
                else:
                    self.made[spec.name] = Phase.SKIPPED
                    continue
            phase = self.made[spec.name]
            turn = turn or phase not in TERMINAL
            failed = failed or phase in BAD

    def _as_they_depend(self) -> None:
        specs, waits = self.job.spec.tasks, self._waiting_for_others()
        for index in in_order(specs):
            spec = specs[index]
            if self._find(index):
                continue
            if spec.name not in waits:
                self._create(index, spec.depends_on)
                continue
            phases = [self.made.get(name) or self.referred.get(name, Phase.PENDING) for name in spec.depends_on]
            wanted = _verdict(phases, on_failure=spec.run_if == _ON_FAILURE)
            if wanted:
                self._create(index, ())
            else:
                self.made[spec.name] = Phase.PENDING if wanted is None else Phase.SKIPPED
        for spec in specs:  # in a circle: the rules refuse that; it must not keep the job from ending
            self.made.setdefault(spec.name, Phase.FAILED)


def _verdict(phases: list[Phase], *, on_failure: bool) -> bool | None:
    """Whether a Task with dependencies in these phases is to run; None: it has to wait. As `workflow` judges."""
    bad = any(phase in TERMINAL and phase is not Phase.COMPLETED for phase in phases)
    if bad and not on_failure:
        return False
    if any(phase not in TERMINAL for phase in phases):
        return None
    return bad == on_failure


def in_order(specs: Sequence[TaskSpec]) -> list[int]:
    """Return where the specs are, each after those it depends on; specs in a circle are left out."""
    place = {spec.name: index for index, spec in enumerate(specs)}
    needed = {spec.name: set(spec.depends_on) & place.keys() for spec in specs}
    dependents: dict[str, list[str]] = {}
    for name, others in needed.items():
        for other in others:
            dependents.setdefault(other, []).append(name)
    ready = [name for name, others in needed.items() if not others]
    for name in ready:  # grows while it is read
        for dependent in dependents.get(name, ()):
            needed[dependent].discard(name)
            if not needed[dependent]:
                ready.append(dependent)
    return [place[name] for name in ready]
