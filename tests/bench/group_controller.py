"""The manager's controller and its stores alone, with proplets that answer at once and no broker between."""

from collections.abc import Iterator

from tests.bench.nodes import run_load
from tests.bench.rows import Plan, Row, row


def measure(plan: Plan) -> Iterator[Row]:
    tasks = plan.pick(5000, 500)
    found = run_load("load_controller", tasks=tasks, proplets=4)
    notes = [f"{tasks:,} tasks created, placed on 4 proplets, answered and recorded"]
    yield row("controller alone, SQLite store", found["sqlite"], "tasks/s", least=500.0, notes=notes)
    yield row("controller alone, memory store", found["memory"], "tasks/s")
