"""Modules with random bytes changed: refused or run to some end, and never an agent, a worker or a builder lost."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.ports import ModuleError
from proplet.agent.wire import Reason
from tests.runtime.conftest import open_node
from tests.support.modules import DIRECTORY

pytestmark = pytest.mark.anyio

COUNT = int(os.environ.get("FUZZ_MODULES", "400"))


async def test_mutated_modules_cost_nobody_anything(tmp_path: Path) -> None:
    seed = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(1, 2**32)
    print(f"FUZZ_SEED={seed}")
    chance = random.Random(seed)
    sources = [path.read_bytes() for path in sorted(DIRECTORY.glob("*.wasm")) if path.stat().st_size > 8]
    ends: Counter[Reason] = Counter()
    async with open_node(tmp_path) as node:
        for _ in range(COUNT):
            guest = mutated(chance, chance.choice(sources))
            reason, said = await end(node, guest)
            assert reason not in {Reason.WORKER_CRASHED, Reason.INTERNAL}, (guest.hex(), said)
            assert "builder ended" not in said, guest.hex()
            ends[reason] += 1
        assert (await node.run("addition", "main", "1", "2")).results == "3"
    assert sum(ends.values()) == COUNT


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Return `data` with one to four bytes behind its preamble changed, removed or added."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, how = chance.randrange(8, len(changed)), chance.random()
        if how < 0.6:
            changed[at] = chance.randrange(256)
        elif how < 0.8 and len(changed) > 9:
            del changed[at]
        else:
            changed.insert(at, chance.randrange(256))
    return bytes(changed)


async def end(node: Any, guest: bytes) -> tuple[Reason, str]:
    try:
        outcome = await node.run(guest, "main", "1", "2", wall_s=0.05, output_bytes=1000)
    except ModuleError as error:
        return error.reason, str(error)
    return outcome.reason, outcome.error or ""
