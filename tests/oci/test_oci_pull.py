"""Pulls from a real registry: policies, credentials, TLS, indexes, and what each failure is called."""

import gzip
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    DigestMismatch,
    ImageDenied,
    ManifestUnknown,
    NotInStore,
    OciError,
    PullCancelled,
    RegistryError,
    RegistryUnreachable,
    RepositoryUnknown,
    SignatureMissing,
    StoreDamaged,
    TlsFailed,
    Unauthorized,
)
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.pulled import Progress, PullPolicy, PullStage
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.support.registry import (
    ADDITION,
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    RunningRegistry,
    descriptor,
    make_tls_files,
    push_blob,
    push_manifest,
    running_registry,
)

pytestmark = pytest.mark.registry

PLAIN = RegistrySettings(use_docker_config=False, first_retry_wait_s=0.01, total_timeout_s=20)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """TLS and Basic authentication."""
    directory = tmp_path_factory.mktemp("private")
    with running_registry(directory, basic=True, tls=make_tls_files(directory / "tls")) as running:
        running.push("demo/add", "v1", ADDITION)
        yield running


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def failing(kind: type[OciError], reference: str, store: OciLayout, settings: RegistrySettings = PLAIN) -> str:
    with pytest.raises(kind) as caught:
        pull(reference, store, settings)
    assert type(caught.value) is kind
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def access(running: RunningRegistry, **changes: Any) -> RegistrySettings:
    host = {"ca_file": running.ca_file, "username": USER, "password": PASSWORD, **changes}
    return RegistrySettings(hosts={running.address: HostSettings(**host)}, use_docker_config=False)


def test_a_module_is_pulled_by_tag_and_recorded(registry: RunningRegistry, store: OciLayout) -> None:
    digest = registry.push("demo/add", "v1", ADDITION)
    seen: list[Progress] = []
    module = pull(f"{registry.address}/demo/add:v1", store, PLAIN, progress=seen.append)
    assert module.path.read_bytes() == ADDITION
    assert (str(module.manifest_digest), module.module_digest) == (digest, Digest.of(ADDITION))
    assert (module.size, module.media_type, module.from_cache) == (len(ADDITION), "application/wasm", False)
    assert [one.stage for one in seen] == [PullStage.RESOLVE, PullStage.DOWNLOAD, PullStage.DOWNLOAD, PullStage.DONE]
    assert seen[-1] == Progress(PullStage.DONE, len(ADDITION), len(ADDITION))
    assert store.references()[f"{registry.address}/demo/add:v1"].digest == module.manifest_digest
    for blob in (store.root / "blobs" / "sha256").iterdir():
        store.verify(Digest("sha256", blob.name))


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        "application/octet-stream",
    ],
)
def test_every_media_type_of_the_ecosystem_is_pulled(registry: RunningRegistry, store: OciLayout, kind: str) -> None:
    registry.push("demo/kinds", "v1", ADDITION, media_type=kind)
    assert pull(f"{registry.address}/demo/kinds:v1", store, PLAIN).media_type == kind


def test_if_not_present_and_never_do_not_touch_the_network(tmp_path: Path) -> None:
    store = OciLayout(tmp_path / "store")
    with running_registry(tmp_path / "registry") as registry:
        digest = registry.push("demo/add", "v1", ADDITION)
        name = f"{registry.address}/demo/add"
        with pytest.raises(NotInStore):
            pull(f"{name}:v1", store, PLAIN, policy=PullPolicy.NEVER)
        pull(f"{name}:v1", store, PLAIN)
    for policy in (PullPolicy.IF_NOT_PRESENT, PullPolicy.NEVER):
        for reference in (f"{name}:v1", f"{name}@{digest}", f"{name}:other@{digest}"):
            module = pull(reference, store, PLAIN, policy=policy)
            assert module.from_cache
            assert module.path.read_bytes() == ADDITION
        assert pull(f"{name}:x", store, PLAIN, policy=policy, expected_digest=Digest.parse(digest)).from_cache
    with pytest.raises(RegistryUnreachable):
        pull(f"{name}:v2", store, PLAIN, policy=PullPolicy.ALWAYS)
    offline = pull(f"{name}:v1", store, PLAIN, policy=PullPolicy.ALWAYS)
    assert str(offline.manifest_digest) == digest
    assert any("is used" in line for line in offline.warnings)


