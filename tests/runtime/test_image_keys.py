"""An image that had to be signed and was: for how long that counts."""

import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proplet.agent.cache import CompileCache
from proplet.agent.fetch import ModulesSettings, StoredModules, open_modules
from proplet.agent.fetch_images import KnownImages
from proplet.agent.ports import ModuleError, ModuleWanted, Stage
from proplet.agent.wire import PullPolicy, Reason
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor
from proplet.oci.settings import RegistrySettings
from tests.support.modules import ADDITION
from tests.support.signatures import DIGEST, IMAGE, NAME, parts, store, vector

pytestmark = pytest.mark.anyio

WANTED = ModuleWanted(image_url=f"{NAME}:1", pull_policy=PullPolicy.NEVER)


@pytest.fixture
async def modules(tmp_path: Path) -> AsyncIterator[StoredModules]:
    """Those of a store with an image that is signed by the key in key.pub, as the policy asks."""
    layout = OciLayout(tmp_path / "store")
    for data in (ADDITION, b"{}", IMAGE):
        layout.add_blob(data)
    layout.set_reference(f"{NAME}:1", Descriptor(OCI_MANIFEST, DIGEST, len(IMAGE)))
    store(layout, parts("p256", "bundle"), tagged=False)
    (tmp_path / "key.pub").write_bytes(vector("p256", "key.pub"))
    (tmp_path / "policy.toml").write_text('default = "require"\n[keys.k]\nfile = "key.pub"\n')
    registry = RegistrySettings(use_docker_config=False, signature_policy=tmp_path / "policy.toml")
    settings = ModulesSettings(tmp_path / "store", tmp_path / "cache", tmp_path / "key", registry=registry)
    async with open_modules(settings) as opened:
        yield opened


async def at_hand(modules: StoredModules) -> None:
    for _ in range(3):
        await modules.prepare(WANTED, lambda _: None)
    assert modules.ready(WANTED) is not None


async def test_another_key_in_the_same_file_is_noticed(modules: StoredModules, tmp_path: Path) -> None:
    await at_hand(modules)
    key = tmp_path / "key.pub"
    before = key.stat()
    key.write_bytes(vector("p384", "key.pub"))
    os.utime(key, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps its times
    assert modules.ready(WANTED) is None
    with pytest.raises(ModuleError) as caught:
        await modules.prepare(WANTED, lambda _: None)
    assert caught.value.reason is Reason.UNTRUSTED
    key.unlink()
    with pytest.raises(ModuleError) as caught:
        await modules.prepare(WANTED, lambda _: None)
    assert caught.value.reason is Reason.UNTRUSTED
    key.write_bytes(vector("p256", "key.pub"))
    await at_hand(modules)


@pytest.mark.parametrize("expires", [True, False])
def test_what_was_checked_by_a_key_that_can_expire_is_checked_again(tmp_path: Path, expires: bool) -> None:
    (tmp_path / "key.pub").write_bytes(vector("p256", "valid.pem" if expires else "key.pub"))
    (tmp_path / "policy.toml").write_text('default = "require"\n[keys.k]\nfile = "key.pub"\n')
    settings = RegistrySettings(signature_policy=tmp_path / "policy.toml")
    now = [time.time()]
    known = known_images(tmp_path, settings, lambda: now[0])
    assert known.resolve(WANTED) is None
    before = known.rules()
    now[0] += 3600
    assert (known.rules() != before) is expires


def test_what_was_checked_by_a_policy_that_has_changed_meanwhile_is_not_admitted(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(vector("p256", "key.pub"))
    policy = tmp_path / "policy.toml"
    policy.write_text('default = "require"\n[keys.k]\nfile = "key.pub"\n')
    known = known_images(tmp_path, RegistrySettings(signature_policy=policy))
    assert known.resolve(WANTED) is None
    as_it_began = known.rules()
    policy.write_text('default = "require"\n[keys.k]\nfile = "key.pub"\nnot_after = 2020-01-01T00:00:00Z\n')
    known.admitted(WANTED.image_url, str(DIGEST), as_it_began)
    assert known.resolve(WANTED) is None
    known.admitted(WANTED.image_url, str(DIGEST), known.rules())
    assert known.resolve(WANTED) is not None


def known_images(directory: Path, settings: RegistrySettings, clock: Callable[[], float] = time.time) -> KnownImages:
    layout = OciLayout(directory / "store")
    for data in (ADDITION, b"{}", IMAGE):
        layout.add_blob(data)
    layout.set_reference(f"{NAME}:1", Descriptor(OCI_MANIFEST, DIGEST, len(IMAGE)))
    return KnownImages(layout, CompileCache(directory / "cache", 1 << 20), settings, clock)


async def test_a_policy_that_changes_while_an_image_is_fetched_counts(modules: StoredModules, tmp_path: Path) -> None:
    told = []

    def deny(stage: Stage) -> None:
        told.append(stage)
        (tmp_path / "policy.toml").write_text('default = "deny"\n')

    with pytest.raises(ModuleError) as caught:
        await modules.prepare(WANTED, deny)
    assert told
    assert caught.value.reason is Reason.UNTRUSTED
