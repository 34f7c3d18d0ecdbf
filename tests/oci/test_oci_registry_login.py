"""Who we are to a real registry: tokens, identity tokens and client certificates."""

import base64
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.digest import Digest
from proplet.oci.errors import RegistryFailing, RegistryFault, RegistryUnreachable, TlsFailed, Unauthorized
from proplet.oci.login import challenges
from proplet.oci.reference import Reference
from proplet.oci.registry import RegistryClient
from proplet.oci.settings import HostSettings, RegistrySettings
from proplet.oci.transport import Trust
from tests.oci.faulty_registry import faulty_registry, ok, raw, status
from tests.support.registry import (
    ADDITION,
    PASSWORD,
    USER,
    RunningRegistry,
    TlsFiles,
    free_port,
    make_tls_files,
    running_registry,
)
from tests.support.registry_tokens import REFRESH_TOKEN, TokenService, token_service

pytestmark = pytest.mark.registry


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenService]:
    with token_service(tmp_path_factory.mktemp("tokens")) as service:
        yield service


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tokens: TokenService) -> Iterator[RunningRegistry]:
    """A registry that wants tokens, with one image."""
    with running_registry(tmp_path_factory.mktemp("guarded"), auth=tokens.auth()) as running:
        with client(running, actions="pull,push", username=USER, password=PASSWORD) as connected:
            push(connected, b'{"schemaVersion": 2}')
        yield running


def client(
    running: RunningRegistry, *, actions: str = "pull", config: Path | None = None, **host: Any
) -> RegistryClient:
    settings = RegistrySettings(
        hosts={running.address: HostSettings(**host)},
        docker_config=config,
        use_docker_config=False,
        first_retry_wait_s=0.01,
    )
    return RegistryClient(Reference.parse(f"{running.address}/demo/add:v1"), settings, actions=actions)


def push(connected: RegistryClient, data: bytes) -> None:
    """A blob, by the requests that the specification names."""
    with connected.exchange("POST", "/blobs/uploads/") as started:
        assert started.status_code == 202
        where = started.headers["Location"]
    joint = "&" if "?" in where else "?"
    with connected.exchange("PUT", f"{where}{joint}digest={Digest.of(data)}", data=data) as done:
        assert done.status_code == 201
    with connected.exchange("HEAD", f"/blobs/{Digest.of(data)}") as head:
        assert head.status_code == 200


def login(tmp_path: Path, running: RunningRegistry, entry: dict[str, str]) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {running.address: entry}}))
    return path


def test_a_push_asks_once_for_the_right_to_pull_and_push(guarded: RunningRegistry, tokens: TokenService) -> None:
    tokens.asked.clear()
    with client(guarded, actions="pull,push", username=USER, password=PASSWORD) as connected:
        assert connected.find_manifest("nothing") is None
        push(connected, b"one")
    assert tokens.asked == [("GET", USER, "repository:demo/add:pull,push")]


def test_an_identity_token_is_exchanged_for_a_token(
    guarded: RunningRegistry, tokens: TokenService, tmp_path: Path
) -> None:
    tokens.asked.clear()
    empty = base64.b64encode(f"{USER}:".encode()).decode()
    config = login(tmp_path, guarded, {"auth": empty, "identitytoken": REFRESH_TOKEN})
    with client(guarded, config=config) as connected:
        assert connected.find_manifest("nothing") is None
    assert tokens.asked == [("POST", "refresh_token", "repository:demo/add:pull")]


def test_an_identity_token_that_is_no_longer_good_asks_for_a_login(guarded: RunningRegistry, tmp_path: Path) -> None:
    config = login(tmp_path, guarded, {"identitytoken": "0ld"})
    with client(guarded, config=config) as connected, pytest.raises(Unauthorized, match="log in again") as caught:
        connected.manifest()
    assert "0ld" not in str(caught.value)


def test_a_token_for_the_registry_itself_is_shown_as_it_is(
    guarded: RunningRegistry, tokens: TokenService, tmp_path: Path
) -> None:
    config = login(tmp_path, guarded, {"registrytoken": tokens.token(USER, "repository:demo/add:pull")})
    tokens.asked.clear()
    with client(guarded, config=config) as connected:
        assert connected.find_manifest("nothing") is None
    assert tokens.asked == []
    config = login(tmp_path, guarded, {"registrytoken": tokens.token("", "repository:demo/add:pull")})
    with client(guarded, config=config) as connected, pytest.raises(Unauthorized, match="token of docker login"):
        connected.manifest()


def test_wrong_and_missing_credentials_are_different_lines(guarded: RunningRegistry) -> None:
    with client(guarded, username=USER, password="wr0ng") as connected:
        with pytest.raises(Unauthorized, match=r"refuses user 'user' .*: check user name and password") as caught:
            connected.manifest()
        assert "wr0ng" not in str(caught.value)
    with client(guarded) as connected, pytest.raises(Unauthorized, match=r"anonymous access .*: set credentials"):
        connected.manifest()