def test_always_sees_that_a_tag_has_moved_and_reuses_what_has_not(registry: RunningRegistry, store: OciLayout) -> None:
    name = f"{registry.address}/demo/moving:v1"
    registry.push("demo/moving", "v1", ADDITION)
    first = pull(name, store, PLAIN)
    newer = ADDITION + b"\x00\x02\x01x"  # a custom section
    registry.push("demo/moving", "v1", newer)
    assert pull(name, store, PLAIN).module_digest == first.module_digest
    moved = pull(name, store, PLAIN, policy=PullPolicy.ALWAYS)
    assert (moved.module_digest, moved.from_cache) == (Digest.of(newer), False)
    assert pull(name, store, PLAIN, policy=PullPolicy.ALWAYS).from_cache
    pinned = pull(name, store, PLAIN, expected_digest=first.manifest_digest)
    assert pinned.module_digest == first.module_digest
    assert store.references()[name].digest == moved.manifest_digest


def test_two_digests_that_contradict_each_other_are_refused(registry: RunningRegistry, store: OciLayout) -> None:
    digest = registry.push("demo/add", "v1", ADDITION)
    with pytest.raises(DigestMismatch):
        pull(f"{registry.address}/demo/add@{digest}", store, PLAIN, expected_digest=Digest.of(b""))


def test_an_index_is_followed_to_the_entry_for_wasm(registry: RunningRegistry, store: OciLayout) -> None:
    other = registry.push("demo/multi", "other", ADDITION + b"\x00\x02\x01y")
    wasm = registry.push("demo/multi", "wasm", ADDITION)
    entries = [
        {**entry(registry, "demo/multi", digest), "platform": {"os": os_name, "architecture": architecture}}
        for digest, os_name, architecture in ((other, "linux", "arm64"), (wasm, "wasi", "wasm"))
    ]
    top = push_manifest(
        registry.address, "demo/multi", "v1", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    )
    for policy in (PullPolicy.ALWAYS, PullPolicy.NEVER):
        module = pull(f"{registry.address}/demo/multi:v1", store, PLAIN, policy=policy)
        assert (str(module.manifest_digest), module.module_digest) == (top, Digest.of(ADDITION))


def entry(registry: RunningRegistry, repository: str, digest: str) -> dict[str, Any]:
    """The descriptor of a manifest that was pushed."""
    path = registry.storage / f"docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"
    return descriptor(path.read_bytes(), OCI_MANIFEST)


def test_a_blob_that_rots_in_the_registry_is_detected(registry: RunningRegistry, store: OciLayout) -> None:
    module = ADDITION + b"\x00\x02\x01r"
    registry.push("demo/rotten", "v1", module)
    digest = Digest.of(module).hex
    path = registry.storage / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    for position in (0, len(module) // 2, len(module) - 1):
        rotten = bytearray(module)
        rotten[position] ^= 0x10
        path.write_bytes(rotten)
        failing(DigestMismatch, f"{registry.address}/demo/rotten:v1", store)


def test_missing_things_have_different_names(registry: RunningRegistry, store: OciLayout) -> None:
    registry.push("demo/add", "v1", ADDITION)
    assert "has no tag nope" in failing(ManifestUnknown, f"{registry.address}/demo/add:nope", store)
    absent = Digest.of(b"absent")
    assert f"has no manifest {absent}" in failing(ManifestUnknown, f"{registry.address}/demo/add@{absent}", store)
    assert "has no repository demo/nope" in failing(RepositoryUnknown, f"{registry.address}/demo/nope:v1", store)


def test_basic_authentication_over_tls_works(private: RunningRegistry, store: OciLayout) -> None:
    reference = f"{private.address}/demo/add:v1"
    assert pull(reference, store, access(private)).path.read_bytes() == ADDITION


def test_credentials_of_docker_login_work(private: RunningRegistry, store: OciLayout, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {private.address: {"username": USER, "password": PASSWORD}}}))
    hosts = {private.address: HostSettings(ca_file=private.ca_file)}
    settings = RegistrySettings(hosts=hosts, docker_config=config)
    assert pull(f"{private.address}/demo/add:v1", store, settings).size == len(ADDITION)


