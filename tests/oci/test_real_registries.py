"""Registries as people have them: TLS, passwords, tokens, helpers, client certificates, limits; each fault one line."""

import base64
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    InvalidCredentials,
    ManifestUnknown,
    OciError,
    RateLimited,
    RegistryUnreachable,
    RepositoryUnknown,
    TlsFailed,
    Unauthorized,
)
from proplet.oci.layout import OciLayout
from proplet.oci.pull import PullPolicy, pull
from proplet.oci.settings import HostSettings, RegistrySettings
from tests.support.ports import free_port
from tests.support.registry import (
    ADDITION,
    PASSWORD,
    USER,
    RunningRegistry,
    TlsFiles,
    make_tls_files,
    push_module,
    running_registry,
)
from tests.support.registry_proxy import registry_proxy, status
from tests.support.registry_tokens import REFRESH_TOKEN, TokenService, token_service

pytestmark = pytest.mark.registry


@dataclass(frozen=True)
class Private:
    """One storage behind two doors: a registry with TLS and a password, and one with tokens."""

    tls: TlsFiles
    basic: RunningRegistry
    token: RunningRegistry
    tokens: TokenService


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    directory = tmp_path_factory.mktemp("private")
    with running_registry(directory / "shared") as plain:  # has nothing to ask, and so is pushed to
        push_module(plain.address, "team/add", "v1", ADDITION)
    tls = make_tls_files(directory / "tls")
    with (
        token_service(directory / "tokens") as tokens,
        running_registry(directory / "shared", basic=True, tls=tls) as basic,
        running_registry(directory / "shared", auth=tokens.auth()) as token,
    ):
        yield Private(tls, basic, token, tokens)


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def settings(address: str, config: Path | None = None, **host: Any) -> RegistrySettings:
    return RegistrySettings(
        hosts={address: HostSettings(**host)},
        docker_config=config,
        use_docker_config=False,
        first_retry_wait_s=0.01,
        total_timeout_s=20,
        connect_timeout_s=2,
    )


def login_file(directory: Path, address: str, **entry: str) -> Path:
    """What `docker login` leaves."""
    file = directory / "config.json"
    file.write_text(json.dumps({"auths": {address: entry}}))
    return file


