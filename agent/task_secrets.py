"""The secrets of tasks: named in a task, kept on this device, given to the guest as variables. No value is ever shown.

A secret is ``name/key``: the systemd credential ``name@key`` (no credential of the node's own has such a name), else
the file ``name/key`` in the node's directory of secrets. It is read anew for every run, for a latent task whenever that
is deployed, so what was changed there counts from the next. Source: systemd.exec(5), LoadCredential=.
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proplet.agent.config_files import FileProblem, read_secret
from proplet.agent.wire import Reason

_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEY: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]+")


class SecretError(Exception):
    """A task cannot have a secret; `reason` goes into its result, the message to the person."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Vault:
    """Where secrets are and which of them tasks may have: "name/key", "name/*" or "*". `file` is the configuration."""

    allowed: tuple[str, ...] = ()
    directory: Path | None = None
    credentials: Path | None = None
    file: str = "the configuration file"


def resolve(asked: Mapping[str, str], vault: Vault) -> dict[str, str]:
    """Return the values of `asked`, secrets by variable.

    Raises:
        SecretError: one is not allowed, not there, or kept where others may read it.
    """
    return {variable: _value(variable, secret, vault) for variable, secret in asked.items()}


def _value(variable: str, secret: str, vault: Vault) -> str:
    name, _, key = secret.partition("/")
    if not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
        raise SecretError(Reason.INVALID_ARGUMENTS, f"the secret of {variable} is {secret!r}: it must be NAME/KEY")
    if not {secret, f"{name}/*", "*"} & set(vault.allowed):
        raise SecretError(
            Reason.PERMISSION_DENIED,
            f"it asks for the secret {secret} (envSecrets.{variable}), which agent.permissions.secrets does not allow; "
            f'to allow it, add "{secret}" to secrets in [agent.permissions] of {vault.file}',
        )
    path = _place(name, key, vault)
    if path is None:
        where = f"a file {vault.directory / name / key}" if vault.directory else "a file below [agent] secrets_dir"
        raise SecretError(
            Reason.SECRET_UNAVAILABLE,
            f"the secret {secret} (envSecrets.{variable}) is not on this node: it would be the systemd credential "
            f"{name}@{key}, or {where}",
        )
    try:
        if path.parent != vault.credentials and (mode := stat.S_IMODE(path.stat().st_mode)) & _OTHERS:
            problem = f"the mode of {path} is {mode:04o}, others may use it: chmod 600 {path}"
            raise SecretError(Reason.SECRET_UNAVAILABLE, f"the secret {secret} (envSecrets.{variable}): {problem}")
        text = read_secret(path)
    except (FileProblem, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SecretError(
            Reason.SECRET_UNAVAILABLE, f"the secret {secret} (envSecrets.{variable}) cannot be read: {why}"
        ) from None
    if "\0" in text:
        raise SecretError(
            Reason.SECRET_UNAVAILABLE,
            f"the secret {secret} (envSecrets.{variable}) holds a zero byte, which no variable can",
        )
    return text


def _place(name: str, key: str, vault: Vault) -> Path | None:
    if vault.credentials is not None and (credential := vault.credentials / f"{name}@{key}").is_file():
        return credential
    if vault.directory is not None and (file := vault.directory / name / key).is_file():
        return file
    return None
