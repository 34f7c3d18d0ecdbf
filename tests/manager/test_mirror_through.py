"""The mirror in front of a real registry: what its list allows is pulled through, verified, remembered, mended."""

import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from proplet.manager.images import ImagesSettings
from proplet.manager.mirror_through import Patience
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.manager.mirrors import MODULE, put_image, serving
from tests.support.registry import (
    ADDITION,
    OCI_INDEX,
    OCI_MANIFEST,
    RunningRegistry,
    push_blob,
    push_manifest,
    running_registry,
)

pytestmark = [pytest.mark.anyio, pytest.mark.registry]

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
OTHER = ADDITION + b"\0\2\1x"
QUICK = RegistrySettings(max_attempts=1, connect_timeout_s=2, read_timeout_s=5, use_docker_config=False)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def allowing(registry: RunningRegistry, store: Path, **how: Any) -> dict[str, Any]:
    return {"images": ImagesSettings(store, QUICK), "allow": (f"{registry.address}/open/*",), **how}


async def test_what_the_list_allows_is_pulled_and_then_served_without_the_registry(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with ExitStack() as up:
        registry = up.enter_context(running_registry(tmp_path / "registry"))
        digest = registry.push("open/x", "1", ADDITION)
        async with serving(store, **allowing(registry, store, patience=Patience(good_s=0, bad_s=0))) as served:
            name = f"/v2/{registry.address}/open/x"
            got = await served.ask(f"{name}/manifests/1")
            assert (got.status, got.headers["docker-content-digest"]) == (200, digest)
            assert (await served.ask(f"{name}/blobs/{MODULE}")).body == ADDITION
            up.close()  # the registry is away now
            for path in (f"{name}/manifests/1", f"{name}/manifests/{digest}", f"{name}/blobs/{MODULE}"):
                assert (await served.ask(path)).status == 200
            assert (await served.ask(f"{name}/manifests/2")).status == 404
            assert served.images.child_pids == []


async def test_a_node_that_names_it_as_mirror_gets_images_from_it(registry: RunningRegistry, tmp_path: Path) -> None:
    digest, store = registry.push("open/named", "1", ADDITION), tmp_path / "store"
    async with serving(store, **allowing(registry, store)) as served:
        hosts = {registry.address: HostSettings(mirrors=(served.mirror.address,))}
        other = OciLayout(tmp_path / "other")
        image = f"{registry.address}/open/named:1"
        pulled = await to_thread.run_sync(pull, image, other, RegistrySettings(hosts=hosts, use_docker_config=False))
        assert (str(pulled.manifest_digest), pulled.path.read_bytes()) == (digest, ADDITION)
        assert OciLayout(store).resolve(image) is not None  # it went through the mirror


async def test_a_tag_that_moves_is_seen_after_a_while_and_not_before(registry: RunningRegistry, tmp_path: Path) -> None:
    first, store = registry.push("open/moving", "1", ADDITION), tmp_path / "store"
    path = f"/v2/{registry.address}/open/moving/manifests/1"
    async with serving(store, **allowing(registry, store)) as served:
        assert (await served.ask(path)).headers["docker-content-digest"] == first
        second = registry.push("open/moving", "1", OTHER)
        assert (await served.ask(path)).headers["docker-content-digest"] == first
    async with serving(store, **allowing(registry, store)) as served:
        assert (await served.ask(path)).headers["docker-content-digest"] == second


async def test_what_the_list_does_not_allow_is_not_pulled(registry: RunningRegistry, tmp_path: Path) -> None:
    registry.push("closed/x", "1", ADDITION)
    store = tmp_path / "store"
    password = {"username": "u", "password": "p"}
    for how in ({}, password):
        async with serving(store, **allowing(registry, store, **how)) as served:
            path = f"/v2/closed/x/manifests/1?ns={registry.address}"
            access = {"Authorization": "Basic dTpw"} if how else {}
            refused = await served.ask(path, **access)
            assert (refused.status, refused.code) == (404, "NAME_UNKNOWN")
    assert OciLayout(store).references() == {}


async def test_many_who_ask_at_once_cost_one_pull(registry: RunningRegistry, tmp_path: Path) -> None:
    registry.push("open/many", "1", ADDITION)
    store = tmp_path / "store"
    async with serving(store, **allowing(registry, store)) as served:
        statuses, children = [], set()

        async def ask() -> None:
            statuses.append((await served.ask(f"/v2/{registry.address}/open/many/manifests/1")).status)
            children.update(served.images.child_pids)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
        assert statuses == [200] * 20
        assert len(children) <= 1


async def test_damage_is_mended_from_the_registry(registry: RunningRegistry, tmp_path: Path) -> None:
    digest, store = registry.push("open/mended", "1", ADDITION), tmp_path / "store"
    name = f"/v2/{registry.address}/open/mended"
    async with serving(store, **allowing(registry, store)) as served:
        assert (await served.ask(f"{name}/manifests/1")).status == 200
        layout = OciLayout(store)
        layout.path(Digest.parse(MODULE)).write_bytes(b"\0asm rotten")
        assert (await served.ask(f"{name}/blobs/{MODULE}")).body == ADDITION
        layout.path(Digest.parse(digest)).write_bytes(b"{}")
        assert (await served.ask(f"{name}/manifests/{digest}")).headers["docker-content-digest"] == digest
        assert layout.read(Digest.parse(digest), 10_000)


async def test_what_holds_no_module_is_not_served(registry: RunningRegistry, tmp_path: Path) -> None:
    layer = push_blob(registry.address, "open/text", b"no module", "text/plain")
    config = push_blob(registry.address, "open/text", b"{}", "application/x")
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    push_manifest(registry.address, "open/text", "1", manifest)
    store = tmp_path / "store"
    async with serving(store, **allowing(registry, store)) as served:
        refused = await served.ask(f"/v2/{registry.address}/open/text/manifests/1")
        assert (refused.status, refused.code) == (404, "MANIFEST_UNKNOWN")
        assert "no WebAssembly module" in refused.body.decode()


async def test_a_client_that_a_pull_takes_too_long_for_is_asked_to_come_back(
    registry: RunningRegistry, tmp_path: Path
) -> None:
    registry.push("open/slow", "1", ADDITION)
    store = tmp_path / "store"
    async with serving(store, **allowing(registry, store, patience=Patience(wait_s=0))) as served:
        path = f"/v2/{registry.address}/open/slow/manifests/1"
        later = await served.ask(path)
        assert (later.status, later.code, "retry-after" in later.headers) == (503, "UNAVAILABLE", True)
        with anyio.fail_after(30):  # the pull goes on by itself
            while (await served.ask(path)).status != 200:  # noqa: ASYNC110  (only the mirror knows, and it is asked)
                await anyio.sleep(0.05)


async def test_an_own_image_is_never_looked_for_at_the_mirror_itself(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put_image(store, "localhost/a:1")
    async with serving(store, allow=("*",)) as served:
        assert (await served.ask(f"/v2/{served.mirror.address}/a/manifests/2")).code == "NAME_UNKNOWN"
        assert (await served.ask("/v2/a/manifests/2")).code == "MANIFEST_UNKNOWN"


async def test_an_image_that_the_policy_denies_is_not_served(registry: RunningRegistry, tmp_path: Path) -> None:
    for name in ("denied", "granted"):
        registry.push(f"open/{name}", "1", ADDITION)
    store, policy = tmp_path / "store", tmp_path / "policy.toml"
    policy.write_text(f'[repositories."{registry.address}/open/denied"]\nrule = "deny"\n')
    images = ImagesSettings(store, RegistrySettings(signature_policy=policy, use_docker_config=False))
    async with serving(store, **{**allowing(registry, store), "images": images}) as served:
        refused = await served.ask(f"/v2/{registry.address}/open/denied/manifests/1")
        assert (refused.status, refused.code) == (403, "DENIED")
        assert "denied by the signature policy" in refused.body.decode()
        assert (await served.ask(f"/v2/{registry.address}/open/granted/manifests/1")).status == 200
        policy.write_text("a typing error")
        refused = await served.ask(f"/v2/{registry.address}/open/granted/manifests/{MODULE}")
        assert (refused.status, refused.code) == (403, "DENIED")
        assert str(tmp_path) not in refused.body.decode()


async def test_signatures_of_an_image_are_pulled_with_both_of_their_forms(
    registry: RunningRegistry, tmp_path: Path
) -> None:
    digest, address, store = registry.push("open/signed", "1", ADDITION), registry.address, tmp_path / "store"
    payload = push_blob(address, "open/signed", b'{"critical":{}}', SIMPLE_SIGNING)
    config = push_blob(address, "open/signed", b"{}", "application/vnd.oci.image.config.v1+json")
    tag = f"{digest.replace(':', '-')}.sig"
    signature = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [payload]}
    by_tag = push_manifest(address, "open/signed", tag, signature)
    subject = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1}
    bundle = {**signature, "artifactType": BUNDLE, "subject": subject}
    by_subject = push_manifest(address, "open/signed", "bundle", bundle)
    entry = {"mediaType": OCI_MANIFEST, "digest": by_subject, "size": len(json.dumps(bundle)), "artifactType": BUNDLE}
    listed = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    push_manifest(address, "open/signed", digest.replace(":", "-"), listed)
    async with serving(store, **allowing(registry, store)) as served:
        name = f"/v2/{address}/open/signed"
        assert (await served.ask(f"{name}/manifests/{tag}")).headers["docker-content-digest"] == by_tag
        assert (await served.ask(f"{name}/blobs/{payload['digest']}")).body == b'{"critical":{}}'
        (found,) = (await served.ask(f"{name}/referrers/{digest}")).json["manifests"]
        assert (found["digest"], found["artifactType"]) == (by_subject, BUNDLE)
        assert (await served.ask(f"{name}/manifests/{by_subject}")).status == 200
        none = str(Digest.of(b"unsigned"))
        missing = await served.ask(f"{name}/manifests/{none.replace(':', '-')}.sig")
        assert (missing.status, missing.code) == (404, "MANIFEST_UNKNOWN")


async def test_a_container_image_that_holds_a_module_is_passed_on_as_it_is(
    registry: RunningRegistry, tmp_path: Path
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        entry = tarfile.TarInfo("addition.wasm")
        entry.size = len(ADDITION)
        tar.addfile(entry, io.BytesIO(ADDITION))
    layer = push_blob(registry.address, "open/tar", archive.getvalue(), "application/vnd.oci.image.layer.v1.tar+gzip")
    config = push_blob(registry.address, "open/tar", b'{"os":"wasi"}', "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    push_manifest(registry.address, "open/tar", "1", manifest)
    store = tmp_path / "store"
    async with serving(store, **allowing(registry, store)) as served:
        settings = RegistrySettings(hosts={registry.address: HostSettings(mirrors=(served.mirror.address,))})
        other = OciLayout(tmp_path / "other")
        pulled = await to_thread.run_sync(pull, f"{registry.address}/open/tar:1", other, settings)
        assert pulled.path.read_bytes() == ADDITION
        assert (await served.ask(f"/v2/open/tar/blobs/{layer['digest']}")).body == archive.getvalue()