def test_wrong_and_missing_credentials_are_told_apart_at_once(private: RunningRegistry, store: OciLayout) -> None:
    before = time.monotonic()
    reference = f"{private.address}/demo/add:v1"
    wrong = failing(Unauthorized, reference, store, access(private, password="guess"))
    assert "user 'user' (from the settings)" in wrong
    missing = failing(Unauthorized, reference, store, access(private, username=None, password=None))
    assert "anonymous access" in missing
    assert "set credentials" in missing
    assert time.monotonic() - before < 10


def test_a_certificate_nobody_vouches_for_is_refused(private: RunningRegistry, store: OciLayout) -> None:
    settings = access(private, ca_file=None, plain_http=False)
    assert "ca_file" in failing(TlsFailed, f"{private.address}/demo/add:v1", store, settings)
    assert pull(f"{private.address}/demo/add:v1", store, access(private, ca_file=None, insecure=True)).size


def test_a_certificate_for_another_host_or_of_the_past_is_refused(tmp_path: Path, store: OciLayout) -> None:
    with running_registry(tmp_path / "a", tls=make_tls_files(tmp_path / "other", host="DNS:elsewhere")) as other:
        reference = f"{other.address}/demo/add:v1"
        assert "the certificate is for" in failing(TlsFailed, reference, store, access(other))
    with running_registry(tmp_path / "b", tls=make_tls_files(tmp_path / "old", expired=True)) as old:
        assert "expired" in failing(TlsFailed, f"{old.address}/demo/add:v1", store, access(old))


def test_a_registry_without_tls_where_tls_is_expected_is_said_to_be_so(
    registry: RunningRegistry, store: OciLayout
) -> None:
    settings = access(registry, plain_http=False)
    assert "plain_http" in failing(TlsFailed, f"{registry.address}/demo/add:v1", store, settings)


def test_a_registry_with_tls_where_none_is_expected_is_said_to_be_so(
    private: RunningRegistry, store: OciLayout
) -> None:
    assert "it speaks TLS" in failing(RegistryError, f"{private.address}/demo/add:v1", store)


def test_a_ca_file_that_cannot_be_used_is_named(private: RunningRegistry, store: OciLayout, tmp_path: Path) -> None:
    (tmp_path / "not.pem").write_text("nothing")
    for path in (tmp_path / "nowhere.pem", tmp_path / "not.pem"):
        assert str(path) in failing(TlsFailed, f"{private.address}/a/b:c", store, access(private, ca_file=path))


def test_localhost_and_ipv6_loopback_are_plain_http(registry: RunningRegistry, store: OciLayout) -> None:
    registry.push("demo/add", "v1", ADDITION)
    port = registry.address.partition(":")[2]
    assert pull(f"localhost:{port}/demo/add:v1", store, PLAIN).size == len(ADDITION)
    if socket.has_ipv6:
        assert "[::1]" in failing(RegistryUnreachable, f"[::1]:{port}/demo/add:v1", store)


def test_a_cancelled_pull_does_not_begin(registry: RunningRegistry, store: OciLayout) -> None:
    with pytest.raises(PullCancelled):
        pull(f"{registry.address}/demo/add:v1", store, PLAIN, cancelled=lambda: True)


PULL = """
import sys
from pathlib import Path
import proplet.oci.pull as p
from proplet.oci.layout import OciLayout
from proplet.oci.settings import RegistrySettings
heavy = lambda: [name for name in ("oras", "requests", "urllib3", "jsonschema") if name in sys.modules]
assert not heavy(), heavy()
module = p.pull(sys.argv[1], OciLayout(Path(sys.argv[2])), RegistrySettings(use_docker_config=False))
assert bool(heavy()) is not module.from_cache
print(module.from_cache)
"""


