"""What the API counts of itself, and Prometheus' text format (version 0.0.4) for it."""

from collections import Counter
from collections.abc import Iterable, Mapping

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})


class Stats:
    """Counters of requests, by method, route and status. Bounded: routes are templates, methods a fixed set."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[str, float] = {}
        self.watchers = 0

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request that took `seconds` (of a stream: until its end)."""
        self.requests[method if method in _METHODS else "other", route, status] += 1
        self.seconds[route] = self.seconds.get(route, 0.0) + seconds


Sample = tuple[Mapping[str, str], float]


def family(name: str, kind: str, explanation: str, samples: Iterable[Sample]) -> str:
    """Return one metric family as text; label values are escaped."""
    lines = [f"# HELP {name} {explanation}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value:.17g}" if inside else f"{name} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
