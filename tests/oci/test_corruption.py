"""Whatever byte is changed, cut off or added, in a registry or in our store: it is found, and pulled again."""

import contextlib
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proplet.oci.digest import Digest
from proplet.oci.errors import ContentFault, OciError, RegistryFault, StoreDamaged
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_INDEX, OCI_MANIFEST
from proplet.oci.pull import PullPolicy, pull
from proplet.oci.settings import RegistrySettings
from tests.support.registry import RunningRegistry, descriptor, push_blob, push_manifest, running_registry

pytestmark = pytest.mark.registry

SETTINGS = RegistrySettings(use_docker_config=False, max_attempts=2, first_retry_wait_s=0.001, total_timeout_s=20)
MODULE = b"\0asm\1\0\0\0" + b"\0\xa0\x06\3pad" + bytes(range(256)) * 3
CONFIG = "application/vnd.oci.image.config.v1+json"
MANY = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True, repr=False)
class Image:
    """An index, its manifest, its configuration and its layer, in a registry and in a store that pulled it."""

    name: str
    pinned: str
    registry: RunningRegistry
    store: OciLayout
    parts: tuple[Digest, ...]
    originals: dict[Digest, bytes]

    def in_registry(self, digest: Digest) -> Path:
        return self.registry.storage / f"docker/registry/v2/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module", params=["module", "container"])
def image(request: pytest.FixtureRequest, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory) -> Image:
    repository = f"demo/{request.param}"
    layer, layer_type = MODULE, "application/wasm"
    if request.param == "container":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            member = tarfile.TarInfo("main.wasm")
            member.size = len(MODULE)
            tar.addfile(member, io.BytesIO(MODULE))
        layer, layer_type = gzip.compress(out.getvalue(), mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip"
    config = b'{"architecture": "wasm", "os": "wasip1", "layerDigests": []}'
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": push_blob(registry.address, repository, config, CONFIG),
        "layers": [push_blob(registry.address, repository, layer, layer_type)],
    }
    push_manifest(registry.address, repository, "wasm", document)
    manifest = json.dumps(document).encode()
    entry = {**descriptor(manifest, OCI_MANIFEST), "platform": {"os": "wasip1", "architecture": "wasm"}}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    top = push_manifest(registry.address, repository, "v1", index)
    parts = (json.dumps(index).encode(), manifest, config, layer)
    originals = {Digest.of(part): part for part in parts}
    store = OciLayout(tmp_path_factory.mktemp("store"))
    name = f"{registry.address}/{repository}:v1"
    assert str(pull(name, store, SETTINGS).manifest_digest) == top
    return Image(name, f"{registry.address}/{repository}@{top}", registry, store, tuple(originals), originals)


DAMAGES: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(
        lambda at, mask: lambda data: _flipped(data, int(at * len(data)), mask),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    ),
    st.builds(lambda at: lambda data: data[: int(at * len(data))], st.floats(0, 1, exclude_max=True)),
    st.builds(lambda more: lambda data: data + more, st.binary(min_size=1, max_size=64)),
    st.builds(lambda at: lambda data: _dropped(data, int(at * len(data))), st.floats(0, 1, exclude_max=True)),
)