def test_oras_is_loaded_only_when_the_registry_is_asked(registry: RunningRegistry, store: OciLayout) -> None:
    registry.push("demo/add", "v1", ADDITION)
    command = [sys.executable, "-c", PULL, f"{registry.address}/demo/add:v1", str(store.root)]
    for expected in ("False", "True"):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert done.stdout.strip() == expected


def push_container(registry: RunningRegistry, repository: str, module: bytes) -> str:
    """A container image FROM scratch with one file, as buildah and Docker make it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("main.wasm")
        member.size = len(module)
        tar.addfile(member, io.BytesIO(module))
    layer = "application/vnd.oci.image.layer.v1.tar+gzip"
    config = "application/vnd.oci.image.config.v1+json"
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": push_blob(registry.address, repository, b'{"architecture":"wasm","os":"wasi"}', config),
        "layers": [push_blob(registry.address, repository, gzip.compress(out.getvalue()), layer)],
    }
    return push_manifest(registry.address, repository, "v1", document)


def test_the_module_of_a_container_image_is_unpacked(registry: RunningRegistry, store: OciLayout) -> None:
    digest = push_container(registry, "demo/container", ADDITION)
    name = f"{registry.address}/demo/container:v1"
    for policy in PullPolicy:
        if policy is PullPolicy.NEVER:
            store.remove_blob(Digest.of(ADDITION))
        module = pull(name, store, PLAIN, policy=policy)
        assert (str(module.manifest_digest), module.module_digest) == (digest, Digest.of(ADDITION))
        assert (module.path.read_bytes(), module.size) == (ADDITION, len(ADDITION))


def test_any_changed_byte_of_any_blob_is_found_by_the_next_pull(registry: RunningRegistry, store: OciLayout) -> None:
    push_container(registry, "demo/rot", ADDITION + b"\x00\x02\x01c")
    name = f"{registry.address}/demo/rot:v1"
    pull(name, store, PLAIN)
    blobs = {path: path.read_bytes() for path in (store.root / "blobs" / "sha256").iterdir()}
    assert len(blobs) == 4
    for path, data in blobs.items():
        unpacked = data.startswith(b"\0asm")
        for position in range(0, len(data), max(1, len(data) // 12)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            if not unpacked:  # the layer still has it
                with pytest.raises(StoreDamaged):
                    pull(name, store, PLAIN, policy=PullPolicy.NEVER)
            assert pull(name, store, PLAIN).path.read_bytes() == ADDITION + b"\x00\x02\x01c"
            assert path.read_bytes() == data


def test_what_the_policy_denies_or_wants_signed_is_not_pulled(registry: RunningRegistry, tmp_path: Path) -> None:
    registry.push("demo/unsigned", "v1", ADDITION)
    name = f"{registry.address}/demo/unsigned"
    store = OciLayout(tmp_path / "store")
    assert any("whoever made it" in line for line in pull(f"{name}:v1", store, PLAIN).warnings)
    assert pull(f"{name}:v1", store, PLAIN).warnings == ()
    key = tmp_path / "key.pub"
    subprocess.run(
        ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", tmp_path / "key"], check=True
    )
    subprocess.run(["openssl", "ec", "-in", tmp_path / "key", "-pubout", "-out", key], check=True, capture_output=True)
    policy = tmp_path / "policy.toml"
    settings = RegistrySettings(use_docker_config=False, signature_policy=policy, total_timeout_s=20)
    for rule, kind in (("deny", ImageDenied), ("require", SignatureMissing)):
        policy.write_text(f'[keys.mine]\nfile = "key.pub"\n[repositories."{name}"]\nrule = "{rule}"\n')
        for known in (store, OciLayout(tmp_path / f"empty-{rule}")):
            for when in PullPolicy:
                if when is not PullPolicy.NEVER or known is store:
                    with pytest.raises(kind):
                        pull(f"{name}:v1", known, settings, policy=when)
        assert not list((tmp_path / f"empty-{rule}" / "blobs" / "sha256").iterdir())
