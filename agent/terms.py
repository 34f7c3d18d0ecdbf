"""Under which terms a start runs on this node: what it asks for, the node's defaults, the node's ceiling.

Pure. The grant is never more than the ceiling, whatever is asked.
"""

from dataclasses import dataclass, field
from typing import TypeVar

from proplet.agent.events import Prepare, RunKey
from proplet.agent.grants import Granted
from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleWanted
from proplet.agent.wire import PullPolicy, Start, StartTerms

_N = TypeVar("_N", int, float)
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What a task gets if it asks for nothing, and the most it can get. None in the ceiling means no ceiling."""

    default: GuestLimits = field(default_factory=GuestLimits)
    ceiling: GuestLimits = field(
        default_factory=lambda: GuestLimits(
            memory_bytes=1024 * _MIB, cpu_s=None, wall_s=None, output_bytes=8 * _MIB, stack_bytes=_MIB
        )
    )


def granted(start: Start, node: NodeLimits, *, serves: bool = False) -> GuestLimits:
    """Return the limits `start` runs under. What stays, or `serves`, has no limit of time unless it asks."""
    ext = start.ext or StartTerms()
    asked, default, ceiling = ext.limits, node.default, node.ceiling
    daemon = start.daemon or serves
    return GuestLimits(
        memory_bytes=min(asked.memory_bytes or default.memory_bytes, ceiling.memory_bytes),
        cpu_s=_lower(asked.cpu_s or (None if daemon else default.cpu_s), ceiling.cpu_s),
        wall_s=_lower(ext.deadline_s or (None if daemon else default.wall_s), ceiling.wall_s),
        output_bytes=min(asked.output_bytes or default.output_bytes, ceiling.output_bytes),
        stack_bytes=min(asked.stack_bytes or default.stack_bytes, ceiling.stack_bytes),
        fuel=_lower(asked.fuel if asked.fuel is not None else default.fuel, ceiling.fuel),
    )


def _lower(wanted: _N | None, ceiling: _N | None) -> _N | None:
    if wanted is None or ceiling is None:
        return ceiling if wanted is None else wanted
    return min(wanted, ceiling)


def job_of(key: RunKey, start: Start, artefact: Artefact, node: NodeLimits, given: Granted, *, proplet_id: str) -> Job:
    """Return the run that a start asks for, with what it was granted: see `grants`.

    The guest's environment is the task's own with its secrets, and `PROPLET_ID`, no more.
    """
    return Job(
        key=str(key),
        artefact=artefact,
        export=start.name,
        inputs=start.inputs,
        argv=start.cli_args,
        env={"PROPLET_ID": proplet_id, **start.env, **given.secrets},
        limits=granted(start, node, serves=artefact.serves_http),
        permissions=given.permissions,
    )


def wanted_by(effect: Prepare, default: PullPolicy, node: NodeLimits) -> ModuleWanted:
    """Return the module a preparation is about. What was ready before may be had from what is at hand."""
    start = effect.start
    ext = start.ext or StartTerms()
    policy = ext.pull_policy or default
    if effect.again and policy is PullPolicy.ALWAYS:
        policy = PullPolicy.IF_NOT_PRESENT
    return ModuleWanted(
        effect.module_digest,
        start.image_url,
        ext.image_digest,
        policy,
        metered=granted(start, node).fuel is not None,
    )