def test_right_credentials_without_the_right_are_a_third(guarded: RunningRegistry) -> None:
    with faulty_registry() as registry:
        challenge = f'Bearer realm="http://{registry.address}/token"'
        registry.script("manifests", status(401, WWW_Authenticate=challenge))
        host = HostSettings(username="user", password="s3cret")
        settings = RegistrySettings(hosts={registry.address: host}, use_docker_config=False)
        with (
            RegistryClient(Reference.parse(registry.reference), settings) as connected,
            pytest.raises(Unauthorized, match="the credentials are right"),
        ):
            connected.manifest()


def test_a_busy_token_service_is_asked_again(guarded: RunningRegistry, tokens: TokenService) -> None:
    tokens.failing = 2
    with client(guarded, username=USER, password=PASSWORD) as connected:
        assert connected.find_manifest("nothing") is None
    tokens.failing = 4
    with client(guarded, username=USER, password=PASSWORD) as connected, pytest.raises(RegistryFailing):
        connected.manifest()
    tokens.failing = 0


def test_a_token_that_expires_is_replaced() -> None:
    with faulty_registry() as registry:
        again = status(401, WWW_Authenticate=f'Bearer realm="http://{registry.address}/token"')
        registry.script("manifests", again, ok(), again, ok())
        settings = RegistrySettings(use_docker_config=False)
        with RegistryClient(Reference.parse(registry.reference), settings) as connected:
            connected.manifest()
            connected.manifest()
        assert len(registry.requests("token")) == 2


@pytest.mark.parametrize("first", ["Basic", "Bearer"])
def test_of_several_challenges_the_one_for_a_token_is_answered(first: str) -> None:
    with faulty_registry() as registry:
        offered = [
            f'Bearer realm="http://{registry.address}/token",service="a, b",scope="repository:demo/add:pull,push,x"',
            'Basic realm="Gitea"',
        ]
        both = ", ".join(offered if first == "Bearer" else reversed(offered))
        registry.script("manifests", status(401, WWW_Authenticate=both), ok())
        settings = RegistrySettings(use_docker_config=False)
        with RegistryClient(Reference.parse(registry.reference), settings) as connected:
            connected.manifest()
        assert registry.seen[-1].headers["Authorization"] == "Bearer t0ken"
        assert "pull%2Cpush%2Cx" in registry.requests("token")[0].path


@given(
    st.lists(
        st.tuples(st.sampled_from(["Basic", "Bearer", "Negotiate"]), st.text("abc ,=:;/", max_size=9)),
        unique_by=lambda one: one[0],
    )
)
def test_challenges_are_read_as_they_are_written(offered: list[tuple[str, str]]) -> None:
    header = ", ".join(f'{scheme} realm="{realm}", service="x,y"' for scheme, realm in offered)
    found = challenges(header)
    assert found == {scheme.lower(): f'{scheme} realm="{realm}", service="x,y"' for scheme, realm in offered}


@given(st.text('"=, \\abBearer', max_size=40))
def test_a_header_that_is_no_challenge_is_no_error(header: str) -> None:
    assert all(text.lower().startswith(scheme) for scheme, text in challenges(header).items())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A client's certificate, by another authority, for both uses."""
    directory = tmp_path_factory.mktemp("person")
    found = make_tls_files(directory)
    key = directory / "client.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
         "-out", directory / "client.pem", "-days", "2", "-subj", "/CN=device", "-CA", found.ca,
         "-CAkey", directory / "ca.key", "-addext", "extendedKeyUsage=clientAuth"],
        check=True, capture_output=True,
    )  # fmt: skip
    return TlsFiles(found.ca, directory / "client.pem", key)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory, server: TlsFiles, person: TlsFiles) -> Iterator[RunningRegistry]:
    """A registry that lets in only who has a certificate."""
    with running_registry(tmp_path_factory.mktemp("asking"), tls=server, client_ca=person.ca) as running:
        yield running


def test_a_client_certificate_opens_the_door(asking: RunningRegistry, server: TlsFiles, person: TlsFiles) -> None:
    shown = {"client_cert_file": person.certificate, "client_key_file": person.key}
    with client(asking, ca_file=server.ca, **shown) as connected:
        push(connected, ADDITION)
    both = person.certificate.with_name("both.pem")
    both.write_bytes(person.certificate.read_bytes() + person.key.read_bytes())
    with client(asking, ca_file=server.ca, client_cert_file=both) as connected:
        assert connected.find_manifest("nothing") is None


