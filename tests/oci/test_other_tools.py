"""Images of other people's tools are run, and these tools read and write our store: skopeo, the oras command line."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.ports import Job, ModuleWanted
from proplet.agent.wire import PullPolicy as Policy
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST
from proplet.oci.pull import PullPolicy, pull
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.oci.stored import missing
from tests.runtime.conftest import open_node
from tests.support.image_tools import ImageTool, oras, skopeo
from tests.support.registry import (
    ADDITION,
    PASSWORD,
    USER,
    RunningRegistry,
    make_tls_files,
    running_registry,
)

pytestmark = [pytest.mark.registry, pytest.mark.source]  # oras is built out of the checkout

SETTINGS = RegistrySettings(use_docker_config=False, first_retry_wait_s=0.01)
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def skopeo_(tmp_path: Path) -> ImageTool:
    (tmp_path / "home").mkdir(exist_ok=True)
    return skopeo(tmp_path / "home")


@pytest.fixture
def oras_(tmp_path: Path) -> ImageTool:
    (tmp_path / "home").mkdir(exist_ok=True)
    return oras(tmp_path / "home")


@pytest.fixture
def wasm(tmp_path: Path) -> Path:
    (tmp_path / "add.wasm").write_bytes(ADDITION)
    return tmp_path / "add.wasm"


async def run(directory: Path, image: str, policy: Policy = Policy.ALWAYS) -> str:
    """40 + 2 by the module of an image, in a node of its own."""
    async with open_node(directory) as node:
        artefact = await node.modules.prepare(ModuleWanted(image_url=image, pull_policy=policy), lambda _: None)
        outcome = await node.runtime.run(Job("sum", artefact, "main", ("40", "2")))
        return str(outcome.results)


def container_layout(directory: Path, *, compressed: bool = True) -> Path:
    """A container image FROM scratch with the module as its one file, as a layout on disk, like a builder's."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("add.wasm")
        member.size, member.mode = len(ADDITION), 0o755
        archive.addfile(member, io.BytesIO(ADDITION))
    layer = gzip.compress(tar.getvalue(), mtime=0) if compressed else tar.getvalue()
    config = json.dumps(
        {
            "architecture": "wasm",
            "os": "wasip1",
            "config": {"Entrypoint": ["/add.wasm"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"]},
            "history": [{"created_by": "COPY add.wasm /"}],
        }
    ).encode()
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": put(config, CONFIG),
        "layers": [put(layer, LAYER if compressed else LAYER.removesuffix("+gzip"))],
    }
    entry = put(json.dumps(manifest).encode(), OCI_MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "built"}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return directory


@pytest.mark.anyio
@pytest.mark.parametrize(
    "file",
    [
        "add.wasm:application/wasm",
        "add.wasm:application/vnd.wasm.content.layer.v1+wasm",
        "add.wasm",
    ],
)
async def test_what_oras_pushes_is_run(
    registry: RunningRegistry, oras_: ImageTool, wasm: Path, tmp_path: Path, file: str
) -> None:
    image = f"{registry.address}/oras/add:v1"
    oras_.run("push", "--plain-http", image, file, cwd=wasm.parent)
    assert await run(tmp_path / "node", image) == "42"


@pytest.mark.anyio
async def test_what_oras_pushes_with_a_configuration_and_annotations_is_run(
    registry: RunningRegistry, oras_: ImageTool, wasm: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "wasm", "os": "wasip1", "layerDigests": []}')
    image = f"{registry.address}/oras/full:v1"
    config = "config.json:application/vnd.wasm.config.v0+json"
    annotation = "org.opencontainers.image.source=https://example.org"
    oras_.run(
        "push", "--plain-http", "--config", config, "--annotation", annotation, image, "add.wasm:application/wasm",
        cwd=tmp_path,
    )  # fmt: skip
    assert await run(tmp_path / "node", image) == "42"


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["oci", "v2s2"])
@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "tar"])
async def test_a_container_image_that_skopeo_pushes_is_run(
    registry: RunningRegistry, skopeo_: ImageTool, tmp_path: Path, form: str, compressed: bool
) -> None:
    built = container_layout(tmp_path / "built", compressed=compressed)
    image = f"{registry.address}/skopeo/{form}-{'gzip' if compressed else 'tar'}:v1"
    skopeo_.run("copy", "--insecure-policy", "--dest-tls-verify=false", "--format", form, f"oci:{built}:built",
                f"docker://{image}")  # fmt: skip
    assert await run(tmp_path / "node", image) == "42"


@pytest.mark.anyio
async def test_what_skopeo_writes_into_the_store_is_run_without_a_registry(
    registry: RunningRegistry, skopeo_: ImageTool, tmp_path: Path
) -> None:
    registry.push("lib/add", "v1", ADDITION, config_media_type=CONFIG)
    store = OciLayout(tmp_path / "node/store")
    held = registry.push("lib/held", "v1", ADDITION + b"\0\2\1h")
    pull(f"{registry.address}/lib/held:v1", store, SETTINGS)
    name = "registry.example:5000/team/add:v1"
    built = container_layout(tmp_path / "built")
    skopeo_.run("copy", "--insecure-policy", f"oci:{built}:built", f"oci:{store.root}:{name}")
    assert str(store.references()[f"{registry.address}/lib/held:v1"].digest) == held
    assert not missing(store)
    assert pull(f"{registry.address}/lib/held:v1", store, SETTINGS, policy=PullPolicy.NEVER).from_cache
    assert await run(tmp_path / "node", name, Policy.NEVER) == "42"


