"""Damaged modules and components: refused or run to some end, and never an agent, a worker or a builder lost.

``FUZZ_MODULES`` says how many (10,000 in CI, 1,000 elsewhere; more by hand), ``FUZZ_SEED`` which (it is printed),
``FUZZ_ENGINE`` on what they run.
"""

import json
import logging
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent import cache
from proplet.agent.ports import ModuleError
from proplet.agent.wire import Reason
from tests.runtime.conftest import Node, open_node
from tests.support.modules import DIRECTORY
from tests.support.mutations import Mutations

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(0)]

COUNT = int(os.environ.get("FUZZ_MODULES", "10000" if os.environ.get("CI") else "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(1, 2**32)
ENGINE = os.environ.get("FUZZ_ENGINE", "cranelift")
AT_ONCE = 8
# What a damaged module may end with: anything but a fault of ours.
FAULTS = {Reason.WORKER_CRASHED, Reason.INTERNAL, Reason.QUARANTINED, Reason.STORAGE}


async def test_damaged_modules_cost_nobody_anything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    print(f"FUZZ_SEED={SEED}")
    mutations = Mutations([path.read_bytes() for path in sorted(DIRECTORY.glob("*.wasm"))], SEED)
    ends: Counter[str] = Counter()
    left = iter(range(COUNT))
    began = time.monotonic()
    # A small cache, or looking through it takes longer than everything else.
    async with open_node(tmp_path, engine=ENGINE, cache_bytes=4 * 1024 * 1024) as node:

        async def run_some() -> None:
            for _ in left:
                guest = mutations.next()
                reason, said = await end(node, guest)
                assert reason not in FAULTS, (guest.hex(), said)
                assert "builder ended" not in said, (guest.hex(), said)
                ends[reason.value] += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(run_some)
        assert (await node.run("addition", "main", "1", "2")).results == "3"
    print(f"{COUNT} in {time.monotonic() - began:.1f} s: {dict(ends.most_common())}")
    assert sum(ends.values()) == COUNT
    # A worker that was lost would be told there, even if the jobs it had were run again without a fault.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert len(ends) > 3, "damaged so much that nothing is compiled"


async def end(node: Node, guest: bytes) -> tuple[Reason, str]:
    limits: dict[str, Any] = {"wall_s": 0.05, "output_bytes": 1000, "memory_bytes": 8 * 1024 * 1024}
    try:
        outcome = await node.run(guest, "main", "1", "2", **limits)
    except ModuleError as error:
        return error.reason, str(error)
    return outcome.reason, outcome.error or ""


async def test_damaged_compiled_files_are_always_refused(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"FUZZ_SEED={SEED}")
    async with open_node(tmp_path) as node:
        path = (await node.artefact("echo")).path
    key = cache.device_key(tmp_path / "key")
    intact = cache.verify(path, key)
    for file in (path, path.with_suffix(".json")):
        content = file.read_bytes()
        for _ in range(COUNT // 10):
            file.write_bytes(damaged(chance, content))
            try:
                taken = cache.verify(path, key)
            except cache.RottenError:
                continue
            # A record may be written in other words, as long as it says the same.
            assert file.suffix == ".json"
            assert taken == intact
        file.write_bytes(content)
    assert cache.verify(path, key) == intact


@pytest.mark.parametrize("code", ["", "0" * 64, "é" * 64, "\ud800"], ids=["none", "hex", "letters", "surrogate"])
async def test_a_record_with_another_code_is_refused(tmp_path: Path, code: str) -> None:
    async with open_node(tmp_path) as node:
        path = (await node.artefact("echo")).path
        record = path.with_suffix(".json")
        fields = json.loads(record.read_text())
        record.write_text(json.dumps(fields | {"code": code}))
        with pytest.raises(cache.RottenError):
            cache.verify(path, cache.device_key(tmp_path / "key"))
        assert (await node.run("echo", "_start", "again")).stdout == b"_start\0again\0"


def damaged(chance: random.Random, content: bytes) -> bytes:
    """Return `content` otherwise than it was."""
    changed = bytearray(content)
    how = chance.random()
    if how < 0.6:
        at = chance.randrange(len(changed))
        changed[at] ^= chance.randrange(1, 256)
    elif how < 0.75:
        del changed[chance.randrange(len(changed)) :]
    elif how < 0.9:
        changed.insert(chance.randrange(len(changed) + 1), chance.randrange(256))
    else:
        start = chance.randrange(len(changed))
        changed[start : start + 64] = chance.randbytes(64)
    return bytes(changed) if changed != content else b""