def test_a_registry_that_wants_a_client_certificate_is_said_to(asking: RunningRegistry, server: TlsFiles) -> None:
    with client(asking, ca_file=server.ca) as connected, pytest.raises(TlsFailed, match="wants a client certificate"):
        connected.manifest()
    strange = {"client_cert_file": server.certificate, "client_key_file": server.key}
    with (
        client(asking, ca_file=server.ca, **strange) as connected,
        pytest.raises(TlsFailed, match="or another than it was shown"),
    ):
        connected.manifest()


def test_nginx_says_it_in_its_own_way() -> None:
    page = b"<html><head><title>400 No required SSL certificate was sent</title></head></html>"
    with faulty_registry() as registry:
        registry.script("manifests", status(400, page))
        settings = RegistrySettings(use_docker_config=False)
        with (
            RegistryClient(Reference.parse(registry.reference), settings) as connected,
            pytest.raises(TlsFailed, match="client_cert_file"),
        ):
            connected.manifest()


def test_a_client_certificate_that_cannot_be_used_is_named(
    asking: RunningRegistry, server: TlsFiles, person: TlsFiles, tmp_path: Path
) -> None:
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", person.key, "-out", encrypted, "-passout", "pass:x"],
        check=True, capture_output=True,
    )  # fmt: skip
    cases: list[tuple[dict[str, Path], str]] = [
        ({"client_cert_file": tmp_path / "nowhere.pem"}, "nowhere.pem"),
        ({"client_cert_file": person.certificate, "client_key_file": server.key}, "does not fit"),
        ({"client_cert_file": person.certificate, "client_key_file": encrypted}, "encrypted"),
        ({"client_cert_file": person.key}, "PEM"),
        ({"client_key_file": person.key}, "client_cert_file"),
    ]
    for host, words in cases:
        with pytest.raises(TlsFailed, match=words):
            client(asking, ca_file=server.ca, **host)


def test_certificates_are_for_the_registry_and_not_for_where_it_sends_us(tmp_path: Path) -> None:
    trust = Trust("a.b:5000", "a.b", False, ("cert", "key"))
    assert trust.of("https://a.b:5000/v2/") == (False, ("cert", "key"))
    assert trust.of("https://a.b/token") == (False, None)
    assert trust.of("http://a.b:5000/v2/")[1] is None
    verify, cert = trust.of("https://storage.a.b:5000/")
    assert verify is not False
    assert cert is None
    own = Trust("a.b:5000", "a.b", str(tmp_path / "ca.pem"))
    assert own.of("https://storage.a.b/")[0] == str(tmp_path / "ca.pem")
    assert own.more("a.b") is None
    if Path(str(ssl.get_default_verify_paths().cafile or "/nowhere")).is_file():
        assert "BEGIN CERTIFICATE" in (own.more("storage.a.b") or "")


LINES = {
    "expired": r"TLS .* failed: certificate has expired: renew",
    "name": r"TLS .* failed: .*(match|not valid for).*: use the name",
    "authority": r"TLS .* failed: .*: give its CA in ca_file",
}


@pytest.mark.parametrize("fault", LINES)
def test_each_fault_of_a_certificate_has_its_own_line(tmp_path: Path, fault: str, server: TlsFiles) -> None:
    files = make_tls_files(
        tmp_path, expired=fault == "expired", host="DNS:elsewhere.test" if fault == "name" else "IP:127.0.0.1"
    )
    with running_registry(tmp_path / "registry", tls=files) as running:
        ca = server.ca if fault == "authority" else files.ca
        with client(running, ca_file=ca) as connected, pytest.raises(TlsFailed, match=LINES[fault]) as caught:
            connected.manifest()
    assert "\n" not in str(caught.value)


def test_what_is_no_registry_is_said_in_one_line(server: TlsFiles, tmp_path: Path) -> None:
    with (
        running_registry(tmp_path / "tls", tls=server) as running,
        client(running, plain_http=True) as connected,
        pytest.raises(RegistryFault, match="it speaks TLS: give its CA"),
    ):
        connected.manifest()
    with faulty_registry() as registry:
        page = b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"
        registry.script("manifests", status(400, page))
        settings = RegistrySettings(use_docker_config=False)
        with (
            RegistryClient(Reference.parse(registry.reference), settings) as connected,
            pytest.raises(RegistryFault, match="it speaks TLS"),
        ):
            connected.manifest()
        registry.script("manifests", raw(b""))
        secure = RegistrySettings(hosts={registry.address: HostSettings(plain_http=False)}, use_docker_config=False)
        with (
            RegistryClient(Reference.parse(registry.reference), secure) as connected,
            pytest.raises(RegistryFault, match="does not speak TLS"),
        ):
            connected.manifest()
    nobody = Reference.parse(f"127.0.0.1:{free_port()}/a:b")
    with RegistryClient(nobody, settings) as connected, pytest.raises(RegistryUnreachable, match="cannot be reached"):
        connected.manifest()
