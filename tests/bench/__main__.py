"""``make bench``: what the node costs, measured on this machine, beside its budgets.

Everything runs on loopback in processes of its own and in one temporary directory. The exit code says whether
everything worked, never how fast it was.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.bench import machine
from tests.bench.rows import Plan, Row, table

GROUPS = (
    *("agent", "runtime", "flash", "oci", "command", "idle", "growth"),
    *("manager", "controller", "fleet", "kubernetes"),
)


def main() -> int:
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="proplet-bench-", dir=options.dir) as directory:
        scratch = Path(directory).resolve()
        facts = machine.facts(scratch) | {"before": machine.load()}
        began = time.monotonic()
        rows, failed = _measure(options.group or GROUPS, Plan(scratch, options.quick))
        facts |= {"after": f"{machine.load()}; took {time.monotonic() - began:.0f} s"}
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {value}")
    print(f"\n{table(rows)}\n")
    over = sum(row.met is False for row in rows)
    print(f"{sum(row.met is True for row in rows)} within their budget, {over} over")
    for group in failed:
        print(f"FAILED: {group}")
    if options.json:
        document = {"machine": facts, "quick": options.quick, "failed": failed, "rows": [r.document() for r in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failed else 0


def _measure(groups: list[str], plan: Plan) -> tuple[list[Row], list[str]]:
    """Every group's rows, and the names of the groups of which a part did not work."""
    rows: list[Row] = []
    failed: list[str] = []
    for group in groups:
        began = time.monotonic()
        print(f"measuring: {group}", end="", file=sys.stderr, flush=True)
        try:
            rows.extend(importlib.import_module(f"tests.bench.group_{group}").measure(plan))
        except Exception:  # noqa: BLE001  the other figures are worth having
            failed.append(group)
            traceback.print_exc()
        print(f" ({time.monotonic() - began:.0f} s)", file=sys.stderr)
    return rows, failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer tasks and shorter windows: a minute in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    parser.add_argument("--group", action="append", choices=GROUPS, help="measure only this; may be repeated")
    parser.add_argument("--dir", type=Path, help="where to put the temporary directory: the disk that is measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
