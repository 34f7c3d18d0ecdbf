"""Secrets are read by key; whatever goes wrong is told without showing a value."""

import base64
import re

import pytest

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.kubernetes_secrets import (
    SecretKeyNotFoundError,
    SecretNotFoundError,
    SecretRefusedError,
    read_secret,
    read_secret_key,
)
from proplet.manager.ports import StoreUnavailableError
from tests.support.kubernetes import ApiServer
from tests.support.registry import free_port

pytestmark = pytest.mark.anyio

KEY = b"\x00not text\xff"


def make_secret(server: ApiServer, namespace: str, name: str = "mqtt") -> None:
    data = {"key": base64.b64encode(KEY).decode(), "other": ""}
    server.call("POST", f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": name}, "data": data})


async def test_a_value_comes_back_as_its_bytes(api_server: ApiServer, namespace: str) -> None:
    make_secret(api_server, namespace)
    async with open_api(Access(api_server.kubeconfig)) as api:
        assert await read_secret_key(api, namespace, "mqtt", "key") == KEY
        assert await read_secret(api, namespace, "mqtt") == {"key": KEY, "other": b""}


async def test_what_is_missing_is_named_with_what_is_there(api_server: ApiServer, namespace: str) -> None:
    make_secret(api_server, namespace)
    async with open_api(Access(api_server.kubeconfig)) as api:
        with pytest.raises(SecretNotFoundError, match=f"{namespace}/none; create it"):
            await read_secret_key(api, namespace, "none", "key")
        with pytest.raises(SecretKeyNotFoundError, match="no key 'kye'; it has key, other"):
            await read_secret_key(api, namespace, "mqtt", "kye")


async def test_who_may_not_read_it_is_told_what_to_allow(api_server: ApiServer, namespace: str) -> None:
    make_secret(api_server, namespace)
    async with open_api(Access(api_server.user_kubeconfig("nobody-special"))) as api:
        with pytest.raises(SecretRefusedError, match="allow `get` of secrets in a Role"):
            await read_secret_key(api, namespace, "mqtt", "key")


async def test_without_a_server_it_is_unavailable(api_server: ApiServer) -> None:
    config = api_server.kubeconfig.read_text()
    elsewhere = api_server.kubeconfig.with_name("kubeconfig-elsewhere")
    elsewhere.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}", config))
    async with open_api(Access(elsewhere)) as api:
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await read_secret_key(api, "default", "mqtt", "key")
