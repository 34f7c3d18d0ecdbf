"""What it costs to bring a large module over: the rate beside curl's, and the memory that it takes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.rows import MIB, Plan, Row, number, row
from tests.support.modules import ADDITION, padded
from tests.support.registry import RunningRegistry

_SHARE = 70.0  # percent of curl's rate
_FLAT_BYTES = 8 * MIB
# A process of its own, as pulls are: what is measured first has loaded the libraries.
_PULL = """
import json, re, sys, time
from pathlib import Path
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.settings import RegistrySettings
store, *images = sys.argv[1:]
took = []
for image in images:
    began = time.perf_counter()
    pull(image, OciLayout(Path(store)), RegistrySettings(max_module_bytes=1 << 30, use_docker_config=False))
    took.append(time.perf_counter() - began)
# Not getrusage's: that knows the process before it was this program.
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(json.dumps([took, int(peak[1]) * 1024]))
"""


def transfers(plan: Plan, registry: RunningRegistry) -> Iterator[Row]:
    size, rounds = plan.pick(256, 64) * MIB, plan.pick(5, 3)
    small = _push(registry, "small", MIB)
    large = _push(registry, "large", size)
    ours: list[float] = []
    theirs: list[float] = []
    _, little = _pull(plan, small)
    peaks: list[int] = []
    for _ in range(rounds):
        theirs.append(_curl(plan, registry, large))
        (_, seconds), peak = _pull(plan, small, large)
        ours.append(seconds)
        peaks.append(peak)
    rates = {name: size / MIB / median(took) for name, took in (("ours", ours), ("curl", theirs))}
    best = {name: size / MIB / min(took) for name, took in (("ours", ours), ("curl", theirs))}
    notes = [
        f"{number(rates['ours'])} and {number(rates['curl'])} MB/s, medians of {rounds} times {size // MIB} MB to disk",
        f"best {number(best['ours'])} and {number(best['curl'])} MB/s; curl compares no digest and syncs nothing",
    ]
    share = 100 * rates["ours"] / rates["curl"]
    yield row("pull of a large module, of curl's rate", share, "%", least=_SHARE, notes=notes, **rates)
    grown = max(peaks) - little
    notes = [f"peak {max(peaks) // MIB} MB, of 1 MB {little // MIB} MB"]
    yield row(
        f"memory for {size // MIB} MB above that for 1 MB", grown / MIB, "MB", most=_FLAT_BYTES / MIB, notes=notes
    )


def _push(registry: RunningRegistry, name: str, size: int) -> str:
    noise = os.urandom(64)
    module = padded(ADDITION + b"\0" + bytes([len(noise) + 2]) + b"\1n" + noise, size)
    registry.push(f"bench/{name}", "v1", module)
    return f"{registry.address}/bench/{name}:v1"


def _pull(plan: Plan, *images: str) -> tuple[list[float], int]:
    """Pull into a store that is empty; seconds for each, and the process's peak memory in bytes."""
    store = plan.scratch / "transfers"
    command = [sys.executable, "-c", _PULL, str(store), *images]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    shutil.rmtree(store)
    took, peak = json.loads(done.stdout)
    return took, peak


def _curl(plan: Plan, registry: RunningRegistry, image: str) -> float:
    """Fetch the module of an image as a plain file; seconds."""
    repository = image.removeprefix(f"{registry.address}/").removesuffix(":v1")
    base, target = f"http://{registry.address}/v2/{repository}", plan.scratch / "curled"
    accept = "Accept: application/vnd.oci.image.manifest.v1+json"
    manifest = json.loads(_output("curl", "-sSf", "-H", accept, f"{base}/manifests/v1"))
    began = time.perf_counter()
    _output("curl", "-sSf", "-o", str(target), f"{base}/blobs/{manifest['layers'][0]['digest']}")
    took = time.perf_counter() - began
    Path(target).unlink()
    return took


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