def _flipped(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def _dropped(data: bytes, at: int) -> bytes:
    return data[:at] + data[at + 1 :]


def assert_whole(image: Image, store: OciLayout) -> None:
    for digest, original in image.originals.items():
        assert store.path(digest).read_bytes() == original


@MANY
@given(part=st.integers(0, 3), damage=DAMAGES, pinned=st.booleans())
def test_damage_in_the_registry_never_gets_into_a_store(
    image: Image, tmp_path_factory: pytest.TempPathFactory, part: int, damage: Callable[[bytes], bytes], pinned: bool
) -> None:
    """The registry has no digest of its own to compare with: it delivers what it finds."""
    digest = image.parts[part]
    file = image.in_registry(digest)
    store = OciLayout(tmp_path_factory.mktemp("fresh"))
    file.write_bytes(damage(image.originals[digest]))
    name = image.pinned if pinned else image.name
    try:
        with pytest.raises(OciError) as caught:
            pull(name, store, SETTINGS)
    finally:
        file.write_bytes(image.originals[digest])
    assert isinstance(caught.value, ContentFault | RegistryFault), repr(caught.value)
    assert "\n" not in str(caught.value)
    assert store.references() == {}
    for blob in (store.root / "blobs/sha256").glob("[!.]*"):
        store.verify(Digest("sha256", blob.name))
    assert pull(name, store, SETTINGS).path.read_bytes() == MODULE
    assert_whole(image, store)


@MANY
@given(part=st.integers(0, 3), damage=DAMAGES)
def test_damage_in_the_store_is_found_and_repaired(image: Image, part: int, damage: Callable[[bytes], bytes]) -> None:
    digest = image.parts[part]
    image.store.path(digest).write_bytes(damage(image.originals[digest]))
    with pytest.raises(StoreDamaged) as caught:
        pull(image.name, image.store, SETTINGS, policy=PullPolicy.NEVER)
    assert "\n" not in str(caught.value)
    assert pull(image.name, image.store, SETTINGS).path.read_bytes() == MODULE
    assert_whole(image, image.store)
    assert pull(image.name, image.store, SETTINGS, policy=PullPolicy.NEVER).from_cache


@MANY
@given(part=st.integers(0, 3), damage=DAMAGES, policy=st.sampled_from([PullPolicy.ALWAYS, PullPolicy.IF_NOT_PRESENT]))
def test_damage_in_both_is_not_taken_for_the_image(
    image: Image, part: int, damage: Callable[[bytes], bytes], policy: PullPolicy
) -> None:
    digest = image.parts[part]
    for file in (image.store.path(digest), image.in_registry(digest)):
        file.write_bytes(damage(image.originals[digest]))
    try:
        with pytest.raises(OciError):
            pull(image.name, image.store, SETTINGS, policy=policy)
    finally:
        image.in_registry(digest).write_bytes(image.originals[digest])
    assert pull(image.name, image.store, SETTINGS, policy=PullPolicy.ALWAYS).path.read_bytes() == MODULE
    assert_whole(image, image.store)


@MANY
@given(first=st.integers(0, 3), second=st.integers(0, 3))
def test_parts_that_stand_for_each_other_are_found(image: Image, first: int, second: int) -> None:
    """As a file system mixes them up after a power failure."""
    one, other = image.parts[first], image.parts[second]
    image.store.path(one).write_bytes(image.originals[other])
    if one != other:
        with pytest.raises(StoreDamaged):
            pull(image.name, image.store, SETTINGS, policy=PullPolicy.NEVER)
    assert pull(image.name, image.store, SETTINGS).path.read_bytes() == MODULE
    assert_whole(image, image.store)


@MANY
@given(part=st.integers(0, 3))
def test_a_part_that_is_gone_is_pulled_again(image: Image, part: int) -> None:
    """But for the configuration, which nothing is run from: only `Always` notices that it is not there."""
    image.store.remove_blob(image.parts[part])
    for policy in (PullPolicy.IF_NOT_PRESENT, PullPolicy.ALWAYS):
        assert pull(image.name, image.store, SETTINGS, policy=policy).path.read_bytes() == MODULE
    assert_whole(image, image.store)


@MANY
@given(damage=DAMAGES)
def test_a_damaged_index_is_understood_or_named(image: Image, damage: Callable[[bytes], bytes]) -> None:
    """It has no digest. Whatever it says, what is run is what was asked for, byte for byte, or nothing."""
    file = image.store.root / "index.json"
    original = file.read_bytes()
    file.write_bytes(damage(original))
    with contextlib.suppress(OciError):
        assert pull(image.pinned, image.store, SETTINGS, policy=PullPolicy.NEVER).path.read_bytes() == MODULE
    file.write_bytes(original)
