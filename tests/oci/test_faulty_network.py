"""Pulls from a real registry through a network that fails in every way: in the end the module, or one right error."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    AddressRefused,
    ConnectionBroken,
    DigestMismatch,
    InvalidManifest,
    OciError,
    PullTimeout,
    RateLimited,
    RegistryError,
    RegistryFailing,
    SizeMismatch,
    TooLarge,
    Truncated,
)
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.pulled import PullPolicy
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.oci.stored import missing
from tests.support.registry import RunningRegistry, make_tls_files, running_registry
from tests.support.registry_proxy import (
    Fault,
    RegistryProxy,
    announced,
    changed,
    cut_after,
    cut_before_the_answer,
    cut_in_the_head,
    endless,
    garbage,
    header,
    redirect,
    registry_proxy,
    silent,
    slow,
    status,
    without_length,
)

pytestmark = pytest.mark.registry

MODULE = b"\0asm\1\0\0\0" + bytes(range(256)) * 2048  # half a MB
OTHER = b"\0asm\1\0\0\0" + bytes(reversed(range(256))) * 2048
BLOB, MANIFEST = f"/blobs/{Digest.of(MODULE)}", "/manifests/v1"
SETTINGS = RegistrySettings(
    use_docker_config=False,
    connect_timeout_s=2,
    read_timeout_s=0.4,
    total_timeout_s=8,
    max_attempts=3,
    max_retry_wait_s=2,
    first_retry_wait_s=0.01,
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        running.push("demo/add", "v1", MODULE)
        running.push("demo/add", "other", OTHER)
        yield running


@pytest.fixture(scope="module")
def shared(registry: RunningRegistry) -> Iterator[RegistryProxy]:
    with registry_proxy(registry.address) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared: RegistryProxy) -> RegistryProxy:
    shared.clear()
    return shared


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def fetch(proxy: RegistryProxy, store: OciLayout) -> bytes:
    return pull(f"{proxy.address}/demo/add:v1", store, SETTINGS, policy=PullPolicy.ALWAYS).path.read_bytes()


def assert_whole(store: OciLayout) -> None:
    """Whatever has a name is there with all its parts, and every blob is what its own name promises."""
    assert not missing(store)
    for blob in (store.root / "blobs/sha256").iterdir():
        if not blob.name.startswith("."):
            store.verify(Digest("sha256", blob.name))


PASSING: dict[str, tuple[str, tuple[Fault, ...]]] = {
    "the manifest is not answered": (MANIFEST, (cut_before_the_answer,)),
    "the manifest's head is cut": (MANIFEST, (cut_in_the_head,)),
    "the manifest's body is cut": (MANIFEST, (cut_after(20),)),
    "the blob is not answered": (BLOB, (cut_before_the_answer,)),
    "the blob's head is cut": (BLOB, (cut_in_the_head,)),
    "the blob is cut before its first byte": (BLOB, (cut_after(0),)),
    "the blob is cut after its first byte": (BLOB, (cut_after(1),)),
    "the blob is cut before its last byte": (BLOB, (cut_after(len(MODULE) - 1),)),
    "the blob is cut again and again": (BLOB, (cut_after(100_000), cut_after(100_000), cut_after(100_000))),
    "the blob is announced longer than it comes": (BLOB, (cut_after(300_000), status(500))),
    "the blob comes slowly": (BLOB, (slow(20, 0.02),)),
    "the blob has no length": (BLOB, (without_length(),)),
    "the blob has no length and is cut": (BLOB, (without_length(lambda body: body[:70_000]),)),
    "the registry is busy": (MANIFEST, (status(503), status(502))),
    "the registry fails": (BLOB, (status(500), status(504))),
    "the rate is limited": (BLOB, (status(429, Retry_After="0"), status(429))),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_costs_nothing_but_time(proxy: RegistryProxy, store: OciLayout, fault: str) -> None:
    what, faults = PASSING[fault]
    proxy.plan(what, *faults)
    assert fetch(proxy, store) == MODULE
    assert len(proxy.requests(what)) >= len(faults)
    assert_whole(store)
    assert not list((store.root / "blobs/sha256").glob(".*"))


LASTING: dict[str, tuple[str, Fault, tuple[type[OciError], ...]]] = {
    "a manifest that is garbage": (MANIFEST, garbage(b"\x16\x03\x01 not HTTP\r\n\r\n"), (ConnectionBroken,)),
    "a manifest of other bytes": (
        MANIFEST,
        changed(lambda body: body.replace(b"layers", b"Layers")),
        (DigestMismatch,),
    ),
    "a manifest that is none": (MANIFEST, status(200, b"[]"), (InvalidManifest,)),
    "a manifest of no bytes": (MANIFEST, status(200, b""), (InvalidManifest,)),
    "another digest in the header": (MANIFEST, header(Docker_Content_Digest=str(Digest.of(b"x"))), (DigestMismatch,)),
    "an endless manifest": (MANIFEST, endless, (TooLarge,)),
    "a silent registry": (MANIFEST, silent, (PullTimeout,)),
    "a registry that always hangs up": (MANIFEST, cut_before_the_answer, (ConnectionBroken,)),
    "a registry that always fails": (MANIFEST, status(500), (RegistryFailing,)),
    "a long wait asked for": (MANIFEST, status(429, Retry_After="3600"), (RateLimited,)),
    "a redirect to the cloud's metadata": (MANIFEST, redirect("http://169.254.169.254/latest"), (AddressRefused,)),
    "a redirect to a link-local address": (BLOB, redirect("http://[fe80::1]/blob"), (AddressRefused,)),
    "a redirect in circles": (BLOB, redirect(f"/v2/demo/add{BLOB}"), (RegistryError,)),
    "a blob with a changed byte": (BLOB, changed(lambda body: body[:-1] + b"x"), (DigestMismatch,)),
    "another blob of the same size": (BLOB, changed(lambda _body: OTHER), (DigestMismatch,)),
    "a blob that ends early with a fitting length": (BLOB, changed(lambda body: body[:-1]), (SizeMismatch,)),
    "a blob that is longer": (BLOB, changed(lambda body: body + b"x"), (SizeMismatch,)),
    "a longer length announced": (BLOB, announced(lambda size: size + 1), (SizeMismatch,)),
    "a shorter length announced": (BLOB, announced(lambda size: size - 1), (SizeMismatch,)),
    "a blob without length that ends early": (BLOB, without_length(lambda _body: MODULE[:50]), (Truncated,)),
    "a blob without length that is longer": (BLOB, without_length(lambda body: body + b"x"), (SizeMismatch,)),
    "an endless blob": (BLOB, endless, (SizeMismatch,)),
    "a silent blob": (BLOB, silent, (PullTimeout,)),
    "a blob that is garbage": (BLOB, garbage(bytes(range(256)) * 8), (ConnectionBroken,)),
    "a part nobody asked for": (BLOB, status(206, MODULE[100:], Content_Range="bytes 100-/*"), (RegistryError,)),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_one_line_of_its_own_kind(proxy: RegistryProxy, store: OciLayout, fault: str) -> None:
    what, damage, kinds = LASTING[fault]
    proxy.plan(what, damage, always=True)
    before = time.monotonic()
    with pytest.raises(OciError) as caught:
        fetch(proxy, store)
    assert type(caught.value) in kinds, caught.value
    assert "\n" not in str(caught.value)
    assert time.monotonic() - before < SETTINGS.total_timeout_s
    assert store.references() == {}
    assert not store.has(Digest.of(MODULE))
    assert sum(one.sent for one in proxy.exchanges) < 16 * len(MODULE)
    proxy.clear()  # and then the network is well again
    assert fetch(proxy, store) == MODULE
    assert_whole(store)


def test_a_trickle_ends_with_the_time_for_the_whole(proxy: RegistryProxy, store: OciLayout) -> None:
    proxy.plan(BLOB, slow(1000, 0.05), always=True)
    settings = RegistrySettings(use_docker_config=False, read_timeout_s=0.5, total_timeout_s=0.8)
    before = time.monotonic()
    with pytest.raises(PullTimeout):
        pull(f"{proxy.address}/demo/add:v1", store, settings)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("cut", [1, 65_536, 200_001, len(MODULE) - 1])
def test_after_a_cut_only_the_rest_is_asked_for(proxy: RegistryProxy, store: OciLayout, cut: int) -> None:
    proxy.plan(BLOB, cut_after(cut))
    assert fetch(proxy, store) == MODULE
    first, second = proxy.requests(BLOB)
    assert first.range is None
    # What was on its way when the connection was cut may be lost; what has arrived is not asked for again.
    start = int(str(second.range or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    assert start + second.sent == len(MODULE)
    assert start <= cut
    assert start == cut or second.sent <= len(MODULE) - cut + 256 * 1024


def test_a_redirect_from_https_leads_to_no_plain_http(registry: RunningRegistry, tmp_path: Path) -> None:
    tls = make_tls_files(tmp_path / "tls")
    store = OciLayout(tmp_path / "store")
    with registry_proxy(registry.address, tls=tls) as proxy:
        settings = RegistrySettings(hosts={proxy.address: HostSettings(ca_file=tls.ca)}, use_docker_config=False)
        proxy.plan(BLOB, redirect(f"http://{registry.address}/v2/demo/add{BLOB}"))
        with pytest.raises(AddressRefused, match="plain http"):
            pull(f"{proxy.address}/demo/add:v1", store, settings)
        assert pull(f"{proxy.address}/demo/add:v1", store, settings).path.read_bytes() == MODULE
    assert_whole(store)


def test_a_cut_in_the_middle_of_tls_is_continued_too(registry: RunningRegistry, tmp_path: Path) -> None:
    tls = make_tls_files(tmp_path / "tls")
    store = OciLayout(tmp_path / "store")
    with registry_proxy(registry.address, tls=tls) as proxy:
        settings = RegistrySettings(
            hosts={proxy.address: HostSettings(ca_file=tls.ca)}, use_docker_config=False, first_retry_wait_s=0.01
        )
        proxy.plan(BLOB, cut_after(200_000))
        assert pull(f"{proxy.address}/demo/add:v1", store, settings).path.read_bytes() == MODULE
        assert len(proxy.requests(BLOB)) == 2
    assert_whole(store)


ENDLESS = """
import resource, sys
from pathlib import Path
from proplet.oci.errors import OciError
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.settings import RegistrySettings
from proplet.oci.registry import RegistryClient
import oras.provider, proplet.oci.sources, proplet.oci.transport, proplet.oci.faults, proplet.oci.login
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    pull(sys.argv[1], OciLayout(Path(sys.argv[2])), RegistrySettings(use_docker_config=False))
except OciError as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("what", "name"), [(MANIFEST, "TooLarge"), (BLOB, "SizeMismatch")])
def test_endless_bodies_cost_little_memory(proxy: RegistryProxy, tmp_path: Path, what: str, name: str) -> None:
    proxy.plan(what, endless, always=True)
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, f"{proxy.address}/demo/add:v1", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
    )
    error, more = done.stdout.split()
    assert error == name
    assert int(more) < 24 * 1024  # KiB; a manifest may have 4 MiB
