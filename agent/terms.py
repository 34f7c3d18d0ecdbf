"""Under which terms a start runs on this node: what it asks for, the node's defaults, the node's ceiling.

Pure. The grant is never more than the ceiling, whatever is asked; a run that ends at a limit which the ceiling has
lowered is told so, or its author would look for the mistake in the task.
"""

from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from proplet.agent.events import Prepare, RunKey
from proplet.agent.grants import Granted
from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleWanted, Outcome
from proplet.agent.wire import PullPolicy, Reason, Start, StartTerms

_N = TypeVar("_N", int, float)
_MIB = 1024 * 1024
_NAMES: Final = ("memory", "cpu", "wall", "output", "stack", "fuel")  # of the limits in the configuration, in order
_ENDS: Final = {Reason.TIMEOUT: "wall", Reason.MEMORY_LIMIT: "memory", Reason.OUTPUT_LIMIT: "output"}
_DROPPED: Final = "above the output limit were dropped]\n"


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
    """Return the limits `start` runs under. What stays, or `serves`, has no limit of time unless it asks.

    The ceiling of wall time is only for what has a deadline: it would end every daemon, of which there may be so many.
    """
    wanted, ceiling = _wanted(start, node, serves=serves), node.ceiling
    return GuestLimits(
        memory_bytes=min(wanted.memory_bytes, ceiling.memory_bytes),
        cpu_s=_lower(wanted.cpu_s, ceiling.cpu_s),
        wall_s=None if _stays(start, wanted, serves=serves) else _lower(wanted.wall_s, ceiling.wall_s),
        output_bytes=min(wanted.output_bytes, ceiling.output_bytes),
        stack_bytes=min(wanted.stack_bytes, ceiling.stack_bytes),
        fuel=_lower(wanted.fuel, ceiling.fuel),
    )


def lowered(start: Start, node: NodeLimits, *, serves: bool = False) -> frozenset[str]:
    """Return which limits are less than `start` wants, by their names in the configuration."""
    wanted = _values(_wanted(start, node, serves=serves))
    given = _values(granted(start, node, serves=serves))
    return frozenset(name for name, one, other in zip(_NAMES, wanted, given, strict=True) if one != other)


def _wanted(start: Start, node: NodeLimits, *, serves: bool) -> GuestLimits:
    ext = start.ext or StartTerms()
    asked, default = ext.limits, node.default
    stays = start.daemon or serves
    return GuestLimits(
        memory_bytes=asked.memory_bytes or default.memory_bytes,
        cpu_s=asked.cpu_s or (None if stays else default.cpu_s),
        wall_s=ext.deadline_s or (None if stays else default.wall_s),
        output_bytes=asked.output_bytes or default.output_bytes,
        stack_bytes=asked.stack_bytes or default.stack_bytes,
        fuel=asked.fuel if asked.fuel is not None else default.fuel,
    )


def _stays(start: Start, wanted: GuestLimits, *, serves: bool) -> bool:
    return wanted.wall_s is None and (start.daemon or serves)


def _values(limits: GuestLimits) -> tuple[float | None, ...]:
    sizes = (limits.memory_bytes, limits.cpu_s, limits.wall_s, limits.output_bytes)
    return (*sizes, limits.stack_bytes, limits.fuel)


def explained(outcome: Outcome, job: Job) -> Outcome:
    """Return the outcome of `job`; where it ended at a limit that the node has lowered, its error says so."""
    if not job.lowered:
        return outcome
    if "output" in job.lowered and outcome.stderr.endswith(_DROPPED.encode()):
        told = _DROPPED.replace("limit", f"limit{_by_node('output')}")
        results = outcome.results
        if results.endswith(_DROPPED):
            results = results.removesuffix(_DROPPED) + told
        outcome = replace(
            outcome, results=results, stderr=outcome.stderr.removesuffix(_DROPPED.encode()) + told.encode()
        )
    name = _limit_at(outcome)
    if outcome.error is None or name not in job.lowered:
        return outcome
    return replace(outcome, error=f"{outcome.error}{_by_node(name)}")


def _by_node(name: str) -> str:
    return f" (the most this node allows: [agent.ceilings] {name})"


def _limit_at(outcome: Outcome) -> str:
    """Return the name of the limit at which a run ended, or nothing."""
    error = outcome.error or ""
    if outcome.reason is Reason.CPU_LIMIT:
        return "fuel" if "fuel" in error else "cpu"
    if outcome.reason is Reason.TRAP:
        return next((name for name in ("stack", "memory") if f"(limits.{name})" in error), "")
    return _ENDS.get(outcome.reason, "")


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
        lowered=lowered(start, node, serves=artefact.serves_http),
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
        effect.image_digest or ext.image_digest,
        policy,
        metered=granted(start, node).fuel is not None,
        handed_out="modules" in ext.topics,
    )