def auth(password: str = PASSWORD) -> str:
    return base64.b64encode(f"{USER}:{password}".encode()).decode()


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a credential helper that answers so into the PATH, and gives the file that names it for a registry."""

    def make(address: str, script: str) -> Path:
        program = tmp_path / "bin/docker-credential-test"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        file = tmp_path / "helper.json"
        file.write_text(json.dumps({"credHelpers": {address: "test"}}))
        return file

    return make


def test_docker_login_opens_both_doors(private: Private, store: OciLayout, tmp_path: Path) -> None:
    for door, host in ((private.basic, {"ca_file": private.tls.ca}), (private.token, {})):
        config = login_file(tmp_path, door.address, auth=auth())
        found = pull(f"{door.address}/team/add:v1", store, settings(door.address, config, **host))
        assert found.module_digest == Digest.of(ADDITION)


def test_a_credential_helper_opens_both_doors(
    private: Private, store: OciLayout, helper: Callable[[str, str], Path]
) -> None:
    for door, host in ((private.basic, {"ca_file": private.tls.ca}), (private.token, {})):
        script = f"""read -r server; [ "$1 $server" = "get {door.address}" ] || exit 1
        echo '{{"ServerURL": "x", "Username": "{USER}", "Secret": "{PASSWORD}"}}'"""
        config = helper(door.address, script)
        assert pull(f"{door.address}/team/add:v1", store, settings(door.address, config, **host)).size == len(ADDITION)


def test_an_identity_token_of_a_helper_opens_the_door_with_tokens(
    private: Private, store: OciLayout, helper: Callable[[str, str], Path]
) -> None:
    config = helper(private.token.address, f"""echo '{{"Username": "<token>", "Secret": "{REFRESH_TOKEN}"}}'""")
    private.tokens.asked.clear()
    address = private.token.address
    assert pull(f"{address}/team/add:v1", store, settings(address, config)).size == len(ADDITION)
    assert ("POST", "refresh_token", "repository:team/add:pull") in private.tokens.asked


def test_a_public_repository_of_a_registry_with_tokens_needs_no_password(private: Private, store: OciLayout) -> None:
    private.tokens.readable.add("team/add")
    try:
        address = private.token.address
        private.tokens.asked.clear()
        assert pull(f"{address}/team/add:v1", store, settings(address)).size == len(ADDITION)
        assert {who for _, who, _ in private.tokens.asked} == {""}
    finally:
        private.tokens.readable.clear()


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_both_names_of_a_token_are_known(private: Private, store: OciLayout, field: str) -> None:
    private.tokens.field_name = field
    try:
        address = private.token.address
        access = settings(address, username=USER, password=PASSWORD)
        assert pull(f"{address}/team/add:v1", store, access, policy=PullPolicy.ALWAYS).size == len(ADDITION)
    finally:
        private.tokens.field_name = "token"


def test_a_registry_that_asks_who_connects_is_shown_the_certificate(
    private: Private, store: OciLayout, tmp_path: Path
) -> None:
    person = make_tls_files(tmp_path / "person", usage="clientAuth")
    with running_registry(tmp_path / "asking", tls=private.tls, client_ca=person.ca) as asking:
        shown = {"client_cert_file": person.certificate, "client_key_file": person.key}
        with pytest.raises(RepositoryUnknown):  # it lets us in; there is nothing inside
            pull(f"{asking.address}/a/b:c", store, settings(asking.address, ca_file=private.tls.ca, **shown))
        with pytest.raises(TlsFailed, match="client") as caught:
            pull(f"{asking.address}/a/b:c", store, settings(asking.address, ca_file=private.tls.ca))
        assert "\n" not in str(caught.value)


def test_a_limited_rate_is_waited_for_or_said(store: OciLayout) -> None:
    """As Docker Hub limits who has no account: at the manifest, with the time to wait."""
    with running_registry(store.root.parent / "plain") as plain, registry_proxy(plain.address) as proxy:
        plain.push("team/add", "v1", ADDITION)
        proxy.plan("/manifests/", status(429, Retry_After="1"))
        name = f"{proxy.address}/team/add:v1"
        assert pull(name, store, settings(proxy.address)).size == len(ADDITION)
        proxy.plan("/manifests/", status(429, Retry_After="21600"), always=True)
        with pytest.raises(RateLimited) as caught:
            pull(name, OciLayout(store.root.parent / "other"), settings(proxy.address))
        assert "limit" in str(caught.value)


@dataclass(frozen=True)
class Case:
    """What is asked of which door by whom, and the kind and the words of the one line that comes of it."""

    door: str
    kind: type[OciError]
    words: str
    image: str = "team/add:v1"
    host: tuple[tuple[str, Any], ...] = (("username", USER), ("password", PASSWORD))


NOBODY: tuple[tuple[str, Any], ...] = ()
WRONG = (("username", USER), ("password", "wr0ng-one"))
CASES = {
    "no credentials, Basic": Case("basic", Unauthorized, "anonymous access", host=NOBODY),
    "wrong credentials, Basic": Case("basic", Unauthorized, "user 'user'", host=WRONG),
    "no credentials, tokens": Case("token", Unauthorized, "anonymous access", host=NOBODY),
    "wrong credentials, tokens": Case("token", Unauthorized, "user 'user'", host=WRONG),
    "half of the credentials": Case("basic", InvalidCredentials, "both", host=(("username", USER),)),
    "unknown repository, Basic": Case("basic", RepositoryUnknown, "no repository team/nope", "team/nope:v1"),
    "unknown repository, tokens": Case("token", RepositoryUnknown, "no repository team/nope", "team/nope:v1"),
    "unknown tag, Basic": Case("basic", ManifestUnknown, "no tag v9", "team/add:v9"),
    "unknown tag, tokens": Case("token", ManifestUnknown, "no tag v9", "team/add:v9"),
    "unknown digest": Case("basic", ManifestUnknown, "no manifest", f"team/add@{Digest.of(b'x')}"),
    "unknown authority": Case("basic", TlsFailed, "ca_file", host=(("ca_file", None), ("plain_http", False))),
    "no TLS": Case("token", TlsFailed, "plain_http", host=(("plain_http", False),)),
    "unexpected TLS": Case("basic", OciError, "it speaks TLS", host=(("plain_http", True), ("ca_file", None))),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_one_line_that_says_which(private: Private, store: OciLayout, name: str) -> None:
    case = CASES[name]
    door = getattr(private, case.door)
    host = {"ca_file": private.tls.ca} if case.door == "basic" else {}
    with pytest.raises(OciError) as caught:
        pull(f"{door.address}/{case.image}", store, settings(door.address, **{**host, **dict(case.host)}))
    line = str(caught.value)
    assert isinstance(caught.value, case.kind), repr(caught.value)
    assert case.words in line
    assert door.address in line
    assert "\n" not in line
    assert len(line) < 300
    assert PASSWORD not in line
    assert "wr0ng" not in line
    assert store.references() == {}


@pytest.mark.parametrize(
    ("fault", "words"),
    [("expired", "expired"), ("other host", "the certificate is for"), ("self-signed", "ca_file")],
)
def test_each_fault_of_a_certificate_is_one_line(
    private: Private, store: OciLayout, tmp_path: Path, fault: str, words: str
) -> None:
    host = "DNS:elsewhere.example" if fault == "other host" else "IP:127.0.0.1"
    tls = make_tls_files(tmp_path / "tls", expired=fault == "expired", host=host)
    ca = private.tls.ca if fault == "self-signed" else tls.ca
    with running_registry(tmp_path / "registry", tls=tls) as running, pytest.raises(TlsFailed) as caught:
        pull(f"{running.address}/team/add:v1", store, settings(running.address, ca_file=ca))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there_is_one_line(store: OciLayout) -> None:
    closed = f"127.0.0.1:{free_port()}"
    for address, words in ((closed, "refused"), ("registry.invalid", "does not resolve")):
        with pytest.raises(RegistryUnreachable) as caught:
            pull(f"{address}/team/add:v1", store, settings(address))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_host_that_accepts_and_is_silent_is_one_line(store: OciLayout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        patient = RegistrySettings(use_docker_config=False, read_timeout_s=0.3, total_timeout_s=5)
        with pytest.raises(OciError) as caught:
            pull(f"{address}/team/add:v1", store, patient)
    assert caught.value.reason == "timeout"
    assert "within the time limit" in str(caught.value)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "status 3"),
        ("echo nothing of the kind", "user name and secret"),
        ("echo 'credentials not found in native keychain'; exit 1", "anonymous access"),
    ],
)
def test_a_helper_that_does_not_help_is_one_line(
    private: Private, store: OciLayout, helper: Callable[[str, str], Path], script: str, words: str
) -> None:
    address = private.basic.address
    config = helper(address, script)
    with pytest.raises(OciError) as caught:
        pull(f"{address}/team/add:v1", store, settings(address, config, ca_file=private.tls.ca))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
