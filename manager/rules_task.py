"""The rules of a Task's spec; which of its fields are frozen after dispatch; what this version cannot run yet."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Final

from proplet.manager import schedule
from proplet.manager.model import Kind, Task, TaskSpec
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.reading import Rule, camel

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MODULE_GIVEN: Final = "a module is given"
DEPENDENCIES_HAVE_A_GROUP: Final = "dependencies have a group"
WASM_MAGIC: Final = b"\0asm"
_METADATA_CHARACTERS: Final = 1024 * 1024


def _spec(name: str, path: str, broken: Callable[[TaskSpec], bool], message: str) -> Rule:
    return Rule(name, Kind.TASK, path, lambda task: broken(task.spec), message)


def _negative(value: float | None) -> bool:
    return value is not None and value < 0


def _not_positive(value: float | None) -> bool:
    return value is not None and value <= 0


def _bad_zone(spec: TaskSpec) -> bool:
    inside = schedule.split(spec.schedule or "")[0]
    return schedule.zone_of(spec.timezone or "") is None or schedule.zone_of(inside) is None


def _two_zones(spec: TaskSpec) -> bool:
    inside = schedule.split(spec.schedule or "")[0]
    return bool(inside and spec.timezone and inside != spec.timezone)


def _bad_secrets(spec: TaskSpec) -> bool:
    return not all(
        isinstance(reference, Mapping)
        and set(reference) == {"name", "key"}
        and all(isinstance(part, str) and part for part in reference.values())
        for reference in spec.env_secrets.values()
    )


def _one_of(name: str, values: tuple[str, ...]) -> Rule:
    attribute = re.sub("([A-Z])", lambda match: "_" + match[1].lower(), name)
    return _spec(
        f"{name} is known",
        f"spec.{name}",
        lambda spec: getattr(spec, attribute) not in (None, *values),
        f"must be one of {', '.join(values)}",
    )


TASK_RULES: Final = (
    _spec("name is given", "spec.name", lambda s: not s.name, "is required: the function to call"),
    _spec("name fits", "spec.name", lambda s: len(s.name) > 253, "must have at most 253 characters"),
    _spec(
        "function name fits",
        "spec.functionName",
        lambda s: len(s.function_name) > 253,
        "must have at most 253 characters",
    ),
    _spec(
        MODULE_GIVEN,
        "spec",
        lambda s: not s.image_url and not s.file,
        "either imageUrl or file is required: the module to run",
    ),
    _spec(
        "only one module is given",
        "spec.file",
        lambda s: bool(s.image_url and s.file),
        "cannot be given beside imageUrl; remove one of the two",
    ),
    _spec(
        "file is WebAssembly",
        "spec.file",
        lambda s: bool(s.file) and not s.file.startswith(WASM_MAGIC),
        "is no WebAssembly module: it must begin with the bytes 00 61 73 6d (in base64, AGFzb)",
    ),
    _spec(
        "encrypted modules are images",
        "spec.encrypted",
        lambda s: s.encrypted and not s.image_url,
        "needs imageUrl: an encrypted module cannot be inline",
    ),
    _spec(
        "broadcast or one proplet",
        "spec.broadcast",
        lambda s: s.broadcast and bool(s.selector.proplet_id),
        "cannot be true beside propletSelector.propletId; remove one of the two",
    ),
    _spec(
        "latent or daemon",
        "spec.latent",
        lambda s: s.latent and s.daemon,
        "cannot be true beside daemon, which runs by itself and not when it is invoked; remove one of the two",
    ),
    _spec(
        "recurrence has a schedule",
        "spec.schedule",
        lambda s: s.is_recurring and not s.schedule,
        "is required when isRecurring is true",
    ),
    _spec(
        "schedule is cron",
        "spec.schedule",
        lambda s: s.schedule is not None and schedule.bad_fields(s.schedule) == schedule.NO_CRON,
        schedule.NO_CRON,
    ),
    _spec(
        "schedule comes",
        "spec.schedule",
        lambda s: s.schedule is not None and schedule.bad_fields(s.schedule) == schedule.NEVER,
        schedule.NEVER,
    ),
    _spec("time zone is known", "spec.timezone", _bad_zone, schedule.NO_ZONE),
    _spec("one time zone", "spec.schedule", _two_zones, schedule.TWO_ZONES),
    _spec(
        DEPENDENCIES_HAVE_A_GROUP,
        "spec.workflowId",
        lambda s: bool(s.depends_on) and not (s.workflow_id or s.job_id),
        "workflowId or jobId is required beside dependsOn",
    ),
    _one_of("kind", ("standard", "federated")),
    _one_of("mode", ("infer", "train")),
    _one_of("runIf", ("success", "failure")),
    _one_of("preferredPropletType", ("any", "external", "k8s")),
    _one_of("concurrencyPolicy", ("Allow", "Forbid", "Replace")),
    _spec("priority is in range", "spec.priority", lambda s: not 0 <= s.priority <= 100, "must be from 0 to 100"),
    _spec("backoff limit", "spec.backoffLimit", lambda s: _negative(s.backoff_limit), "must be 0 or more"),
    _spec(
        "deadline is positive",
        "spec.activeDeadlineSeconds",
        lambda s: _not_positive(s.active_deadline_seconds),
        "must be more than 0",
    ),
    _spec(
        "starting deadline is positive",
        "spec.startingDeadlineSeconds",
        lambda s: _not_positive(s.starting_deadline_seconds),
        "must be more than 0",
    ),
    _spec(
        "time to live",
        "spec.ttlSecondsAfterFinished",
        lambda s: _negative(s.ttl_seconds_after_finished),
        "must be 0 or more",
    ),
    _spec("memory limit", "spec.limits.memory", lambda s: _not_positive(s.limits.memory_bytes), "must be more than 0"),
    _spec("CPU limit", "spec.limits.cpuTime", lambda s: _not_positive(s.limits.cpu_s), "must be more than 0"),
    _spec("stack limit", "spec.limits.stack", lambda s: _not_positive(s.limits.stack_bytes), "must be more than 0"),
    _spec("fuel limit", "spec.limits.fuel", lambda s: _not_positive(s.limits.fuel), "must be more than 0"),
    _spec(
        "monitoring interval",
        "spec.monitoringProfile.interval",
        lambda s: s.monitoring_profile is not None and not 0.001 <= s.monitoring_profile.interval < 1e9,
        "must be at least 1ms, and less than 30 years",
    ),
    _spec(
        "monitoring history",
        "spec.monitoringProfile.historySize",
        lambda s: s.monitoring_profile is not None and s.monitoring_profile.history_size < 0,
        "must be 0 or more",
    ),
    _spec(
        "directories are absolute",
        "spec.permissions.dirs",
        lambda s: not all(d.host.startswith("/") and d.guest for d in s.permissions.dirs),
        "each needs an absolute host path and a guest path",
    ),
    _spec(
        "environment names",
        "spec.env",
        lambda s: any(not name or "=" in name or "\0" in name + value for name, value in s.env.items()),
        "a variable's name must not be empty nor hold =, and neither it nor its value a zero byte",
    ),
    _spec(
        "secret references",
        "spec.envSecrets",
        lambda s: _bad_secrets(s) or not all(map(_VARIABLE.fullmatch, s.env_secrets)),
        "each must be VARIABLE: {name: SECRET, key: KEY}",
    ),
    _spec(
        "one source of a variable",
        "spec.envSecrets",
        lambda s: not s.env.keys().isdisjoint(s.env_secrets),
        "names a variable that env sets, too; remove one of the two",
    ),
    _spec(
        "metadata is bounded",
        "spec.metadata",
        lambda s: len(repr(s.metadata)) > _METADATA_CHARACTERS,
        "must not be larger than 1 MiB",
    ),
)


# --- after dispatch ---------------------------------------------------------------------------------------------------

# What says when and how urgently, not what runs; editable at any time.
EDITABLE: Final = frozenset(
    "suspend schedule timezone is_recurring concurrency_policy starting_deadline_seconds priority "
    "ttl_seconds_after_finished metadata held".split()
)
_MANIFEST_NAMES: Final = {"selector": "propletSelector", "resources": "resourceRequirements"}


def frozen_changes(old: Task, new: Task, *, finished_too: bool = True) -> list[str]:
    """Return the paths of the fields that `new` changes although `old` has been dispatched; none: it may be stored.

    Recurring Tasks may change: the next run takes the new fields. With `finished_too` False, a Task whose run is over
    may change, too: the reference's REST API changes a finished task and starts it again.
    """
    dispatched = old.status.attempt > 0 or old.status.phase in (Phase.SCHEDULED, Phase.RUNNING)
    if not dispatched or (old.spec.is_recurring and new.spec.is_recurring):
        return []
    if not finished_too and old.status.phase in TERMINAL:
        return []
    return [
        f"spec.{_MANIFEST_NAMES.get(f.name) or camel(f.name)}"
        for f in fields(TaskSpec)
        if f.name not in EDITABLE and getattr(old.spec, f.name) != getattr(new.spec, f.name)
    ]


# --- what this version does not do yet --------------------------------------------------------------------------------

_NOT_YET: Final[tuple[tuple[str, Callable[[TaskSpec], bool]], ...]] = (
    ("encrypted", lambda s: s.encrypted),
    ("halStoragePath", lambda s: bool(s.hal_storage_path)),
)


def unsupported(task: Task) -> str | None:
    """Return one line that says why a Task cannot be run by this version; None: it can.

    It has no module yet (REST tasks get theirs by an upload), or asks for what is not implemented.
    """
    if not task.spec.image_url and not task.spec.file:
        return "it has no module: upload one, or set its image URL"
    wanted = [name for name, asks in _NOT_YET if asks(task.spec)]
    return f"this version does not support {', '.join(wanted)} yet; the task was not started" if wanted else None
