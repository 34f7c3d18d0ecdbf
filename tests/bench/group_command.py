"""What a person notices first: how long a start takes, what help costs, how much room it needs."""

import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

from packaging.requirements import Requirement

from tests.bench.nodes import MQTT, NODE
from tests.bench.rows import Plan, Row, row
from tests.support.node import NodeProcess

_MB = 1e6


def measure(plan: Plan) -> Iterator[Row]:
    yield _ready(plan)
    yield _help(plan)
    yield _installed("proplet")
    yield _installed("proplet[kubernetes]")


def _ready(plan: Plan) -> Row:
    """Exec to READY=1 of an agent whose broker takes connections and never answers."""
    times = []
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        for number in range(plan.pick(10, 4)):
            directory = plan.scratch / f"ready-{number}"
            directory.mkdir()
            node = NodeProcess(directory, NODE.format(directory=directory) + MQTT.format(address=address, key="k"))
            began = time.perf_counter()
            node.start()
            times.append(1000 * (time.perf_counter() - began))
            node.kill()
    notes = [f"{len(times)} starts with empty directories, worst {max(times):.0f} ms"]
    return row("agent ready after exec, the broker silent", median(times), "ms", most=700.0, notes=notes)


def _help(plan: Plan) -> Row:
    """CPU time of the installed command, which imports what it needs and no more."""
    program = Path(sys.executable).with_name("proplet")
    times = []
    for _ in range(plan.pick(10, 4)):
        process = subprocess.Popen([program, "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{program} --help ended with {process.returncode}")
        times.append(1000 * (usage.ru_utime + usage.ru_stime))
    return row("proplet --help, CPU time", median(times), "ms")


def _installed(what: str) -> Row:
    """Blocks on disk of the distributions that an installation brings, compiled bytecode included."""
    parts = {name: _size(files) for name, files in _distributions(what).items()}
    parts["proplet"] = sum(_size(_files_below(root)) for root in _own_packages())
    largest = sorted(parts.items(), key=lambda item: -item[1])
    named = ", ".join(f"{name} {size / _MB:.1f}" for name, size in largest[:8])
    rest = sum(size for _, size in largest[8:]) / _MB
    total = sum(parts.values()) / _MB
    notes = [f"MB by part: {named}, {len(largest) - 8} others {rest:.1f}; without Python itself and mosquitto"]
    return row(f"installed size, {what}", total, "MB", most=220.0, notes=notes)


def _distributions(what: str) -> dict[str, list[Path]]:
    """The files of everything that `what` requires here, directly or not."""
    found: dict[str, list[Path]] = {}
    wanted = [Requirement(what)]
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        distribution = importlib.metadata.distribution(requirement.name)
        name = distribution.metadata["Name"]
        found.setdefault(name, [Path(str(file.locate())) for file in distribution.files or ()])
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                needs = (Requirement(text) for text in distribution.requires or ())
                wanted += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


def _own_packages() -> Iterator[Path]:
    for name in ("proplet.agent", "proplet.manager", "proplet.oci", "proplet.crds"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        yield from map(Path, spec.submodule_search_locations or ())


def _files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_blocks * 512 for file in set(files) if file.is_file())
