"""Bytes to flash per task where a commit takes as long as on an SD card."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from proplet.manager.broker import Role
from tests.bench.nodes import ID, MANAGER_ID, MQTT, NODE, ROOT, run_load
from tests.bench.processes import tree, written
from tests.bench.rows import Plan, Row, row
from tests.bench.wire_client import Access
from tests.support.mosquitto import Identity, MosquittoServer

WINDOW = 64


def measure(plan: Plan) -> Iterator[Row]:
    for fsync_ms in (10, 30):
        with _slow_agent(plan.scratch / f"flash-{fsync_ms}", fsync_ms) as (pid, access):
            tasks = plan.pick(4000, 300)
            load = {"access": asdict(access), "proplet_id": ID, "window": WINDOW}
            run_load("load_tasks", prefix="warm", tasks=WINDOW, **load)
            before = {each: written(each) for each in tree(pid)}
            found = run_load("load_tasks", prefix="burst", tasks=tasks, **load)
            wrote = sum(written(each) - before.get(each, 0) for each in tree(pid)) / tasks
        rate = tasks / found["elapsed_s"]
        notes = [f"{tasks:,} tasks, {WINDOW} under way, {rate:,.0f} tasks/s"]
        yield row(
            f"flash bytes a task in a burst, fsync +{fsync_ms} ms",
            wrote / 1024,
            "KiB",
            most=4.0,
            notes=notes,
            rate=rate,
        )


@contextmanager
def _slow_agent(directory: Path, fsync_ms: int) -> Iterator[tuple[int, Access]]:
    """The process that `slow_disk_agent` is, on a mosquitto of its own."""
    directory.mkdir()
    manager, own = Identity(MANAGER_ID, "manager-secret", Role.MANAGER), Identity(ID, "own-secret", Role.PROPLET)
    server = MosquittoServer(directory / "broker", (manager, own))
    server.start()
    config = directory / "proplet.toml"
    config.write_text(NODE.format(directory=directory) + MQTT.format(address=server.address, key=own.password))
    try:
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.slow_disk_agent", str(config), str(fsync_ms)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        try:
            yield process.pid, Access(server.port, MANAGER_ID, manager.password, "m/d/c/c")
        finally:
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
    finally:
        server.kill()
