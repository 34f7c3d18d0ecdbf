"""What may still change once a task was dispatched, and what is said of a task that cannot run here yet."""

from dataclasses import replace

import pytest

from proplet.agent.wire import Permissions
from proplet.manager.model import Meta, PropletSelector, Task, TaskSpec, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.rules import frozen_changes, unsupported

FILE = b"\0asm\x01\0\0\0"
NEW = Task(Meta("x"), TaskSpec("main", file=FILE))
SENT = replace(NEW, status=TaskStatus(Phase.RUNNING, "pi", 1))
DONE = replace(NEW, status=TaskStatus(Phase.COMPLETED, "pi", 1))


def changed(task: Task, **spec: object) -> Task:
    return replace(task, spec=replace(task.spec, **spec))  # type: ignore[arg-type]


def test_before_dispatch_everything_may_change() -> None:
    assert frozen_changes(NEW, changed(NEW, inputs=("1",), image_url="x", file=b"")) == []


def test_after_dispatch_what_defines_execution_is_frozen() -> None:
    new = changed(SENT, inputs=("1",), selector=PropletSelector("other"), daemon=True, priority=9)
    assert frozen_changes(SENT, new) == ["spec.inputs", "spec.propletSelector", "spec.daemon"]
    assert frozen_changes(DONE, changed(DONE, inputs=("1",))) == ["spec.inputs"]


def test_when_and_how_urgently_stay_editable() -> None:
    new = changed(
        SENT,
        suspend=True,
        schedule="* * * * *",
        timezone="UTC",
        priority=1,
        ttl_seconds_after_finished=5,
        metadata={"a": 1},
    )
    assert frozen_changes(SENT, new) == []


def test_a_recurring_task_may_change_for_its_next_run() -> None:
    old = changed(SENT, schedule="* * * * *", is_recurring=True)
    assert frozen_changes(old, changed(old, inputs=("1",))) == []
    assert frozen_changes(SENT, changed(old, inputs=("1",))) != []  # becoming one in the same breath does not help


def test_a_finished_task_may_change_where_it_is_started_again_by_hand() -> None:
    assert frozen_changes(DONE, changed(DONE, inputs=("1",)), finished_too=False) == []
    assert frozen_changes(SENT, changed(SENT, inputs=("1",)), finished_too=False) == ["spec.inputs"]


def test_what_this_version_cannot_run_is_said_in_one_line() -> None:
    assert unsupported(NEW) is None
    assert unsupported(changed(NEW, broadcast=True, latent=True)) is None
    assert unsupported(changed(NEW, file=b"\0asm\x0d\0\x01\0")) is None
    assert unsupported(changed(NEW, permissions=Permissions(http=("*",), tcp=("*",)))) is None
    assert unsupported(changed(NEW, file=b"")) == "it has no module: upload one, or set its image URL"
    told = unsupported(changed(NEW, schedule="* * * * *", depends_on=("a",), hal_storage_path="/x", encrypted=True))
    assert told == "this version does not support encrypted, halStoragePath yet; the task was not started"


@pytest.mark.parametrize(
    "spec",
    [
        {"encrypted": True},
        {"hal_storage_path": "/x"},
    ],
)
def test_each_feature_that_is_not_done_yet_is_named(spec: dict[str, object]) -> None:
    told = unsupported(changed(NEW, **spec))
    assert told is not None
    assert "\n" not in told
