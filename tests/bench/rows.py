"""What a benchmark has found: a row of the table, with its budget and what else is worth saying."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIB = 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """How much is measured: `scratch` is a directory on a real disk, `quick` the variant of a minute."""

    scratch: Path
    quick: bool

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """One line. `met` is None where there is no budget. `figures` are the plain numbers, for programs."""

    what: str
    measured: str
    budget: str = ""
    met: bool | None = None
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return asdict(self)


def row(
    what: str,
    value: float,
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
    notes: Iterable[str] = (),
    **figures: float,
) -> Row:
    """A row of one number, over its budget where it is above `most` or below `least`."""
    budget, met = "", None
    if most is not None:
        budget, met = f"<= {number(most)} {unit}", value <= most
    elif least is not None:
        budget, met = f">= {number(least)} {unit}", value >= least
    return Row(what, f"{number(value)} {unit}", budget, met, tuple(notes), {"value": value, **figures})


def number(value: float) -> str:
    """Three significant digits and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(percent) // 100) - 1))]


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text."""
    rows = list(rows)
    marks = {True: "pass", False: "OVER", None: ""}
    cells = [("what", "measured", "budget", "")] + [(r.what, r.measured, r.budget, marks[r.met]) for r in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(4)]
    lines: list[str] = []
    for at, line in enumerate(cells):
        what, measured, budget, mark = line
        padded = (what.ljust(widths[0]), measured.rjust(widths[1]), budget.rjust(widths[2]), mark)
        lines.append("  ".join(padded).rstrip())
        if at == 0:
            lines.append("  ".join("-" * width for width in widths))
        else:
            lines.extend(f"    {note}" for note in rows[at - 1].notes)
    return "\n".join(lines)
