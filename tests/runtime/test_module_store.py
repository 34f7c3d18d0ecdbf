"""Keeping, preparing and compiling modules: once, safely, and again when the cache has rotted."""

import errno
import os
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent import cache
from proplet.agent.fetch import ModulesSettings, StoredModules, open_modules
from proplet.agent.ports import Artefact, ModuleError, ModuleKind, ModuleWanted, Stage, StartKind, StorageError
from proplet.agent.wire import PullPolicy, Reason
from tests.runtime.conftest import open_node
from tests.support.disks import mounted
from tests.support.modules import ADDITION, bulky, module, module_digest, padded

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def open_store(directory: Path, **settings: Any) -> AsyncIterator[StoredModules]:
    given = ModulesSettings(directory / "store", directory / "cache", directory / "key", **settings)
    async with open_modules(given) as modules:
        yield modules


async def prepare(modules: StoredModules, data: bytes, stages: list[Stage] | None = None, **terms: Any) -> Artefact:
    wanted = ModuleWanted(await modules.keep(data), **terms)
    return await modules.prepare(wanted, stages.append if stages is not None else lambda _: None)


async def test_inline_bytes_are_kept_under_their_digest_and_survive(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        digest = await modules.keep(ADDITION)
        assert digest == module_digest(ADDITION) == await modules.keep(ADDITION)
    blob = tmp_path / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    assert blob.read_bytes() == ADDITION
    async with open_store(tmp_path) as modules:
        artefact = await modules.prepare(ModuleWanted(digest), lambda _: None)
        assert artefact.kind is ModuleKind.CORE


async def test_the_first_preparation_is_cold_and_tells_its_stages_later_ones_are_warm(tmp_path: Path) -> None:
    stages: list[Stage] = []
    async with open_store(tmp_path) as modules:
        first = await prepare(modules, ADDITION, stages)
        assert first.start_kind is StartKind.COLD
        assert first.compile_s > 0
        assert [stage.name for stage in stages] == ["verifying", "compiling"]
        second = await prepare(modules, ADDITION)
        assert second.start_kind is StartKind.WARM
        assert second.path == first.path
    async with open_store(tmp_path) as modules:
        again = await prepare(modules, ADDITION)
        assert again.start_kind is StartKind.WARM
        assert modules.builder_pids == []


async def test_what_many_want_at_once_is_made_once(tmp_path: Path) -> None:
    found: list[Artefact] = []
    stages: list[Stage] = []
    async with open_store(tmp_path) as modules, anyio.create_task_group() as tasks:
        wanted = ModuleWanted(await modules.keep(ADDITION))  # before, so that all ask for it at the same moment

        async def want() -> None:
            found.append(await modules.prepare(wanted, stages.append))

        for _ in range(10):
            tasks.start_soon(want)
        with anyio.fail_after(20):
            while not modules.builder_pids:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        assert len(modules.builder_pids) == 1
    assert len(found) == 10
    assert len({artefact.path for artefact in found}) == 1
    assert [stage.name for stage in stages].count("compiling") == 10  # everybody is told of the one


async def test_cancelling_one_of_two_who_wait_leaves_the_other_his_module(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        digest = await modules.keep(bulky(300))
        found: list[Artefact] = []

        async def want() -> None:
            found.append(await modules.prepare(ModuleWanted(digest), lambda _: None))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(want)
            with anyio.move_on_after(0.02):
                await modules.prepare(ModuleWanted(digest), lambda _: None)
        assert len(found) == 1


async def test_cancelling_the_last_one_ends_the_builder_and_leaves_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        digest = await modules.keep(bulky(4000))
        compiling = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                modules.prepare, ModuleWanted(digest), lambda stage: stage.name == "compiling" and compiling.set()
            )
            await compiling.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            while modules.builder_pids:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert _names(tmp_path / "cache") == set()


async def test_a_module_that_is_not_here_is_unavailable(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        for digest in ("sha256:" + "0" * 64, "sha256:short", "nonsense"):
            with pytest.raises(ModuleError) as caught:
                await modules.prepare(ModuleWanted(digest), lambda _: None)
            assert caught.value.reason is Reason.MODULE_UNAVAILABLE


async def test_a_module_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_module_bytes=1000) as modules:
        with pytest.raises(ModuleError, match="1001 bytes, more than the limit of 1000"):
            await prepare(modules, padded(ADDITION, 1001))
        assert (await prepare(modules, padded(ADDITION, 1000))).kind is ModuleKind.CORE


async def test_a_component_is_told_by_its_preamble(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        assert (await prepare(modules, module("component"))).kind is ModuleKind.COMPONENT


async def test_a_compilation_beyond_the_memory_cap_is_told_and_the_next_one_works(tmp_path: Path) -> None:
    async with open_store(tmp_path, compile_memory_bytes=64 * 1024 * 1024) as modules:
        with pytest.raises(ModuleError, match="64 MiB") as caught:
            await prepare(modules, bulky(20_000))
        assert caught.value.reason is Reason.MEMORY_LIMIT
        assert (await prepare(modules, ADDITION)).start_kind is StartKind.COLD


async def test_a_compilation_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async with open_store(tmp_path, compile_timeout_s=0.01) as modules:
        with pytest.raises(ModuleError) as caught:
            await prepare(modules, ADDITION)
        assert caught.value.reason is Reason.TIMEOUT


async def test_a_builder_that_is_killed_fails_what_it_did_and_nothing_else(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        digest = await modules.keep(bulky(4000))

        def kill(stage: Stage) -> None:
            if stage.name == "compiling":
                os.kill(modules.builder_pids[0], 6)

        with pytest.raises(ModuleError, match="SIGABRT"):
            await modules.prepare(ModuleWanted(digest), kill)
        assert (await prepare(modules, ADDITION)).start_kind is StartKind.COLD


async def test_an_idle_builder_is_gone_after_a_while(tmp_path: Path) -> None:
    async with open_store(tmp_path, linger_s=0.1) as modules:
        await prepare(modules, ADDITION)
        with anyio.fail_after(5):
            while modules.builder_pids:  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_a_stored_module_that_has_rotted_is_noticed_and_removed(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        digest = await modules.keep(ADDITION)
        blob = tmp_path / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")
        blob.write_bytes(ADDITION[:-1] + b"\x0c")
        with pytest.raises(ModuleError) as caught:
            await modules.prepare(ModuleWanted(digest), lambda _: None)
        assert caught.value.reason is Reason.DIGEST_MISMATCH
        assert (await prepare(modules, ADDITION)).start_kind is StartKind.COLD


async def test_a_compiled_file_with_any_byte_changed_is_made_again_unnoticed(tmp_path: Path) -> None:
    async with open_node(tmp_path) as node:
        artefact = await node.artefact("addition")
        size = artefact.path.stat().st_size
    for path in (artefact.path, artefact.path.with_suffix(".json")):
        for at in (0, 5, path.stat().st_size // 2, path.stat().st_size - 1):
            data = bytearray(path.read_bytes())
            data[at] ^= 1
            path.write_bytes(data)
            async with open_node(tmp_path) as node:
                outcome = await node.run("addition", "main", "20", "22")
                assert outcome.results == "42", (path.name, at)
                assert artefact.path.stat().st_size == size
                assert path.read_bytes() != bytes(data)


async def test_a_compiled_file_of_another_device_is_made_again(tmp_path: Path) -> None:
    async with open_node(tmp_path / "a") as node:
        path = (await node.artefact("addition")).path
    shutil.copytree(tmp_path / "a" / "cache", tmp_path / "b" / "cache")
    before = path.with_suffix(".json").read_text()
    async with open_node(tmp_path / "b") as node:
        assert (await node.run("addition", "main", "1", "2")).results == "3"
    assert (tmp_path / "b" / "cache" / "compiled" / path.with_suffix(".json").name).read_text() != before


async def test_a_compiled_file_that_vanishes_is_made_again(tmp_path: Path) -> None:
    async with open_node(tmp_path) as node:
        job = await node.job("addition", "main", ["1", "2"])
        job.artefact.path.unlink()
        assert (await node.runtime.run(job)).results == "3"
        job.artefact.path.unlink()
        assert (await node.run("addition", "main", "1", "2")).results == "3"


async def test_cache_and_key_are_for_nobody_else(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        path = (await prepare(modules, ADDITION)).path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "key" / "cache.key").stat().st_mode) == 0o600


async def test_the_cache_stays_within_its_budget_oldest_first(tmp_path: Path) -> None:
    async with open_store(tmp_path, cache_bytes=40_000) as modules:
        paths = []
        for size in (100, 200, 300, 400):
            artefact = await prepare(modules, padded(ADDITION, size))
            os.utime(artefact.path, (size, size))
            paths.append(artefact.path)
        assert paths[-1].exists()
        assert not paths[0].exists()
        assert sum(path.stat().st_size for path in paths if path.exists()) <= 40_000
        assert (await prepare(modules, padded(ADDITION, 100))).start_kind is StartKind.COLD


async def test_a_store_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="store"):
        async with open_store(tmp_path):
            pass


async def test_a_full_disk_is_a_storage_error_and_leaves_nothing_partial(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=200k") as small:
        given = ModulesSettings(small / "store", tmp_path / "cache", tmp_path / "key")
        async with open_modules(given) as modules:
            with pytest.raises(StorageError, match="space"):
                await modules.keep(padded(ADDITION, 400_000))
            assert await modules.keep(ADDITION) == module_digest(ADDITION)
        assert len(list((small / "store" / "blobs" / "sha256").iterdir())) == 1
        given = ModulesSettings(tmp_path / "store", small / "cache", tmp_path / "key")
        async with open_modules(given) as modules:
            with pytest.raises(StorageError, match="space"):
                await prepare(modules, bulky(1500))
        assert _names(small / "cache") == set()


async def test_an_image_that_cannot_be_had_says_so(tmp_path: Path) -> None:
    async with open_store(tmp_path) as modules:
        for image, policy, words in [
            ("127.0.0.1:1/none/such:1", PullPolicy.IF_NOT_PRESENT, "127.0.0.1:1"),
            ("127.0.0.1:1/none/such:1", PullPolicy.NEVER, "policy is Never"),
            ("UPPER/Case?", PullPolicy.ALWAYS, "reference"),
        ]:
            wanted = ModuleWanted(image_url=image, pull_policy=policy)
            with pytest.raises(ModuleError, match=words) as caught:
                await modules.prepare(wanted, lambda _: None)
            assert caught.value.reason is Reason.MODULE_UNAVAILABLE


def test_two_processes_that_make_a_key_at_once_agree(tmp_path: Path) -> None:
    assert cache.device_key(tmp_path) == cache.device_key(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told_from_one_that_is_read_only() -> None:
    for number, full in [(errno.ENOSPC, True), (errno.EROFS, False)]:
        with pytest.raises(cache.CacheError) as caught, cache._mapped(Path("x")):
            raise OSError(number, "no")
        assert caught.value.full is full


def test_the_name_depends_on_module_and_metering() -> None:
    names = {cache.compiled_name(digest, metered=metered) for digest in "ab" for metered in (True, False)}
    assert len(names) == 4


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


async def test_a_compiled_file_is_read_once_per_process_unless_it_is_another(tmp_path: Path) -> None:
    digests, key = cache.Digests(), cache.device_key(tmp_path / "key")
    async with open_store(tmp_path) as modules:
        path = (await prepare(modules, ADDITION)).path
    record, before = cache.verify(path, key, digests), path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.verify(path, key, digests) == record, "it looks as it was: it is not read again"
    os.utime(path)
    with pytest.raises(cache.RottenError, match="is not what this device compiled"):
        cache.verify(path, key, digests)
    data[-1] ^= 1
    other = path.with_name("other")
    other.write_bytes(data)
    other.rename(path)
    assert cache.verify(path, key, digests) == record
