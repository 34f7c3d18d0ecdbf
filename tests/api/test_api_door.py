"""Who gets in over TCP: tokens, Host, Origin, TLS; and what is refused at the start."""

import base64
import logging
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from proplet.agent.client import ApiError as Refusal
from proplet.agent.client import Client
from proplet.manager.api import ApiError, ApiSettings
from tests.api.fakes import TOKEN, Node, open_node
from tests.api.http import Answer, send
from tests.api.test_api_tasks import is_error

pytestmark = pytest.mark.anyio

BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def ask(node: Node, path: str = "/tasks", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await send(("127.0.0.1", node.port), "GET", path, headers=named)


async def test_the_socket_needs_no_token(node: Node) -> None:
    assert (await send(node.socket, "GET", "/tasks")).status == 200


async def test_tcp_needs_the_token(node: Node) -> None:
    basic = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    assert (await ask(node, Authorization=f"Bearer {TOKEN}")).status == 200
    assert (await ask(node, Authorization=f"bearer {TOKEN}")).status == 200
    assert (await ask(node, Authorization=f"Basic {basic}")).status == 200
    assert (await ask(node, f"/t/{TOKEN}/tasks")).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        f"Digest {TOKEN}",
        "Basic !!!",
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
    ],
)
async def test_without_the_right_token_nothing_is_told(node: Node, authorization: str | None) -> None:
    for path in ("/tasks", "/nothing", "/health", "/metrics", "/openapi.json"):
        answer = await ask(node, path, **({} if authorization is None else {"Authorization": authorization}))
        assert is_error(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/t/", "/t/wrong/tasks", f"/t/{TOKEN}x/tasks", f"/t//{TOKEN}/tasks", "/t"])
async def test_a_wrong_token_in_the_path_is_refused(node: Node, path: str) -> None:
    assert is_error(await ask(node, path), 401, "unauthorized")


async def test_a_client_that_knows_only_a_base_url_creates_and_starts_a_task(node: Node) -> None:
    where, base = ("127.0.0.1", node.port), f"/t/{TOKEN}"
    task = {"name": "main", "image_url": "localhost:5000/add:1"}
    created = await send(where, "POST", f"{base}/tasks", task)
    assert created.status == 201
    assert TOKEN not in str(created.headers)
    assert (await send(where, "POST", f"{base}/tasks/{created.json['id']}/start")).json == {"started": True}


async def test_a_page_that_rebinds_its_name_to_this_machine_is_refused_even_with_the_token(node: Node) -> None:
    hosts = "evil.example localhost.evil.example 127.0.0.1.nip.io [ a@localhost".split()
    for host in ("", f"evil.example:{node.port}", *hosts):
        answer = await ask(node, Host=host, **BEARER)
        assert is_error(answer, 421, "host_not_allowed"), host


async def test_loopbacks_names_are_known(node: Node) -> None:
    for host in ("localhost", f"localhost:{node.port}", "LOCALHOST", "127.0.0.1", f"[::1]:{node.port}", "localhost."):
        assert (await ask(node, Host=host, **BEARER)).status == 200, host


async def test_configured_names_and_origins_are_known(settings: ApiSettings) -> None:
    wider = replace(settings, allowed_hosts=("Pi.local",), allowed_origins=("https://console.example",))
    async with open_node(wider) as node:
        assert (await ask(node, Host="pi.local:7070", **BEARER)).status == 200
        assert (await ask(node, Origin="https://console.example", **BEARER)).status == 200
        assert is_error(await ask(node, Origin="https://console.example.evil", **BEARER), 403, "origin_not_allowed")


async def test_pages_of_other_origins_are_refused(node: Node) -> None:
    own = f"localhost:{node.port}"
    assert (await ask(node, Host=own, Origin=f"http://{own}", **BEARER)).status == 200
    for origin in ("null", "http://evil.example", "http://localhost:1", f"https://{own}", ""):
        assert is_error(await ask(node, Host=own, Origin=origin, **BEARER), 403, "origin_not_allowed"), origin


async def test_nothing_that_is_logged_has_the_token(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await ask(node, f"/t/{TOKEN}/tasks")
    await ask(node, f"/t/{TOKEN}/nothing")
    await ask(node, f"/t/{TOKEN}x/nothing")
    assert TOKEN not in caplog.text
    assert TOKEN not in (await send(node.socket, "GET", "/metrics")).body.decode()
    assert TOKEN not in repr(ApiSettings(token=TOKEN))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0"}, "without TLS"),
        ({"host": "192.0.2.1"}, "without TLS"),
        ({"host": "pi.local"}, "without TLS"),
        ({"token": ""}, "needs a token"),
        ({"token": "short"}, "needs a token"),
        ({"token": "with a / in its middle"}, "must not contain"),
        ({"tls_certificate": Path("/nowhere/cert.pem")}, "both a certificate and a key"),
        ({"tls_certificate": Path("/nowhere/cert.pem"), "tls_key": Path("/nowhere/key.pem")}, "cannot be used"),
        ({"host": None, "socket": None}, "neither a socket nor a TCP address"),
    ],
)
async def test_settings_that_are_not_safe_are_refused_at_the_start(
    settings: ApiSettings, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ApiError, match=words):
        async with open_node(replace(settings, **changes)):  # type: ignore[arg-type]
            pass
    assert settings.socket is not None
    assert not settings.socket.exists()


async def test_a_port_in_use_is_said(settings: ApiSettings, node: Node) -> None:
    with pytest.raises(ApiError, match="another program listens there"):
        async with open_node(replace(settings, socket=None, port=node.port)):
            pass


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split(),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


async def test_tls_and_the_token_open_the_network(
    settings: ApiSettings, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    secured = replace(settings, host="0.0.0.0", tls_certificate=certificate[0], tls_key=certificate[1])
    async with open_node(secured) as node:
        # The address of the connection itself is a known host: it cannot have been rebound.
        url = f"https://127.0.0.1:{node.port}"
        shown = await anyio.to_thread.run_sync(Client.connect(url, token=TOKEN).node)
        assert shown["version"] == "1.2.3"
        with pytest.raises(Refusal) as refused:
            await anyio.to_thread.run_sync(Client.connect(url).node)
        assert refused.value.status == 401
        assert (await send(node.socket, "GET", "/tasks")).status == 200
        context = ssl.create_default_context()
        assert context.verify_mode is ssl.CERT_REQUIRED
