"""Images in a file and out again: whole, the same each time, read by skopeo, and nothing damaged gets in."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proplet.oci.archive import contents, export, stored, whole_file
from proplet.oci.archive_names import SUBJECT
from proplet.oci.archive_source import open_source
from proplet.oci.artifact import make_artifact
from proplet.oci.digest import Digest
from proplet.oci.errors import DiskFull, InvalidArchive, NotInStore, StoreDamaged
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_INDEX, OCI_MANIFEST, WASM_CONFIG, Descriptor
from proplet.oci.pull import pull
from proplet.oci.pulled import PullPolicy
from proplet.oci.settings import RegistrySettings
from proplet.oci.tarball import END, header, padding
from proplet.oci.unarchive import Imported, bring
from tests.support.disks import mounted
from tests.support.modules import module, padded

ADDITION = module("addition")
NAME = "example.com/demo/add:v1"
OFFLINE = RegistrySettings(use_docker_config=False)


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


@pytest.fixture
def other(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "other")


def put(layout: OciLayout, name: str, wasm: bytes = ADDITION) -> Descriptor:
    """Lay an image into a store as a pull does."""
    artifact = make_artifact(io.BytesIO(wasm), "add.wasm", 0)
    for data in (wasm, artifact.config, artifact.manifest):
        layout.add_blob(data)
    descriptor = Descriptor(OCI_MANIFEST, artifact.digest, len(artifact.manifest))
    layout.set_reference(name, descriptor)
    return descriptor


def sign(layout: OciLayout, image: Descriptor, *, referrer: bool) -> str:
    """Lay a signature beside an image, by cosign's tag or as a referrer."""
    layer, config = layout.add_blob(b'{"critical":{}}'), layout.add_blob(b"{}")
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(config), "size": 2},
        "layers": [{"mediaType": "application/json", "digest": str(layer), "size": 15}],
    }
    if referrer:
        document["subject"] = {"mediaType": OCI_MANIFEST, "digest": str(image.digest), "size": image.size}
    data = json.dumps(document).encode()
    digest = layout.add_blob(data)
    name = f"example.com/demo/add@{digest}" if referrer else f"example.com/demo/add:sha256-{image.digest.hex}.sig"
    annotations = {SUBJECT: str(image.digest)} if referrer else {}
    layout.set_reference(name, Descriptor(OCI_MANIFEST, digest, len(data), annotations))
    return name


def exported(layout: OciLayout, *names: str) -> bytes:
    target = io.BytesIO()
    export(layout, names, target.write)
    return target.getvalue()


def imported(layout: OciLayout, data: bytes, repository: str = "localhost/file") -> Imported:
    with open_source(io.BytesIO(data), "file.tar", layout.root) as source:
        return bring(source, layout, repository=repository)


def rewritten(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """An archive with its files changed."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    change(files)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return target.getvalue()


def blobs(layout: OciLayout) -> set[str]:
    return {path.name for path in (layout.root / "blobs/sha256").iterdir()}


def test_an_image_goes_through_a_file_and_runs_from_another_store(store: OciLayout, other: OciLayout) -> None:
    image = put(store, NAME)
    told: list[tuple[int, int]] = []
    data = exported(store, NAME)
    with open_source(io.BytesIO(data), "file.tar", other.root) as source:
        done = bring(source, other, repository="localhost/x", progress=lambda *how: told.append(how))
    assert [(entry.name, entry.digest, entry.size) for entry in done.images] == [(NAME, image.digest, len(ADDITION))]
    assert told[-1][0] == told[-1][1] == done.copied_bytes
    found = pull(NAME, other, OFFLINE, policy=PullPolicy.NEVER)
    assert (found.path.read_bytes(), found.manifest_digest) == (ADDITION, image.digest)
    assert not list(other.root.glob(".tmp-*"))


def test_the_same_images_are_the_same_bytes(store: OciLayout, other: OciLayout) -> None:
    names = [NAME, "example.com/other:1"]
    for layout, order in ((store, names), (other, names[::-1])):
        for name in order:
            put(layout, name)
    assert exported(store, *names) == exported(other, *names[::-1])


def test_signatures_and_referrers_come_along_and_go_on(store: OciLayout, other: OciLayout, tmp_path: Path) -> None:
    image = put(store, NAME)
    names = [sign(store, image, referrer=True), sign(store, image, referrer=False)]
    put(store, "example.com/unrelated:1", module("counter"))
    done = imported(other, exported(store, NAME))
    assert sorted(entry.name for entry in done.signatures) == sorted(names)
    assert [entry.name for entry in done.images] == [NAME]
    for name in names:
        assert other.resolve(name) == store.resolve(name)
    third = OciLayout(tmp_path / "third")
    assert len(imported(third, exported(other, NAME)).signatures) == 2
    assert blobs(third) == blobs(other)


def test_an_image_is_found_by_tag_digest_and_url(store: OciLayout) -> None:
    image = put(store, NAME)
    put(store, "https://example.com/add.wasm")
    url = "https://example.com/add.wasm"
    for name in (NAME, f"example.com/demo/add@{image.digest}", url, f"{url}#sha256={Digest.of(ADDITION).hex}"):
        found, descriptor = stored(store, name)
        assert (found, descriptor.digest) == (name.partition("#")[0], image.digest)
    with pytest.raises(NotInStore, match="image ls"):
        stored(store, "https://example.com/other.wasm")
    with pytest.raises(NotInStore, match="image ls"):
        stored(store, "example.com/demo/add:v2")


def test_a_module_by_url_travels_under_its_url(store: OciLayout, other: OciLayout) -> None:
    put(store, "https://example.com/x/add.wasm")
    done = imported(other, exported(store, "https://example.com/x/add.wasm"))
    assert [entry.name for entry in done.images] == ["https://example.com/x/add.wasm"]


def test_an_index_is_exported_with_the_part_that_was_pulled(store: OciLayout, other: OciLayout) -> None:
    image = put(store, NAME)
    absent = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"arm")), "size": 3}
    entries = [
        {**absent, "platform": {"os": "linux", "architecture": "arm64"}},
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(image.digest),
            "size": image.size,
            "platform": {"os": "wasi", "architecture": "wasm"},
        },
    ]
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    top = Descriptor(OCI_INDEX, store.add_blob(data), len(data))
    store.set_reference("example.com/multi:1", top)
    found = contents(store, ["example.com/multi:1"])
    assert [one.digest for one in found.manifests] == [image.digest, top.digest]
    done = imported(other, exported(store, "example.com/multi:1"))
    assert (done.images[0].digest, done.refused) == (top.digest, [])
    assert pull("example.com/multi:1", other, OFFLINE, policy=PullPolicy.NEVER).path.read_bytes() == ADDITION


def test_what_docker_saves_of_an_image_from_scratch_runs(other: OciLayout) -> None:
    """Names by containerd, the module in a plain tar layer, and Docker's own files beside the layout."""

    def tar(files: dict[str, bytes]) -> bytes:
        return b"".join(header(name, len(body)) + body + padding(len(body)) for name, body in files.items()) + END

    def described(data: bytes, kind: str) -> dict[str, Any]:
        blobs_[f"blobs/sha256/{Digest.of(data).hex}"] = data
        return {"mediaType": kind, "digest": str(Digest.of(data)), "size": len(data)}

    blobs_: dict[str, bytes] = {}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [described(tar({"add.wasm": ADDITION}), "application/vnd.oci.image.layer.v1.tar")],
    }
    top = described(json.dumps(document).encode(), OCI_MANIFEST) | {
        "annotations": {"io.containerd.image.name": "docker.io/library/add:1", "org.opencontainers.image.ref.name": "1"}
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    own = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "manifest.json": b"[]", "repositories": b"{}"}
    assert [one.name for one in imported(other, tar({**blobs_, "index.json": index, **own})).images] == [
        "docker.io/library/add:1"
    ]
    assert pull("add:1", other, OFFLINE, policy=PullPolicy.NEVER).path.read_bytes() == ADDITION


def test_a_rotten_or_missing_blob_is_not_exported(store: OciLayout, tmp_path: Path) -> None:
    put(store, NAME)
    blob = store.path(Digest.of(ADDITION))
    blob.write_bytes(b"\0asm rotten")
    target = tmp_path / "out/x.tar"
    target.parent.mkdir()
    with pytest.raises(StoreDamaged, match="pull again"), whole_file(target) as file:
        export(store, [NAME], file.write)
    assert list(target.parent.iterdir()) == []
    blob.unlink()
    with pytest.raises(NotInStore, match="pull the image again"):
        exported(store, NAME)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.tar"
    target.write_bytes(b"before")
    with pytest.raises(NotInStore), whole_file(target) as file:
        export(OciLayout(tmp_path / "empty"), [NAME], file.write)
    assert target.read_bytes() == b"before"
    with whole_file(target) as file:
        file.write(b"after")
    assert target.read_bytes() == b"after"
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar", "empty"}


def test_a_full_disk_leaves_no_part_of_a_file(store: OciLayout, tmp_path: Path) -> None:
    put(store, NAME, padded(ADDITION, 9_000_000))
    with mounted(tmp_path / "disk", "size=4m") as disk:
        with pytest.raises(DiskFull, match=r"x\.tar"), whole_file(disk / "x.tar") as file:
            export(store, [NAME], file.write)
        assert [path for path in disk.iterdir() if path.is_file()] == []


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_never_gets_in(store: OciLayout, tmp_path_factory: Any, data: st.DataObject) -> None:
    image = put(store, NAME)
    whole = exported(store, NAME)
    damaged = bytearray(whole)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    fresh = OciLayout(tmp_path_factory.mktemp("fresh"))
    try:
        done = imported(fresh, bytes(damaged))
    except InvalidArchive:
        done = Imported()
    for entry in done.images:  # what was changed was not part of the image, or was its name
        assert entry.digest == image.digest
        assert pull(entry.name, fresh, OFFLINE, policy=PullPolicy.NEVER).path.read_bytes() == ADDITION
    for name in blobs(fresh):
        fresh.verify(Digest("sha256", name))


@given(st.integers(0, 6000))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_archive_that_was_cut_short_is_refused(store: OciLayout, tmp_path_factory: Any, length: int) -> None:
    put(store, NAME)
    whole = exported(store, NAME)
    fresh = OciLayout(tmp_path_factory.mktemp("fresh"))
    short = whole[: min(length, len(whole) - 1600)]
    with suppress(InvalidArchive):
        assert imported(fresh, short).refused
    assert fresh.references() == {}


def test_an_image_that_is_not_whole_is_refused_and_the_others_come(store: OciLayout, other: OciLayout) -> None:
    put(store, NAME)
    put(store, "example.com/counter:1", module("counter"))
    data = rewritten(
        exported(store, NAME, "example.com/counter:1"),
        lambda files: files.pop(f"blobs/sha256/{Digest.of(ADDITION).hex}"),
    )
    done = imported(other, data)
    assert [entry.name for entry in done.images] == ["example.com/counter:1"]
    assert done.refused[0][0] == NAME
    assert "is not in the archive" in done.refused[0][1]
    assert NAME not in other.references()


def test_what_the_store_has_need_not_be_in_the_archive(store: OciLayout, other: OciLayout) -> None:
    put(store, NAME)
    put(other, "example.com/elsewhere:1")
    done = imported(other, rewritten(exported(store, NAME), lambda files: files.pop(
        f"blobs/sha256/{Digest.of(ADDITION).hex}")))  # fmt: skip
    assert (done.images[0].name, done.copied_bytes) == (NAME, 0)


def test_a_name_that_meant_another_image_is_said(store: OciLayout, other: OciLayout) -> None:
    put(store, NAME)
    before = put(other, NAME, module("counter"))
    assert imported(other, exported(store, NAME)).images[0].replaced == before.digest
    assert imported(other, exported(store, NAME)).images[0].replaced is None


def test_what_holds_no_module_is_refused(store: OciLayout, other: OciLayout) -> None:
    layer = store.add_blob(b"not a module")
    config = store.add_blob(b"{}")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": WASM_CONFIG, "digest": str(config), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": str(layer), "size": 12}],
    }
    data = json.dumps(document).encode()
    store.set_reference("example.com/text:1", Descriptor(OCI_MANIFEST, store.add_blob(data), len(data)))
    done = imported(other, exported(store, "example.com/text:1"))
    assert (done.images, done.refused[0][0]) == ([], "example.com/text:1")
    assert blobs(other) == set()


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(InvalidArchive, match=match):
        yield


def test_what_is_no_archive_of_images_is_told_apart(store: OciLayout, other: OciLayout, tmp_path: Path) -> None:
    put(store, NAME)
    whole = exported(store, NAME)
    with refused("no OCI image layout"):
        imported(other, rewritten(whole, lambda files: files.pop("oci-layout")))
    with refused("docker 25 or newer"):
        imported(other, rewritten(whole, lambda files: files.update({"manifest.json": files.pop("index.json")})))
    with refused("another version"):
        imported(other, rewritten(whole, lambda files: files.update({"oci-layout": b'{"imageLayoutVersion":"2"}'})))
    with refused("not a JSON object"):
        imported(other, rewritten(whole, lambda files: files.update({"index.json": b"["})))
    with refused("holds no images"):
        imported(other, rewritten(whole, lambda files: files.update({"index.json": b'{"manifests":[]}'})))
    with refused("compressed with zstd"):
        imported(other, b"\x28\xb5\x2f\xfd" + bytes(600))
    with refused("no OCI image layout"), open_source(tmp_path / "store/blobs", "blobs", other.root) as source:
        bring(source, other, repository="localhost/x")


def test_a_compressed_archive_is_read_and_a_bomb_is_not(store: OciLayout, other: OciLayout) -> None:
    put(store, NAME)
    assert imported(other, gzip.compress(exported(store, NAME))).images[0].name == NAME
    with refused("damaged or cut short"):
        imported(other, gzip.compress(exported(store, NAME))[:-20])
    with refused("unpacks to far more"):
        imported(other, gzip.compress(bytes(100 * 1024 * 1024)))
    assert not list(other.root.glob(".tmp-*"))


def test_a_directory_is_read_and_its_links_are_not(store: OciLayout, other: OciLayout, tmp_path: Path) -> None:
    put(store, NAME)
    with open_source(store.root, "store", other.root) as source:
        assert bring(source, other, repository="localhost/x").images[0].name == NAME
    blob = store.path(Digest.of(ADDITION))
    blob.rename(tmp_path / "aside")
    blob.symlink_to(tmp_path / "aside")
    fresh = OciLayout(tmp_path / "fresh")
    with refused("is a link"), open_source(store.root, "store", fresh.root) as source:
        done = bring(source, fresh, repository="localhost/x")
        raise InvalidArchive(done.refused[0][1])
    assert fresh.references() == {}
