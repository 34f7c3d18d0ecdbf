"""Secrets of a namespace, by a plain call. No value of one is ever in a message, a log line or a `repr`."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from proplet.manager.kubernetes_api import Collection, KubernetesApi
from proplet.manager.ports import NotFoundError, RefusedError

SECRETS: Final = Collection("", "v1", "secrets", "Secret")


class SecretError(Exception):
    """A value cannot be had from a Secret; the message says which and what to do."""


class SecretNotFoundError(SecretError):
    """There is no such Secret."""


class SecretKeyNotFoundError(SecretError):
    """The Secret has no such key."""


class SecretRefusedError(SecretError):
    """The manager may not read it."""


async def read_secret(api: KubernetesApi, namespace: str, name: str) -> Mapping[str, bytes]:
    """Return the values of a Secret by key.

    Raises:
        SecretNotFoundError: there is none. SecretRefusedError: it may not be read.
        StoreUnavailableError: the API server cannot be reached.
    """
    try:
        secret = await api.run(api.get, SECRETS, namespace, name)
    except NotFoundError as error:
        raise SecretNotFoundError(f"there is no Secret {namespace}/{name}; create it") from error
    except RefusedError as error:
        raise SecretRefusedError(
            f"the Secret {namespace}/{name} may not be read; allow `get` of secrets in a Role: {error}"
        ) from error
    data = secret.get("data")
    return {key: _value(value, f"{namespace}/{name}", key) for key, value in (data or {}).items()}


async def read_secret_key(api: KubernetesApi, namespace: str, name: str, key: str) -> bytes:
    """Return one value of a Secret.

    Raises:
        SecretKeyNotFoundError: it has no such key. Others as `read_secret`.
    """
    values = await read_secret(api, namespace, name)
    if key not in values:
        there = ", ".join(sorted(values)) or "none"
        raise SecretKeyNotFoundError(f"the Secret {namespace}/{name} has no key {key!r}; it has {there}")
    return values[key]


def _value(value: Any, secret: str, key: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        # Without the cause, which would show the value.
        raise SecretError(f"the value of {key!r} in the Secret {secret} is not base64") from None
