"""kill -9 at two hundred places of a pull: the store stays valid, and nothing is transferred twice that was there."""

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from proplet.oci.blobs import PARTIAL
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.pull import PullPolicy, pull
from tests.oci.killed_pulls import SETTINGS
from tests.oci.stored import missing
from tests.support.registry import RunningRegistry, running_registry
from tests.support.registry_proxy import RegistryProxy, registry_proxy

pytestmark = [pytest.mark.registry, pytest.mark.slow]

KILLS = 200
SEED = 20_190_907
SIZES = (1_500_000, 40_000, 700_000)


@dataclass
class Puller:
    """The process that forks a child for each pull."""

    process: subprocess.Popen[str]

    def start(self, store: Path, references: list[str], *, die_at: int = 0) -> int:
        """Begin a pull; returns its process id."""
        assert self.process.stdin
        self.process.stdin.write(f"{store} {die_at} {' '.join(references)}\n")
        self.process.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """How the pull ended: 0, or the negative number of a signal."""
        return int(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@contextmanager
def pulling() -> Iterator[Puller]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.oci.killed_pulls"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Puller(process)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(30)


def module(number: int) -> bytes:
    """A module of its own, whose parts are not like each other."""
    size = SIZES[number % len(SIZES)]
    return b"\0asm\1\0\0\0" + random.Random(number).randbytes(size)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        for number in range(len(SIZES)):
            running.push(f"demo/m{number}", "v1", module(number), config_media_type="application/json")
        yield running


@pytest.fixture(scope="module")
def proxy(registry: RunningRegistry) -> Iterator[RegistryProxy]:
    with registry_proxy(registry.address) as running:
        yield running


def contents(store: Path) -> tuple[set[str], dict[str, int]]:
    """Digests of the blobs that are there, every one compared with its content, and the sizes of what was begun."""
    whole, begun = set(), {}
    for path in (store / "blobs/sha256").glob("*"):
        if path.name.startswith(PARTIAL):
            begun["sha256:" + path.name.removeprefix(PARTIAL)] = path.stat().st_size
        elif not path.name.startswith("."):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            whole.add(f"sha256:{path.name}")
    return whole, begun


def assert_valid(store: Path, references: list[str]) -> None:
    """It opens, it is what its index says, and whatever has a name can be run without any registry."""
    layout = OciLayout(store)
    assert not missing(layout)
    for name in layout.references():
        assert name in references
        found = pull(name, layout, SETTINGS, policy=PullPolicy.NEVER)
        assert found.path.read_bytes() == module(references.index(name))


def assert_nothing_twice(proxy: RegistryProxy, whole: set[str], begun: dict[str, int]) -> None:
    """What the last pull asked for, given what was in the store before it."""
    for exchange in proxy.requests("/blobs/"):
        digest = exchange.path.rpartition("/")[2]
        assert digest not in whole, f"{digest} was there, and was asked for again"
        if begun.get(digest):
            assert exchange.range == f"bytes={begun[digest]}-"


def test_a_pull_may_be_killed_anywhere(proxy: RegistryProxy, tmp_path: Path) -> None:
    """One store, begun anew whenever it is complete; half of the kills by bytes served, half by operations on files."""
    places = random.Random(SEED)
    references = [f"{proxy.address}/demo/m{number}:v1" for number in range(len(SIZES))]
    stores, killed, continued, spared = 0, 0, 0, 0
    store = tmp_path / "store-0"
    OciLayout(store)
    with pulling() as puller:
        while killed < KILLS:
            whole, begun = contents(store)
            proxy.clear()
            if places.random() < 0.5:
                ended = _killed_by_bytes(puller, proxy, store, references, places)
            else:
                puller.start(store, references, die_at=places.randrange(1, 120))
                ended = puller.end()
            assert ended in {0, -signal.SIGKILL}, ended
            assert_nothing_twice(proxy, whole, begun)
            assert_valid(store, references)
            killed += ended != 0
            continued += sum(exchange.range is not None for exchange in proxy.requests("/blobs/"))
            spared += len(whole)
            if ended == 0:
                assert len(OciLayout(store).references()) == len(references)
                assert not contents(store)[1]
                stores += 1
                store = tmp_path / f"store-{stores}"
                OciLayout(store)
    assert stores > 20
    assert continued > 20  # what is asserted of these was not asserted of nothing
    assert spared > 100
    assert all(path.name.startswith("store-") for path in tmp_path.iterdir())


def _killed_by_bytes(
    puller: Puller, proxy: RegistryProxy, store: Path, references: list[str], places: random.Random
) -> int:
    """Kill the pull when so many bytes more have been served, at once or a moment after."""
    target: list[int] = []

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.kill(target[0], signal.SIGKILL)

    held = len(contents(store)[0])
    proxy.hold()
    target.append(puller.start(store, references))
    proxy.at(places.randrange(1, 900_000 if held else 2_000_000), kill)
    proxy.release()
    ended = puller.end()
    proxy.forget_mark()
    return ended


def test_two_pulls_beside_each_other_survive_the_death_of_one(proxy: RegistryProxy, tmp_path: Path) -> None:
    """Who waited for the killed one's blob takes it up where that ended."""
    store = tmp_path / "store"
    layout = OciLayout(store)
    reference = f"{proxy.address}/demo/m0:v1"
    proxy.clear()
    with pulling() as first, pulling() as second:
        proxy.hold()
        victim = first.start(store, [reference])
        proxy.at(900_000, lambda: os.kill(victim, signal.SIGKILL))
        proxy.release()
        second.start(store, [reference])
        assert {first.end(), second.end()} <= {0, -signal.SIGKILL}
    proxy.forget_mark()
    assert pull(reference, layout, SETTINGS, policy=PullPolicy.NEVER).module_digest == Digest.of(module(0))
    blobs = proxy.requests(str(Digest.of(module(0))))
    assert 1 <= len(blobs) <= 2
