"""Credentials for registries: from the settings, else from docker's ``config.json`` and the helpers it names.

The file's form is that of ``docker login`` (docker/cli, ``config.json``: ``auths``, ``credHelpers``, ``credsStore``),
the helper protocol that of docker/docker-credential-helpers. Read here and not by oras: oras always adds the user's
default file to one that was named, in no certain order, and waits for a helper without a limit.
"""

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proplet.oci.errors import InvalidCredentials
from proplet.oci.reference import DOCKER_HUB
from proplet.oci.settings import RegistrySettings

_HELPER_SECONDS = 20.0
_MAX_CONFIG_BYTES = 1024 * 1024
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password, or a token instead, and where they came from. Secrets are never shown.

    ``identity_token``: what ``docker login`` keeps instead of a password where the token service gives one; it is
    exchanged there for a token. ``bearer``: a token that is shown to the registry as it is.
    """

    username: str
    password: str = field(repr=False)
    source: str
    identity_token: str | None = field(default=None, repr=False)
    bearer: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Who this is, for messages."""
        if self.bearer is not None:
            return "the token of docker login"
        return f"user {self.username!r}" if self.identity_token is None else "the identity token of docker login"


def find_credentials(registry: str, settings: RegistrySettings) -> Credentials | None:
    """What to show to this registry (``host[:port]``), or None for nothing.

    Raises:
        InvalidCredentials: a file or helper that was named cannot be used; never with a secret in its message.
    """
    host = settings.host(registry)
    if host.username is not None or host.password is not None:
        if not host.username or host.password is None:
            raise InvalidCredentials(f"the settings of registry {registry} need both a user name and a password")
        return Credentials(host.username, host.password, "the settings")
    path = _config_path(settings)
    if path is None:
        return None
    config = _read_config(path)
    helpers = _table(config, "credHelpers", path)
    keys = _keys(registry)
    for key in keys:
        if isinstance(helper := helpers.get(key), str):
            return _ask_helper(helper, key)
    auths = _table(config, "auths", path)
    for key in keys:
        entry = auths.get(key)
        if isinstance(entry, dict) and (found := _from_entry(entry, registry, path)):
            return found
    if isinstance(store := config.get("credsStore"), str) and store:
        return _ask_helper(store, keys[0])
    return None


def _config_path(settings: RegistrySettings) -> Path | None:
    """The file to read; one that was named must exist, the user's own need not."""
    if settings.docker_config is not None:
        if not settings.docker_config.is_file():
            raise InvalidCredentials(f"the credentials file {settings.docker_config} does not exist")
        return settings.docker_config
    if not settings.use_docker_config:
        return None
    try:
        directory = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
        path = directory / "config.json"
        return path if path.is_file() else None
    except (OSError, RuntimeError):
        return None  # no home directory, or not ours to look into


def _keys(registry: str) -> tuple[str, ...]:
    """The names ``docker login`` may have used for this registry; the first is what a credential store knows."""
    if registry == DOCKER_HUB:
        return _HUB_KEYS
    return (registry, f"https://{registry}", f"https://{registry}/", f"http://{registry}", f"https://{registry}/v1/")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES + 1)
        config = json.loads(raw) if len(raw) <= _MAX_CONFIG_BYTES else None
    except OSError as error:
        raise InvalidCredentials(f"the credentials file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        config = None  # the parser's message quotes the file: not for a log
    if not isinstance(config, dict):
        raise InvalidCredentials(f"the credentials file {path} is not a JSON object: log in again or remove it")
    return config


def _table(config: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    table = config.get(key)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise InvalidCredentials(f"{key!r} in the credentials file {path} is not an object")
    return table


def _from_entry(entry: dict[str, Any], registry: str, path: Path) -> Credentials | None:
    """What one entry of ``auths`` holds; an empty one only says that a store has it.

    Tokens go before passwords, as in docker/cli: its ``auth`` has a user name and an empty password beside a token.
    """
    identity, bearer = entry.get("identitytoken"), entry.get("registrytoken")
    if isinstance(bearer, str) and bearer:
        return Credentials("", "", str(path), bearer=_token(bearer, registry, path))
    if isinstance(identity, str) and identity:
        return Credentials("", "", str(path), identity_token=_token(identity, registry, path))
    if encoded := entry.get("auth"):
        try:
            decoded = base64.b64decode(str(encoded), validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            decoded = ""
        username, colon, password = decoded.partition(":")
        if not colon:
            raise InvalidCredentials(f"the entry for {registry} in {path} is not base64 of user:password: log in again")
        return Credentials(username, password, str(path))
    name, secret = entry.get("username"), entry.get("password")
    if isinstance(name, str) and isinstance(secret, str) and name:
        return Credentials(name, secret, str(path))
    return None


def _token(text: str, registry: str, path: Path) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidCredentials(f"the token for {registry} in {path} is damaged: log in again")
    return text


def _ask_helper(name: str, server: str) -> Credentials | None:
    """What ``docker-credential-NAME get`` answers; None when it has nothing for the server."""
    program = f"docker-credential-{name}"
    if not _HELPER_NAME.fullmatch(name):
        raise InvalidCredentials(f"credential helper {name[:60]!r} is not a program name")
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise InvalidCredentials(f"the credential helper {program} is not installed") from None
    except OSError as error:
        raise InvalidCredentials(f"the credential helper {program} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise InvalidCredentials(f"the credential helper {program} gave no answer in {_HELPER_SECONDS:.0f} s") from None
    if done.returncode:
        if b"credentials not found" in done.stdout + done.stderr:
            return None
        raise InvalidCredentials(
            f"the credential helper {program} failed with status {done.returncode}: run it by hand"
        )
    try:
        answer = json.loads(done.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise InvalidCredentials(
            f"the credential helper {program} did not answer with a user name and secret"
        ) from None
    if username == "<token>":  # docker-credential-helpers: the secret is an identity token
        return Credentials("", "", program, identity_token=str(secret))
    return Credentials(str(username), str(secret), program)
