"""What a pull does with a registry that is broken, slow or hostile."""

import base64
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    AddressRefused,
    ConnectionBroken,
    DigestMismatch,
    InvalidCredentials,
    InvalidManifest,
    ManifestUnknown,
    NotWasm,
    OciError,
    PullCancelled,
    PullTimeout,
    RateLimited,
    RegistryError,
    RegistryFailing,
    RegistryFault,
    RegistryUnreachable,
    RepositoryUnknown,
    SizeMismatch,
    StoreDamaged,
    TooLarge,
    Unauthorized,
)
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.pulled import PulledModule, PullPolicy
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.oci.faulty_registry import (
    FaultyRegistry,
    dripping,
    dripping_headers,
    endless,
    faulty_registry,
    hanging,
    ok,
    other,
    raw,
    redirect,
    status,
    truncated,
    until_close,
)
from tests.support.registry import ADDITION, free_port

QUICK = RegistrySettings(
    use_docker_config=False, connect_timeout_s=2, read_timeout_s=5, total_timeout_s=20, first_retry_wait_s=0.01
)


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def blobs(store: OciLayout) -> list[Path]:
    """All but what is kept of transfers that broke, to go on with."""
    files = [path for path in (store.root / "blobs").rglob("*") if path.is_file()]
    return [path for path in files if not path.name.startswith(".partial-")]


def partial(store: OciLayout) -> list[bytes]:
    return [path.read_bytes() for path in (store.root / "blobs").rglob(".partial-*")]


def refused(registry: FaultyRegistry, store: OciLayout, kind: type[OciError], **settings: object) -> OciError:
    """The pull fails with exactly this kind of error, in one line, and leaves nothing behind."""
    chosen = RegistrySettings(**{**{f: getattr(QUICK, f) for f in QUICK.__slots__}, **settings})  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        pull(registry.reference, store, chosen, policy=PullPolicy.ALWAYS)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert caught.value.reason
    assert blobs(store) == []
    assert store.references() == {}
    return caught.value


def taken(registry: FaultyRegistry, store: OciLayout, settings: RegistrySettings = QUICK) -> PulledModule:
    module = pull(registry.reference, store, settings)
    assert module.path.read_bytes() == registry.module
    return module


def test_an_honest_registry_is_believed(store: OciLayout) -> None:
    with faulty_registry() as registry:
        assert str(taken(registry, store).manifest_digest) == registry.manifest_digest


def test_any_changed_byte_of_the_module_is_detected(store: OciLayout) -> None:
    with faulty_registry() as registry:
        for position in range(len(ADDITION)):
            changed = bytearray(ADDITION)
            changed[position] ^= 1 << position % 8
            registry.script("blobs", other(bytes(changed)))
            refused(registry, store, DigestMismatch)


def test_any_changed_byte_of_a_manifest_fetched_by_digest_is_detected(store: OciLayout) -> None:
    with faulty_registry() as registry:
        reference = f"{registry.address}/demo/add@{registry.manifest_digest}"
        for position in range(0, len(registry.manifest), 5):
            changed = bytearray(registry.manifest)
            changed[position] ^= 0x01
            registry.script("manifests", other(bytes(changed), Docker_Content_Digest=registry.manifest_digest))
            with pytest.raises(DigestMismatch):
                pull(reference, store, QUICK)
        assert blobs(store) == []


