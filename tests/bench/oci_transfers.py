"""What it costs to bring a large module over: the rate beside curl's, and the memory that it takes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from tests.bench.rows import MIB, Plan, Row, number, row
from tests.cli.command import proplet_now
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
    size, rounds = plan.pick(256, 64) * MIB, plan.pick(7, 3)
    small = push_noise(registry, "small", MIB)
    large = push_noise(registry, "large", size)
    ours: list[float] = []
    theirs: list[float] = []
    commands: list[float] = []
    _, little = pull_anew(plan, small)
    peaks: list[int] = []
    for _ in range(rounds):
        theirs.append(curl(plan, blob_url(registry.address, large)))
        (_, seconds), peak = pull_anew(plan, small, large)
        ours.append(seconds)
        peaks.append(peak)
        commands.append(_command(plan, large))
    yield _rate("pull of a large module, of curl's rate", ours, theirs, size)
    startup = min(_command(plan, small) for _ in range(rounds))
    yield _rate("the same as the command image pull", commands, theirs, size, f"; for 1 MB {1000 * startup:.0f} ms")
    grown = max(peaks) - little
    notes = [f"peak {max(peaks) // MIB} MB, of 1 MB {little // MIB} MB"]
    yield row(
        f"memory for {size // MIB} MB above that for 1 MB", grown / MIB, "MB", most=_FLAT_BYTES / MIB, notes=notes
    )


def _rate(what: str, ours: list[float], theirs: list[float], size: int, more: str = "") -> Row:
    rates = {name: size / MIB / median(took) for name, took in (("ours", ours), ("curl", theirs))}
    best = {name: size / MIB / min(took) for name, took in (("ours", ours), ("curl", theirs))}
    shares = {"median": 100 * rates["ours"] / rates["curl"], "best": 100 * best["ours"] / best["curl"]}
    notes = [
        f"{number(rates['ours'])} and {number(rates['curl'])} MB/s, medians of {len(ours)} times {size // MIB} MB",
        f"best {number(best['ours'])} and {number(best['curl'])} MB/s: {number(shares['best'])} %{more}",
        "to disk both; curl compares no digest and syncs nothing",
    ]
    return row(what, shares["median"], "%", least=_SHARE, notes=notes, **rates)


def push_noise(registry: RunningRegistry, name: str, size: int) -> str:
    """Push a module of that many bytes; how a task names it."""
    noise = os.urandom(64)
    module = padded(ADDITION + b"\0" + bytes([len(noise) + 2]) + b"\1n" + noise, size)
    registry.push(f"bench/{name}", "v1", module)
    return f"{registry.address}/bench/{name}:v1"


def pull_anew(plan: Plan, *images: str) -> tuple[list[float], int]:
    """Pull into a store that is empty; seconds for each, and the process's peak memory in bytes."""
    store = plan.scratch / "transfers"
    try:
        took, peak = json.loads(output(sys.executable, "-c", _PULL, str(store), *images))
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return took, peak


def blob_url(address: str, image: str) -> str:
    """Where the module of an image is."""
    base = f"http://{address}/v2/{image.removeprefix(f'{address}/').removesuffix(':v1')}"
    accept = "Accept: application/vnd.oci.image.manifest.v1+json"
    manifest = json.loads(output("curl", "-sSf", "-H", accept, f"{base}/manifests/v1"))
    return f"{base}/blobs/{manifest['layers'][0]['digest']}"


def curl(plan: Plan, url: str) -> float:
    """Fetch a plain file; seconds."""
    target = plan.scratch / "curled"
    began = time.perf_counter()
    output("curl", "-sSf", "-o", str(target), url)
    took = time.perf_counter() - began
    target.unlink()
    return took


def _command(plan: Plan, image: str) -> float:
    """Pull as a person does, from the start of the program to its end; seconds."""
    home = plan.scratch / "commanded"
    home.mkdir()
    limits = {"PROPLET_NODE_STATE_DIR": str(home / "state"), "PROPLET_MODULES_MAX_MODULE_SIZE": "1Gi"}
    try:
        began = time.perf_counter()
        done = proplet_now(home, ["image", "pull", image], **limits)
        took = time.perf_counter() - began
    finally:
        shutil.rmtree(home)
    if done.code != 0:
        raise RuntimeError(f"image pull: {done.err}")
    return took


def output(*command: str) -> str:
    """What a program writes; one that fails is an error with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout
