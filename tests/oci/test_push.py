"""Pushes to a real registry: what arrives, what is not sent twice, and what each refusal is called."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proplet.oci.archive_names import SUBJECT
from proplet.oci.connection import Connection
from proplet.oci.digest import Digest
from proplet.oci.errors import DigestMismatch, NotInStore, NotWasm, OciError, TooLarge, Unauthorized
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from proplet.oci.pull import pull
from proplet.oci.pulled import PullPolicy
from proplet.oci.push import push_file, push_stored
from proplet.oci.reference import Reference
from proplet.oci.settings import HostSettings, RegistrySettings
from proplet.oci.upload import Blob, Uploads
from tests.support.modules import module, padded
from tests.support.registry import PASSWORD, USER, RunningRegistry, make_tls_files, running_registry

pytestmark = pytest.mark.registry

PLAIN = RegistrySettings(use_docker_config=False, first_retry_wait_s=0.01, total_timeout_s=20)
ADDITION = module("addition")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


@pytest.fixture
def wasm(tmp_path: Path) -> Path:
    file = tmp_path / "add.wasm"
    file.write_bytes(ADDITION)
    return file


def reference(registry: RunningRegistry, name: str) -> Reference:
    return Reference.parse(f"{registry.address}/{name}")


def delivered(registry: RunningRegistry, path: str, kind: str = OCI_MANIFEST) -> Any:
    request = urllib.request.Request(f"http://{registry.address}/v2/{path}", headers={"Accept": kind})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        return json.load(answer)


def test_a_file_is_pushed_and_pulled_as_it_was(registry: RunningRegistry, store: OciLayout, wasm: Path) -> None:
    seen: list[tuple[int, int]] = []
    target = reference(registry, "trip/add:v1.0.0")
    done = push_file(wasm, target, PLAIN, created=0, progress=lambda *how: seen.append(how))
    assert (done.sent_bytes, done.signatures) == (done.size, 0)
    assert seen[-1] == (done.size, done.size)
    module_ = pull(target, store, PLAIN)
    assert (module_.manifest_digest, module_.path.read_bytes()) == (done.digest, ADDITION)
    assert (
        delivered(registry, "trip/add/manifests/v1.0.0")["annotations"]["org.opencontainers.image.version"] == "1.0.0"
    )


def test_what_the_registry_has_is_not_sent_again(registry: RunningRegistry, wasm: Path) -> None:
    first = push_file(wasm, reference(registry, "again/add:1"), PLAIN, created=0)
    second = push_file(wasm, reference(registry, "again/add:2"), PLAIN, created=0, annotations={"a": "b"})
    assert first.sent_bytes > 0 == second.sent_bytes
    assert first.digest != second.digest
    assert push_file(wasm, reference(registry, "again/add:1"), PLAIN, created=0).digest == first.digest


def test_an_image_of_the_store_keeps_its_digest_and_its_blobs_are_mounted(
    registry: RunningRegistry, store: OciLayout, wasm: Path
) -> None:
    source, target = reference(registry, "from/here:1"), reference(registry, "to/there:2")
    digest = push_file(wasm, source, PLAIN, created=0).digest
    pull(source, store, PLAIN)
    done = push_stored(store, str(source), target, PLAIN)
    assert (done.digest, done.sent_bytes) == (digest, 0)
    fresh = OciLayout(store.root.parent / "fresh")
    assert pull(target, fresh, PLAIN).manifest_digest == digest
    assert push_stored(store, str(source), None, PLAIN).reference == source


def signed(store: OciLayout, name: str, digest: Digest, size: int) -> tuple[Digest, Digest]:
    """Put a cosign-like signature and a referrer beside an image."""
    payload = store.add_blob(b'{"critical":{}}')
    config = store.add_blob(b"{}")
    layer = {"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": str(payload), "size": 15}
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(config), "size": 2},
        "layers": [layer],
    }
    found = []
    for extra in ({}, {"subject": {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": size}}):
        data = json.dumps({**document, **extra}).encode()
        made = store.add_blob(data)
        found.append(made)
        entry = Descriptor(OCI_MANIFEST, made, len(data), {SUBJECT: str(digest)} if extra else {})
        tag = f"{name}@{made}" if extra else f"{name}:sha256-{digest.hex}.sig"
        store.set_reference(tag, entry)
    return found[0], found[1]


def test_signatures_and_referrers_go_with_an_image(registry: RunningRegistry, store: OciLayout, wasm: Path) -> None:
    source, target = reference(registry, "signed/here:1"), reference(registry, "signed/there:1")
    pushed = push_file(wasm, source, PLAIN, created=0)
    pull(source, store, PLAIN)
    size = store.path(pushed.digest).stat().st_size
    signature, referrer = signed(store, source.name, pushed.digest, size)
    assert push_stored(store, str(source), target, PLAIN).signatures == 2
    assert delivered(registry, f"signed/there/manifests/sha256-{pushed.digest.hex}.sig")["layers"]
    listed = delivered(registry, f"signed/there/manifests/sha256-{pushed.digest.hex}", OCI_INDEX)
    assert [entry["digest"] for entry in listed["manifests"]] == [str(referrer)]
    assert delivered(registry, f"signed/there/manifests/{referrer}")["subject"]["digest"] == str(pushed.digest)
    assert signature != referrer
    push_stored(store, str(source), target, PLAIN)
    assert delivered(registry, f"signed/there/manifests/sha256-{pushed.digest.hex}", OCI_INDEX) == listed


def test_a_large_blob_goes_in_chunks(registry: RunningRegistry) -> None:
    data = padded(ADDITION, 20_000_000)
    digest, told = Digest.of(data), []
    with Connection(reference(registry, "large/blob:1"), PLAIN, actions="pull,push") as connection:
        uploads = Uploads(connection, told.append, one_request=1000)
        blob = Blob(
            digest, len(data), lambda at: iter([data[at : at + 300_000] for at in range(at, len(data), 300_000)])
        )
        assert uploads.blob(blob)
        assert not uploads.blob(blob)
    assert sum(told) == len(data)
    stored = registry.storage / f"docker/registry/v2/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data"
    assert stored.read_bytes() == data


def test_a_file_that_changed_while_it_was_pushed_is_refused_by_the_registry(registry: RunningRegistry) -> None:
    blob = Blob(Digest.of(b"before"), 6, lambda at: iter([b"after!"[at:]]))
    with (
        Connection(reference(registry, "changed/blob:1"), PLAIN, actions="pull,push") as connection,
        pytest.raises(OciError, match="digest"),
    ):
        Uploads(connection, lambda _count: None).blob(blob)


def test_what_is_no_module_or_too_large_or_pinned_otherwise_is_not_pushed(
    registry: RunningRegistry, store: OciLayout, wasm: Path, tmp_path: Path
) -> None:
    target = reference(registry, "not/pushed:1")
    text = tmp_path / "text.wasm"
    text.write_text("(module)")
    with pytest.raises(NotWasm, match=r"text\.wasm"):
        push_file(text, target, PLAIN, created=0)
    with pytest.raises(TooLarge, match="raise it"):
        push_file(wasm, target, RegistrySettings(max_module_bytes=10), created=0)
    with pytest.raises(DigestMismatch, match="names another digest"):
        push_file(wasm, target.with_digest(Digest.of(b"x")), PLAIN, created=0)
    with pytest.raises(NotInStore, match="image ls"):
        push_stored(store, str(target), None, PLAIN)


def test_a_private_registry_takes_a_push_only_with_credentials(tmp_path: Path, wasm: Path) -> None:
    with running_registry(tmp_path / "private", basic=True, tls=make_tls_files(tmp_path / "tls")) as private:
        target = reference(private, "mine/add:1")
        open_ = HostSettings(ca_file=private.ca_file)
        known = HostSettings(ca_file=private.ca_file, username=USER, password=PASSWORD)
        with pytest.raises(Unauthorized, match="anonymous access"):
            push_file(
                wasm, target, RegistrySettings(hosts={private.address: open_}, use_docker_config=False), created=0
            )
        settings = RegistrySettings(hosts={private.address: known}, use_docker_config=False)
        digest = push_file(wasm, target, settings, created=0).digest
        assert pull(target, OciLayout(tmp_path / "s"), settings, policy=PullPolicy.ALWAYS).manifest_digest == digest


def test_oras_pulls_what_we_push(registry: RunningRegistry, wasm: Path, tmp_path: Path) -> None:
    import oras.client

    push_file(wasm, reference(registry, "for/oras:1"), PLAIN, created=0)
    client = oras.client.OrasClient(hostname=registry.address, insecure=True)
    files = client.pull(target=f"{registry.address}/for/oras:1", outdir=str(tmp_path / "out"))
    client.session.close()
    assert [Path(file).name for file in files] == ["add.wasm"]
    assert Path(files[0]).read_bytes() == ADDITION
