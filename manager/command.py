"""Tasks as commands: the start and the stop that a proplet gets for a task.

Place in the flow: `core` decides that a command is due, this module words it. Never does: I/O, decisions.
Source of the payload: the reference's operator (start with `state` 1, PROPLET_ID and TASK_ID in the environment).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from proplet.agent.wire import Announcement, Limits, Start, StartTerms, Stop, StopTerms
from proplet.manager.model import Task, TaskSpec
from proplet.manager.phases import Phase

ANNOUNCEMENT: Final = Announcement(1, encodings=("cbor",), topics=("own", "inventory", "logs", "progress"))
"""What this manager understands; it rides on every start and on the hello."""


def start_of(task: Task, proplet_id: str | None) -> Start:
    """Return the start of the task's current attempt for one proplet, or for all of them (None)."""
    spec, status = task.spec, task.status
    env = {"TASK_ID": task.id, **spec.env}
    if proplet_id is not None:
        env = {"PROPLET_ID": proplet_id, **env}
    return Start(
        id=task.id,
        name=spec.function_name or spec.name or task.meta.name,
        state=Phase.SCHEDULED.number,
        file=spec.file or None,
        image_url=spec.image_url,
        inputs=spec.inputs,
        cli_args=spec.cli_args,
        env=env,
        daemon=spec.daemon,
        monitoring_profile=spec.monitoring_profile,
        encrypted=spec.encrypted,
        kbs_resource_path=spec.kbs_resource_path,
        mode=spec.mode,
        proplet_id=proplet_id,
        broadcast=proplet_id is None,
        hal_storage_path=spec.hal_storage_path,
        latent=spec.latent,
        ext=_terms(spec, status.attempt, status.resolved_image),
    )


def _terms(spec: TaskSpec, attempt: int, image_digest: str | None) -> StartTerms:
    return StartTerms(
        encodings=ANNOUNCEMENT.encodings,
        topics=ANNOUNCEMENT.topics,
        attempt=attempt,
        deadline_s=spec.active_deadline_seconds,
        restart_policy=spec.restart_policy,
        backoff_limit=spec.backoff_limit,
        pull_policy=spec.pull_policy,
        image_digest=image_digest,
        limits=_limits(spec),
        permissions=spec.permissions,
        secrets={name: _secret(source) for name, source in spec.env_secrets.items()},
    )


def _limits(spec: TaskSpec) -> Limits:
    """The guest's limits; what it asks of the device's memory is its default memory limit."""
    if spec.limits.memory_bytes is None and spec.resources.memory_bytes is not None:
        return replace(spec.limits, memory_bytes=spec.resources.memory_bytes)
    return spec.limits


def _secret(source: Any) -> str:
    """A secret's place on the device, ``name/key``; the value itself never travels."""
    if isinstance(source, Mapping):
        return f"{source.get('name', '')}/{source.get('key', '')}"
    return str(source)


def stop_of(uid: str, proplet_id: str | None, attempt: int | None) -> Stop:
    """Return the stop of one attempt on one proplet, or on all of them (None)."""
    return Stop(uid, broadcast=proplet_id is None, proplet_id=proplet_id, ext=StopTerms(attempt))
