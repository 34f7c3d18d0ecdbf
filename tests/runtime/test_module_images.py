"""Modules from a real registry: pulled in a builder, found again without one, never run when they are not as asked."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from proplet.agent.fetch import ModulesSettings, open_modules
from proplet.agent.ports import ModuleError, ModuleWanted, Stage, StartKind
from proplet.agent.wire import PullPolicy, Reason
from proplet.oci.settings import RegistrySettings
from tests.runtime.conftest import open_node
from tests.support.modules import ADDITION, module, module_digest, padded
from tests.support.registry import RunningRegistry, running_registry

pytestmark = [pytest.mark.anyio, pytest.mark.registry]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


async def test_an_image_is_fetched_verified_compiled_and_run(registry: RunningRegistry, tmp_path: Path) -> None:
    data = padded(ADDITION, 1_000_000)
    pinned = registry.push("apps/add", "v1", data)
    stages: list[Stage] = []
    async with open_node(tmp_path) as node:
        wanted = ModuleWanted(image_url=f"{registry.address}/apps/add:v1")
        artefact = await node.modules.prepare(wanted, stages.append)
        assert artefact.module_digest == module_digest(data)
        assert artefact.image_digest == pinned
        assert artefact.start_kind is StartKind.COLD
        assert artefact.fetch_s > 0
        names = [stage.name for stage in stages]
        assert names[0] == "fetching"
        assert names[-1] == "compiling"
        assert any(stage.bytes_total == len(data) for stage in stages if stage.name == "fetching")
        job = await node.job(data, "main", ["10", "32"])
        assert (await node.runtime.run(job)).results == "42"


async def test_an_image_that_was_prepared_before_costs_no_builder(registry: RunningRegistry, tmp_path: Path) -> None:
    pinned = registry.push("apps/again", "v1", ADDITION)
    wanted = ModuleWanted(image_url=f"{registry.address}/apps/again:v1")
    async with open_node(tmp_path) as node:
        await node.modules.prepare(wanted, lambda _: None)
    async with open_node(tmp_path) as node:
        for policy in (PullPolicy.IF_NOT_PRESENT, PullPolicy.NEVER):
            again = ModuleWanted(image_url=wanted.image_url, pull_policy=policy)
            for _ in range(2):
                artefact = await node.modules.prepare(again, lambda _: None)
                assert (artefact.image_digest, artefact.start_kind) == (pinned, StartKind.WARM)
        assert node.modules.builder_pids == []


async def test_a_tag_that_moved_is_seen_with_always_and_only_then(registry: RunningRegistry, tmp_path: Path) -> None:
    image = f"{registry.address}/apps/moving:latest"
    registry.push("apps/moving", "latest", ADDITION)
    async with open_node(tmp_path) as node:
        await node.modules.prepare(ModuleWanted(image_url=image), lambda _: None)
        registry.push("apps/moving", "latest", module("values"))
        for policy, data in [
            (PullPolicy.IF_NOT_PRESENT, ADDITION),
            (PullPolicy.ALWAYS, module("values")),
            (PullPolicy.IF_NOT_PRESENT, module("values")),
        ]:
            artefact = await node.modules.prepare(ModuleWanted(image_url=image, pull_policy=policy), lambda _: None)
            assert artefact.module_digest == module_digest(data), policy


async def test_an_image_with_another_digest_is_not_run(registry: RunningRegistry, tmp_path: Path) -> None:
    registry.push("apps/pinned", "v1", ADDITION)
    async with open_node(tmp_path) as node:
        image = f"{registry.address}/apps/pinned:v1@sha256:{'0' * 64}"
        with pytest.raises(ModuleError) as caught:
            await node.modules.prepare(ModuleWanted(image_url=image), lambda _: None)
        assert caught.value.reason in {Reason.MODULE_UNAVAILABLE, Reason.DIGEST_MISMATCH}


async def test_bytes_that_were_changed_in_the_registry_are_a_digest_mismatch(
    registry: RunningRegistry, tmp_path: Path
) -> None:
    data = padded(ADDITION, 5000)
    registry.push("apps/changed", "v1", data)
    (blob,) = registry.storage.rglob(f"{module_digest(data).removeprefix('sha256:')}/data")
    blob.write_bytes(data[:-1] + b"\1")
    async with open_node(tmp_path) as node:
        wanted = ModuleWanted(image_url=f"{registry.address}/apps/changed:v1")
        with pytest.raises(ModuleError) as caught:
            await node.modules.prepare(wanted, lambda _: None)
        assert caught.value.reason is Reason.DIGEST_MISMATCH


async def test_an_unknown_image_is_unavailable_and_named(registry: RunningRegistry, tmp_path: Path) -> None:
    async with open_node(tmp_path) as node:
        with pytest.raises(ModuleError, match="apps/unknown") as caught:
            await node.modules.prepare(ModuleWanted(image_url=f"{registry.address}/apps/unknown:1"), lambda _: None)
        assert caught.value.reason is Reason.MODULE_UNAVAILABLE


async def test_a_stored_module_that_rots_is_taken_anew(registry: RunningRegistry, tmp_path: Path) -> None:
    data = padded(ADDITION, 3000)
    pinned = registry.push("apps/rotten", "v1", data)
    wanted = ModuleWanted(image_url=f"{registry.address}/apps/rotten:v1")
    async with open_node(tmp_path) as node:
        await node.modules.prepare(wanted, lambda _: None)
    (blob,) = (tmp_path / "store").rglob(module_digest(data).removeprefix("sha256:"))
    for position in (0, 1500, len(data) - 1):
        blob.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        shutil.rmtree(tmp_path / "cache")
        async with open_node(tmp_path) as node:
            artefact = await node.modules.prepare(wanted, lambda _: None)
            assert (artefact.image_digest, artefact.start_kind) == (pinned, StartKind.COLD)
        assert blob.read_bytes() == data


async def test_a_task_that_starts_again_runs_what_it_ran_although_the_tag_has_moved(
    registry: RunningRegistry, tmp_path: Path
) -> None:
    image = f"{registry.address}/apps/again-moved:v1"
    registry.push("apps/again-moved", "v1", ADDITION)
    async with open_node(tmp_path) as node:
        first = await node.modules.prepare(ModuleWanted(image_url=image), lambda _: None)
        registry.push("apps/again-moved", "v1", module("values"))
        always = ModuleWanted(image_url=image, pull_policy=PullPolicy.ALWAYS)
        assert (await node.modules.prepare(always, lambda _: None)).image_digest != first.image_digest
    for _ in range(2):
        async with open_node(tmp_path) as node:
            again = ModuleWanted(image_url=image, image_digest=first.image_digest)
            artefact = await node.modules.prepare(again, lambda _: None)
            assert (artefact.module_digest, artefact.image_digest) == (module_digest(ADDITION), first.image_digest)
            assert node.modules.ready(again) is not None
            assert node.modules.builder_pids == []


async def test_what_the_policy_refuses_is_untrusted_also_when_it_is_at_hand(
    registry: RunningRegistry, tmp_path: Path
) -> None:
    registry.push("apps/policy", "v1", ADDITION)
    name = f"{registry.address}/apps/policy"
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[repositories."{name}"]\nrule = "allow"\n')
    (tmp_path / "key.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    settings = RegistrySettings(use_docker_config=False, signature_policy=policy)
    wanted = ModuleWanted(image_url=f"{name}:v1")
    async with open_modules(
        ModulesSettings(tmp_path / "store", tmp_path / "cache", tmp_path / "key", registry=settings)
    ) as modules:
        await modules.prepare(wanted, lambda _: None)
        assert modules.ready(wanted) is not None
        for text in ('rule = "deny"', 'rule = "require"', "nonsense"):
            policy.write_text(f'[keys.k]\nfile = "key.pub"\n[repositories."{name}"]\n{text}\n')
            assert modules.ready(wanted) is None
            for when in PullPolicy:
                again = ModuleWanted(image_url=wanted.image_url, pull_policy=when)
                with pytest.raises(ModuleError) as caught:
                    await modules.prepare(again, lambda _: None)
                assert caught.value.reason is Reason.UNTRUSTED, text
        policy.write_text(f'[repositories."{name}"]\nrule = "allow"\n')
        assert (await modules.prepare(wanted, lambda _: None)).start_kind is StartKind.WARM