def test_skopeo_reads_our_store(registry: RunningRegistry, skopeo_: ImageTool, tmp_path: Path) -> None:
    store = OciLayout(tmp_path / "store")
    name = f"{registry.address}/ours/add:v1"
    built = container_layout(tmp_path / "built")
    skopeo_.run("copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{built}:built", f"docker://{name}")
    module = pull(name, store, SETTINGS)
    seen = json.loads(skopeo_.run("inspect", f"oci:{store.root}:{name}"))
    assert Digest.parse(seen["Digest"]) == module.manifest_digest
    assert (seen["Architecture"], seen["Os"]) == ("wasm", "wasip1")
    raw = skopeo_.run("inspect", "--raw", f"oci:{store.root}:{name}")
    assert Digest.of(raw.encode()) == module.manifest_digest
    skopeo_.run("copy", "--insecure-policy", f"oci:{store.root}:{name}", f"oci:{tmp_path / 'copy'}:again")
    again = pull("again", copied(tmp_path / "copy", "again"), SETTINGS, policy=PullPolicy.NEVER)
    assert again.path.read_bytes() == ADDITION
    back = f"{registry.address}/back/add:v1"
    skopeo_.run("copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{store.root}:{name}", f"docker://{back}")
    assert pull(back, OciLayout(tmp_path / "other"), SETTINGS).manifest_digest == module.manifest_digest


def copied(directory: Path, name: str) -> OciLayout:
    """Another tool's layout as our store, in which its short name is what we would call it."""
    layout = OciLayout(directory)
    layout.set_reference(f"docker.io/library/{name}:latest", layout.references()[name])
    return layout


def test_oras_reads_our_store(registry: RunningRegistry, oras_: ImageTool, tmp_path: Path) -> None:
    store = OciLayout(tmp_path / "store")
    name = f"{registry.address}/ours/artifact:v1"
    digest = registry.push("ours/artifact", "v1", ADDITION, title="add.wasm")
    assert str(pull(name, store, SETTINGS).manifest_digest) == digest
    fetched = oras_.run("manifest", "fetch", "--oci-layout", f"{store.root}@{digest}")
    assert str(Digest.of(fetched.encode())) == digest
    oras_.run("pull", "--oci-layout", f"{store.root}@{digest}", "--output", tmp_path / "out")
    assert (tmp_path / "out/add.wasm").read_bytes() == ADDITION
    copy = f"{registry.address}/back/artifact:v1"
    oras_.run("cp", "--from-oci-layout", f"{store.root}@{digest}", "--to-plain-http", copy)
    assert pull(copy, OciLayout(tmp_path / "other"), SETTINGS).module_digest == Digest.of(ADDITION)


@pytest.mark.anyio
async def test_of_an_index_of_platforms_the_one_for_wasm_is_run(
    registry: RunningRegistry, oras_: ImageTool, wasm: Path, tmp_path: Path
) -> None:
    """As oras makes one: for linux a text, for wasm the module."""
    repository = f"{registry.address}/oras/multi"
    (tmp_path / "text").write_text("not for us")
    for tag, file, system, architecture in (
        ("linux", "text", "linux", "arm64"),
        ("wasm", "add.wasm", "wasip1", "wasm"),
    ):
        (tmp_path / f"{tag}.json").write_text(json.dumps({"os": system, "architecture": architecture}))
        oras_.run("push", "--plain-http", "--config", f"{tag}.json:{CONFIG}", f"{repository}:{tag}",
                  f"{file}:application/wasm", cwd=tmp_path)  # fmt: skip
    oras_.run("manifest", "index", "create", "--plain-http", f"{repository}:v1", "linux", "wasm")
    assert await run(tmp_path / "node", f"{repository}:v1") == "42"


def test_oras_login_is_enough_for_us(oras_: ImageTool, wasm: Path, tmp_path: Path) -> None:
    """It writes what `docker login` writes."""
    with running_registry(tmp_path / "private", basic=True, tls=make_tls_files(tmp_path / "tls")) as private:
        ca = ("--ca-file", str(private.ca_file))
        oras_.run("login", *ca, "--username", USER, "--password", PASSWORD, private.address)
        image = f"{private.address}/team/add:v1"
        oras_.run("push", *ca, image, "add.wasm:application/wasm", cwd=wasm.parent)
        settings = RegistrySettings(
            hosts={private.address: HostSettings(ca_file=private.ca_file)},
            docker_config=tmp_path / "home/.docker/config.json",
        )
        assert pull(image, OciLayout(tmp_path / "store"), settings).path.read_bytes() == ADDITION
