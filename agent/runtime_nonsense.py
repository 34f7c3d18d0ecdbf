"""What workers report, checked: a guest may have taken its worker over, and whatever it says must end itself at most.

Place in the flow: `runtime_link` and `runtime` ask here before they use a report; what is raised ends the worker.
"""

from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import Any, Final

from proplet.agent.wire import Reason
from proplet.agent.worker_orders import Report

_NUMBER: Final = (int, float, NoneType)
_KINDS: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {
        "number": (int,),
        "reason": (str,),
        "results": (str, NoneType),
        "error": (str, NoneType),
        "exit_code": (int, NoneType),
        "stdout": (bytes,),
        "stderr": (bytes,),
        "cpu_s": _NUMBER,
        "peak_memory_bytes": (int, NoneType),
        "run_s": (int, float),
        "hot": (bool,),
        "fuel_used": (int, NoneType),
    }
)
_FIELDS: Final = tuple(_KINDS[name] for name in Report._fields)


def check(report: Report) -> None:
    """Raise TypeError where a report is none of ours: a guest may have taken its worker over."""
    for value, kinds in zip(report, _FIELDS, strict=True):
        if type(value) not in kinds:
            raise TypeError(f"a report with {value!r:.100} where {kinds[0].__name__} belongs")


def checked_samples(answer: Any) -> Mapping[int, Any]:
    """Return measurements by the number of their run; raise TypeError or ValueError where they are none."""
    for number, (cpu_s, memory_bytes, wall_s) in dict(answer).items():
        if type(number) is not int or any(type(value) not in _NUMBER for value in (cpu_s, memory_bytes, wall_s)):
            raise TypeError("measurements of another kind")
    return dict(answer)


def checked_refusal(answer: Any) -> tuple[Reason, str] | None:
    """Return why a module cannot be loaded; raise TypeError or ValueError where it does not say so."""
    if answer is None:
        return None
    reason, text = answer
    if type(text) is not str:
        raise TypeError("a refusal without its reason")
    return Reason(reason), text
