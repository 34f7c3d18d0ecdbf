"""Secrets of a namespace, by a plain call. No value of one is ever in a message, a log line or a `repr`."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proplet.manager.kubernetes_api import Collection, Document, KubernetesApi
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


@dataclass(frozen=True, slots=True)
class SecretFacts:
    """What a Secret is, without its values."""

    keys: tuple[str, ...]
    labels: Mapping[str, str]


async def describe_secret(api: KubernetesApi, namespace: str, name: str) -> SecretFacts:
    """Return keys and labels of a Secret; raises as `read_secret`."""
    secret = await _get(api, namespace, name)
    return SecretFacts(tuple(secret.get("data") or ()), secret["metadata"].get("labels") or {})


async def read_secret(api: KubernetesApi, namespace: str, name: str) -> Mapping[str, bytes]:
    """Return the values of a Secret by key.

    Raises:
        SecretNotFoundError: there is none. SecretRefusedError: it may not be read.
        StoreUnavailableError: the API server cannot be reached.
    """
    data = (await _get(api, namespace, name)).get("data")
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


async def _get(api: KubernetesApi, namespace: str, name: str) -> Document:
    try:
        return await api.run(api.get, SECRETS, namespace, name)
    except NotFoundError as error:
        raise SecretNotFoundError(f"there is no Secret {namespace}/{name}; create it") from error
    except RefusedError as error:
        raise SecretRefusedError(
            f"the Secret {namespace}/{name} may not be read; allow `get` of secrets in a Role: {error}"
        ) from error


def _value(value: Any, secret: str, key: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        # Without the cause, which would show the value.
        raise SecretError(f"the value of {key!r} in the Secret {secret} is not base64") from None
