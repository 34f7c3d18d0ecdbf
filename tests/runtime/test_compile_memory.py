"""What compiling may take of a device's memory, and what is said of a module that needs more."""

from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.cache import CompileCache
from proplet.agent.fetch_builders import Builders
from proplet.agent.memory_room import available_bytes, compile_cap, compile_need
from proplet.agent.ports import ModuleError
from proplet.agent.wire import Reason
from tests.support.modules import bulky, module_digest

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


@given(st.integers(64, 4096), st.none() | st.integers(0, 1 << 20))
def test_a_builder_gets_what_is_configured_or_three_quarters_of_what_is_free(
    configured: int, available: int | None
) -> None:
    cap = compile_cap(configured * MIB, None if available is None else available * MIB)
    assert 64 * MIB <= cap <= configured * MIB
    if available is not None and 64 <= available * 3 // 4 <= configured:
        assert cap == available * MIB * 3 // 4


def test_a_larger_module_needs_more() -> None:
    assert compile_need(0) < compile_need(MIB)
    # As measured: SQLite in Python, and a component with all of CPython.
    for size, took in ((25_651 * 1024, 337 * MIB), (17_919 * 1024, 422 * MIB), (911 * 1024, 88 * MIB)):
        least, most = compile_need(size)
        assert least <= took <= most


def test_what_is_free_is_the_kernels_word_within_the_control_group(tmp_path: Path) -> None:
    group = tmp_path / "cgroup" / "service"
    group.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:       948304 kB\nMemAvailable:   400000 kB\nCached: 5 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/service\n")
    (group / "memory.current").write_text("100000000\n")
    for most, free in (("max", 400_000 * 1024), ("300000000", 200_000_000), ("90000000", 0)):
        (group / "memory.max").write_text(f"{most}\n")
        assert available_bytes(tmp_path, tmp_path / "cgroup") == free
    (tmp_path / "meminfo").unlink()
    assert available_bytes(tmp_path, tmp_path / "cgroup") == 0
    assert available_bytes(tmp_path / "nothing", tmp_path / "cgroup") is None


def test_this_machine_tells_what_is_free() -> None:
    assert (available_bytes() or 0) > 0


async def test_on_a_small_device_the_reason_is_the_memory_that_is_free_and_the_node_lives_on(tmp_path: Path) -> None:
    with pytest.raises(ModuleError) as caught:
        await compile_there(tmp_path, bulky(8000), available=100 * MIB)
    assert caught.value.reason is Reason.MEMORY_LIMIT
    said = str(caught.value)
    assert "more than the 75 MiB of memory a builder may use now, three quarters of what is free here" in said
    assert "modules of its size, 2.9 MiB, were seen to take 75 MiB to 218 MiB: free memory on this device" in said
    await compile_there(tmp_path, bulky(10), available=100 * MIB)


async def compile_there(directory: Path, data: bytes, *, available: int) -> None:
    wasm, digest = directory / "module.wasm", module_digest(data)
    wasm.write_bytes(data)
    order = {
        "wasm": str(wasm),
        "out": str(CompileCache(directory, 0).path(digest, metered=False)),
        "module_digest": digest,
        "metered": False,
        "engine": "cranelift",
        "key_dir": str(directory),
    }
    async with anyio.create_task_group() as tasks:
        builders = Builders(
            tasks, memory_bytes=512 * MIB, compile_timeout_s=60, linger_s=60, available=lambda: available
        )
        failure: ModuleError | None = None
        try:
            await builders.compile(order, lambda _: None)
        except ModuleError as error:
            failure = error
        await builders.aclose()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
