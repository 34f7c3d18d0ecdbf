"""Who may read /metrics, and what happens when the files of token and certificate change; asked over real sockets."""

import ssl
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.health import Answer, HealthError, Site, open_site
from proplet.manager.health_guard import Caller, FileError, Guard
from tests.mqtt.certificates import make_certificates

pytestmark = pytest.mark.anyio

PAGES = {"/metrics": lambda: Answer("proplet_leader 1\n"), "/healthz": lambda: Answer("ok\n")}


async def ask(port: int, path: str, *headers: str, tls: ssl.SSLContext | None = None) -> str:
    request = "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""])
    async with await anyio.connect_tcp("127.0.0.1", port) as raw:
        stream: ByteStream = raw
        if tls is not None:
            stream = await TLSStream.wrap(raw, server_side=False, ssl_context=tls, standard_compatible=False)
        await stream.send(request.encode())
        said = b""
        with anyio.fail_after(10):
            try:
                while True:
                    said += await stream.receive()
            except anyio.EndOfStream:
                return said.decode()


def site(guard: Guard, certificate: tuple[str, str] | None = None) -> Site:
    return Site("127.0.0.1", 0, PAGES, certificate, {"/metrics": guard})


async def test_metrics_are_for_who_shows_the_token_and_probes_for_everybody(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first-one\n")
    async with open_site(site(Guard(str(token)))) as port:
        without = await ask(port, "/metrics")
        assert without.startswith("HTTP/1.1 401 Unauthorized\r\n")
        assert "\r\nWWW-Authenticate: Bearer\r\n" in without
        assert "proplet_leader" not in without
        assert "401" in await ask(port, "/metrics", "Authorization: Bearer first-on")
        assert "401" in await ask(port, "/metrics", "Authorization: Basic first-one")
        assert "proplet_leader 1" in await ask(port, "/metrics", "authorization:  bearer first-one ")
        assert "proplet_leader 1" in await ask(port, "/metrics?x=y", "X-A: b", "AUTHORIZATION: Bearer first-one")
        assert "200 OK" in await ask(port, "/healthz")
        token.write_text("second")
        assert "401" in await ask(port, "/metrics", "Authorization: Bearer first-one")
        assert "200 OK" in await ask(port, "/metrics", "Authorization: Bearer second")
        token.write_text("")  # being written
        assert "401" in await ask(port, "/metrics", "Authorization: Bearer ")
        assert "200 OK" in await ask(port, "/metrics", "Authorization: Bearer second")


@pytest.mark.parametrize(
    ("address", "status"),
    [("127.0.0.1", None), ("127.8.8.8", None), ("::1", None), ("::ffff:127.0.0.1", None)]
    + [(other, 403) for other in ("10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "2001:db8::1", "", "localhost")],
)
def test_without_a_token_they_are_for_this_machine_or_for_everybody(address: str, status: int | None) -> None:
    refusal = Guard().refusal(Caller(address))
    assert (refusal and refusal[0]) == status
    if refusal is not None:
        assert "--metrics-token-file" in refusal[1]
        assert "--metrics-secure=false" in refusal[1]
    assert Guard(everybody=True).refusal(Caller(address)) is None


@given(shown=st.binary(max_size=40))
def test_only_the_token_itself_is_the_token(shown: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    token = tmp_path_factory.getbasetemp() / "one-token"
    if not token.exists():
        token.write_text("the token")
    refusal = Guard(str(token)).refusal(Caller("127.0.0.1", b"Bearer " + shown))
    assert (refusal is None) == (shown.strip() == b"the token")


def test_an_empty_or_absent_token_file_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FileError, match="empty: it is empty"):
        Guard(str(tmp_path / "empty"))
    with pytest.raises(FileError, match="No such file"):
        Guard(str(tmp_path / "absent"))


async def test_a_certificate_that_is_replaced_is_served_without_a_restart(tmp_path: Path) -> None:
    """As cert-manager's and the kubelet's files are: links to a directory that is replaced at once."""
    old, new, mounted = make_certificates(tmp_path / "old"), make_certificates(tmp_path / "new"), tmp_path / "data"
    mounted.symlink_to(old)
    certificate = (str(mounted / "server.pem"), str(mounted / "server.key"))
    trusts = {made: ssl.create_default_context(cafile=str(made / "ca.pem")) for made in (old, new)}
    for trust in trusts.values():
        trust.check_hostname = False
    async with open_site(site(Guard(), certificate)) as port:
        assert "200 OK" in await ask(port, "/metrics", tls=trusts[old])
        (tmp_path / "next").symlink_to(new)
        (tmp_path / "next").replace(mounted)
        assert "200 OK" in await ask(port, "/metrics", tls=trusts[new])
        with pytest.raises(ssl.SSLError):
            await ask(port, "/metrics", tls=trusts[old])
        (new / "server.key").write_text("half a key")
        assert "200 OK" in await ask(port, "/metrics", tls=trusts[new])  # as it was
        mounted.unlink()
        assert "200 OK" in await ask(port, "/metrics", tls=trusts[new])
        mounted.symlink_to(old)
        assert "200 OK" in await ask(port, "/metrics", tls=trusts[old])


async def test_a_certificate_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(HealthError, match="the certificate for /metrics, /healthz cannot be used"):
        async with open_site(site(Guard(), (str(tmp_path / "no.crt"), str(tmp_path / "no.key")))):
            pass