def test_a_manifest_that_is_not_what_the_registry_says_is_refused(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", ok(Docker_Content_Digest=f"sha256:{'0' * 64}"))
        refused(registry, store, DigestMismatch)


def test_the_pinned_digest_is_asked_for_instead_of_the_tag(store: OciLayout) -> None:
    with faulty_registry() as registry:
        pinned = Digest.parse(registry.manifest_digest)
        assert pull(registry.reference, store, QUICK, expected_digest=pinned).manifest_digest == pinned
        assert [one.path for one in registry.requests("manifests")] == [f"/v2/demo/add/manifests/{pinned}"]


def test_a_broken_transfer_is_repeated(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", truncated(10), ok())
        registry.script("blobs", truncated(20), until_close(lambda body: body[:7]), ok())
        taken(registry, store)
        assert len(registry.requests("blobs")) == 3


def test_a_blob_that_is_always_cut_short_is_given_up(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", truncated(20))
        refused(registry, store, ConnectionBroken)
        assert len(registry.requests("blobs")) == QUICK.max_attempts


def test_a_blob_announced_with_another_length_is_not_read(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", other(ADDITION + b"more"))
        refused(registry, store, SizeMismatch)


def test_a_blob_that_is_longer_than_its_descriptor_is_cut_off(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", until_close(lambda body: body + bytes(1000)))
        refused(registry, store, SizeMismatch)


def test_an_endless_blob_costs_no_more_than_its_announced_size(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", endless())
        refused(registry, store, SizeMismatch, max_attempts=1)
        assert registry.sent < 32 * 1024 * 1024  # what buffers of the kernel take


def test_an_endless_manifest_is_cut_off(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", endless())
        refused(registry, store, TooLarge)


def test_endless_bodies_of_errors_and_redirects_are_not_read(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", endless(404))
        refused(registry, store, ManifestUnknown)
        registry.script("manifests", endless(307, Location="/v2/demo/add/tags/list"))
        refused(registry, store, InvalidManifest)


def test_a_module_above_the_limit_is_not_downloaded(store: OciLayout) -> None:
    with faulty_registry() as registry:
        assert "41" in str(refused(registry, store, TooLarge, max_module_bytes=41))
        assert registry.requests("blobs") == []


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(store: OciLayout, code: int) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(code), status(code, Retry_After="0"), ok())
        registry.script("blobs", status(code), ok())
        taken(registry, store)


def test_a_wait_the_registry_asks_for_is_kept(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(429, Retry_After="1"), ok())
        before = time.monotonic()
        taken(registry, store)
        assert time.monotonic() - before >= 1


def test_a_wait_that_is_too_long_is_an_error_at_once(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(429, Retry_After="3600"))
        assert "wait 3600 s" in str(refused(registry, store, RateLimited))
        assert len(registry.requests("manifests")) == 1


def test_a_registry_that_keeps_failing_is_given_up(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(500, b'{"errors": [{"code": "UNKNOWN", "message": "disk on\\nfire"}]}'))
        assert "disk on fire" in str(refused(registry, store, RegistryFailing))
        assert len(registry.requests("manifests")) == QUICK.max_attempts


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",  # 169.254.169.254 as one number
    ],
)
def test_a_redirect_to_a_metadata_address_is_not_followed(store: OciLayout, target: str) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", redirect(target))
        refused(registry, store, AddressRefused)
        registry.script("manifests", redirect(target))
        refused(registry, store, AddressRefused)


def test_a_registry_at_a_metadata_address_is_not_asked(store: OciLayout) -> None:
    for host in ("169.254.169.254", "[fe80::1]:5000", "[fd00:ec2::254]"):
        with pytest.raises(AddressRefused):
            pull(f"{host}/a/b:c", store, QUICK)


def test_a_redirect_elsewhere_is_followed_without_the_password(store: OciLayout) -> None:
    with faulty_registry() as registry, faulty_registry() as storage:
        challenge = status(401, WWW_Authenticate='Basic realm="here"')
        registry.script("manifests", challenge, ok())
        registry.script("blobs", redirect(f"http://{storage.address}/blobs/x"))
        hosts = {registry.address: HostSettings(username="user", password="s3cret")}
        taken(registry, store, RegistrySettings(hosts=hosts))
        assert "Authorization" in registry.requests("blobs")[0].headers
        assert "Authorization" not in storage.requests("blobs")[0].headers


def test_a_redirect_in_circles_ends(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", redirect("/v2/demo/add/blobs/again"))
        refused(registry, store, RegistryError)


def test_a_redirect_to_rubbish_is_an_error_of_the_registry(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", redirect("gopher://x/"))
        refused(registry, store, RegistryError)


def test_a_registry_that_sends_nothing_runs_into_the_read_limit(store: OciLayout) -> None:
    for what in ("manifests", "blobs"):
        with faulty_registry() as registry:
            registry.script(what, hanging())
            refused(registry, store, PullTimeout, read_timeout_s=0.3)


def test_a_trickle_runs_into_the_total_limit(store: OciLayout) -> None:
    for answer in (dripping(), dripping_headers()):
        with faulty_registry(module=ADDITION + bytes(500)) as registry:
            registry.script("blobs", answer)
            before = time.monotonic()
            refused(registry, store, PullTimeout, total_timeout_s=0.6)
            assert time.monotonic() - before < 5


def test_a_pull_is_cancelled_while_it_waits(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("blobs", hanging())
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(PullCancelled):
            pull(registry.reference, store, QUICK, cancelled=stop.is_set)
        assert blobs(store) == []


def test_a_pull_is_cancelled_while_it_waits_for_a_retry(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(503, Retry_After="19"))
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(PullCancelled):
            pull(registry.reference, store, QUICK, cancelled=stop.is_set)


def test_no_thread_outlives_a_pull(store: OciLayout) -> None:
    with faulty_registry() as registry:
        taken(registry, store)
    assert not [thread for thread in threading.enumerate() if "pull" in thread.name]


def test_unknown_tag_and_unknown_repository_are_told_apart(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(404))
        assert "tag v1" in str(refused(registry, store, ManifestUnknown))
        registry.script("tags", status(404))
        assert "no repository demo/add" in str(refused(registry, store, RepositoryUnknown))


def test_a_port_where_nobody_listens_is_said_to_be_so(store: OciLayout) -> None:
    with pytest.raises(RegistryUnreachable, match="Connection refused"):
        pull(f"127.0.0.1:{free_port()}/a:b", store, QUICK)


def test_a_name_that_does_not_resolve_is_said_to_be_so(store: OciLayout) -> None:
    with pytest.raises(RegistryUnreachable, match="does not resolve"):
        pull("registry.invalid/a:b", store, QUICK)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"[" * 100_000, b'{"schemaVersion": 1}'])
def test_a_manifest_that_is_none_is_refused(store: OciLayout, body: bytes) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", other(body))
        refused(registry, store, InvalidManifest)


def test_a_compressed_body_is_refused(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", ok(Content_Encoding="gzip"))
        refused(registry, store, RegistryError)


def test_a_layer_that_is_no_wasm_binary_is_refused_and_not_recorded(store: OciLayout) -> None:
    with faulty_registry(module=b"(module)") as registry, pytest.raises(NotWasm):
        pull(registry.reference, store, QUICK)
    assert store.references() == {}


def test_a_basic_only_registry_without_credentials_is_refused_at_once(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(401, WWW_Authenticate='Basic realm="Registry Realm"'))
        before = time.monotonic()
        assert "anonymous" in str(refused(registry, store, Unauthorized))
        assert time.monotonic() - before < 5
        assert len(registry.requests("manifests")) == 1


def test_wrong_credentials_are_shown_once_and_never_printed(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(401, WWW_Authenticate='Basic realm="Registry Realm"'))
        hosts = {registry.address: HostSettings(username="user", password="s3cret")}
        message = str(refused(registry, store, Unauthorized, hosts=hosts))
        assert "'user'" in message
        assert "s3cret" not in message
        assert "s3cret" not in repr(hosts)
        assert len(registry.requests("manifests")) == 2


def bearer(registry: FaultyRegistry) -> str:
    return f'Bearer realm="http://{registry.address}/token",service="here",scope="repository:demo/add:pull"'


@pytest.mark.parametrize("password", [None, "s3cret"])
def test_a_token_service_is_asked_with_and_without_credentials(store: OciLayout, password: str | None) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(401, WWW_Authenticate=bearer(registry)), ok())
        hosts = {registry.address: HostSettings(username="user", password=password)} if password else {}
        taken(registry, store, RegistrySettings(hosts=hosts, use_docker_config=False))
        (token,) = registry.requests("token")
        basic = "Basic " + base64.b64encode(b"user:s3cret").decode()
        assert token.headers.get("Authorization") == (basic if password else None)
        assert "scope=repository%3Ademo%2Fadd%3Apull" in token.path
        assert registry.requests("blobs")[0].headers["Authorization"] == "Bearer t0ken"


def test_a_token_service_that_refuses_hangs_or_never_ends_is_an_error(store: OciLayout) -> None:
    for answer, kind in ((status(401), Unauthorized), (hanging(), PullTimeout), (endless(), RegistryError)):
        with faulty_registry() as registry:
            registry.script("manifests", status(401, WWW_Authenticate=bearer(registry)))
            registry.script("token", answer)
            refused(registry, store, kind, read_timeout_s=0.5)


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b"{", b"", b'{"token": "a\\nb"}', b'{"token": null}'])
def test_a_token_service_that_gives_no_token_is_an_error(store: OciLayout, body: bytes) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(401, WWW_Authenticate=bearer(registry)), ok())
        registry.script("token", other(body))
        with pytest.raises(OciError):
            pull(registry.reference, store, QUICK)


def test_a_token_service_that_is_busy_is_not_taken_for_one_that_refuses(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(401, WWW_Authenticate=bearer(registry)))
        registry.script("token", status(503))
        refused(registry, store, RegistryFailing)


def test_a_challenge_from_where_a_redirect_led_gets_no_credentials(store: OciLayout) -> None:
    with faulty_registry() as registry, faulty_registry() as thief:
        registry.script("blobs", redirect(f"http://{thief.address}/blobs/x"))
        for challenge in ('Basic realm="x"', bearer(thief)):
            thief.script("blobs", status(401, WWW_Authenticate=challenge))
            hosts = {registry.address: HostSettings(username="user", password="s3cret")}
            refused(registry, store, Unauthorized, hosts=hosts)
        assert all("Authorization" not in one.headers for one in thief.seen)
        assert not thief.requests("token")


def test_rubbish_instead_of_http_is_an_error_of_the_registry(store: OciLayout) -> None:
    for text in (
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300,
        b"\xff" * 70_000,
        b"HTTP/1.1 x y\r\n\r\n",
    ):
        with faulty_registry() as registry:
            registry.script("manifests", raw(text))
            with pytest.raises(RegistryFault):
                pull(registry.reference, store, QUICK)


def test_an_error_of_the_callers_own_is_not_taken_for_one_of_the_network(store: OciLayout) -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError("the caller's")

    with faulty_registry() as registry, pytest.raises(BrokenPipeError, match="the caller's"):
        pull(registry.reference, store, QUICK, progress=broken)
    assert blobs(store) == []


def test_a_token_service_at_a_metadata_address_is_not_asked(store: OciLayout) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(401, WWW_Authenticate='Bearer realm="http://169.254.169.254/token"'))
        refused(registry, store, AddressRefused)


@pytest.mark.parametrize("challenge", ["", "Negotiate", "Bearer", 'Bearer realm="nowhere"'])
def test_an_unknown_kind_of_authentication_is_an_error_of_the_registry(store: OciLayout, challenge: str) -> None:
    with faulty_registry() as registry:
        registry.script("manifests", status(401, WWW_Authenticate=challenge))
        refused(registry, store, RegistryError)


def test_a_broken_credentials_file_matters_only_where_credentials_are_wanted(store: OciLayout, tmp_path: Path) -> None:
    settings = RegistrySettings(docker_config=tmp_path / "nowhere.json")
    with faulty_registry() as registry:
        taken(registry, store, settings)
        registry.script("manifests", status(401, WWW_Authenticate='Basic realm="x"'))
        with pytest.raises(InvalidCredentials, match=r"nowhere\.json"):
            pull(registry.reference, store, settings, policy=PullPolicy.ALWAYS)


def test_docker_hub_is_asked_at_its_own_address_and_through_the_proxy(
    store: OciLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy, on loopback, hears where the request would go; nothing leaves this machine."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse() -> None:
            connection, _ = proxy.accept()
            with connection:
                heard.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises(RegistryUnreachable, match="proxy"):
            pull("redis:7", store, QUICK)
        thread.join()
    assert heard[0].startswith(b"CONNECT registry-1.docker.io:443 ")


STUCK = """
import sys
from pathlib import Path
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.pulled import Progress
from proplet.oci.settings import RegistrySettings
def progress(now):
    print(now.bytes_done, flush=True)
pull(sys.argv[1], OciLayout(Path(sys.argv[2])), RegistrySettings(use_docker_config=False), progress=progress)
"""


def test_a_pull_that_is_killed_leaves_a_store_that_the_next_one_uses(store: OciLayout) -> None:
    with faulty_registry(module=ADDITION + bytes(2000)) as registry:
        registry.script("blobs", dripping(), ok())
        command = [sys.executable, "-c", STUCK, registry.reference, str(store.root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert next(line for line in child.stdout if int(line) > 3)
            child.kill()
        assert blobs(store) == []
        kept = partial(store)[0] if partial(store) else b""
        assert registry.module.startswith(kept)
        again = OciLayout(store.root)
        assert blobs(again) == []
        taken(registry, again)


def test_netrc_is_not_sent_to_registries(store: OciLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login thief password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with faulty_registry() as registry:
        taken(registry, store)
        assert all("Authorization" not in one.headers for one in registry.seen)


def test_a_proxy_of_the_environment_is_not_used_for_loopback(store: OciLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with faulty_registry() as registry:
        taken(registry, store)


def test_a_damaged_module_in_the_store_is_pulled_again(store: OciLayout) -> None:
    with faulty_registry() as registry:
        first = taken(registry, store)
        first.path.write_bytes(bytes(len(ADDITION)))
        second = taken(registry, store)
        assert not second.from_cache
        first.path.write_bytes(ADDITION[:-1])
        with pytest.raises(StoreDamaged) as caught:
            pull(registry.reference, store, QUICK, policy=PullPolicy.NEVER)
        assert caught.value.reason == "store_damaged"
