"""``proplet config check`` and ``show``: what is wrong with this node's configuration, and what is in force."""

import argparse
import sys
from pathlib import Path

from proplet.agent.cli import CONFIG, OK
from proplet.agent.config import ConfigError, Loaded, read
from proplet.agent.config_schema import PermissionsTable
from proplet.agent.config_show import show as lines


def check(options: argparse.Namespace) -> int:
    """List every problem (exit code 78), or say what the node would be (exit code 0)."""
    try:
        loaded = _read(options)
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        count = len(error.problems)
        sys.stderr.write(f"proplet: error: the configuration has {count} problem{'' if count == 1 else 's'}\n")
        return CONFIG
    settings = loaded.settings
    parts = ["agent", *(["broker"] if settings.broker else []), *(["manager"] if settings.manager else [])]
    broker = settings.mqtt.address or "its own broker"
    sys.stdout.write(f"ok: {settings.node.id}: {', '.join(parts)}; MQTT at {broker}; {_files(loaded)}\n")
    sys.stdout.write(f"tasks may ask for: {_permissions(settings.agent.permissions)}\n")
    return OK


def _permissions(given: PermissionsTable) -> str:
    """Say what the node gives to tasks that ask, and what that means where the words alone mislead."""
    parts = [
        f"{allowed.host} ({'reading' if allowed.read_only else 'writing'}{', all have it' if allowed.always else ''})"
        for allowed in given.dirs
    ]
    parts += ["outbound HTTP"] if given.http else []
    parts += ["sockets (only the wasmtime program as the host runtime opens any)"] if given.tcp else []
    parts += [f"the secrets {', '.join(given.secrets)}"] if given.secrets else []
    if not parts:
        return "nothing of this machine ([agent.permissions] has no entries)"
    anywhere = "; the engine cannot hold a guest to hosts: it reaches any address, this machine's services among them"
    return ", ".join(parts) + (anywhere if given.http or given.tcp else "")


def show(options: argparse.Namespace) -> int:
    """Print the effective configuration as TOML, each value with where it is from."""
    loaded = _read(options)
    sys.stdout.write(f"# {_files(loaded)}\n\n")
    sys.stdout.write("\n".join(lines(loaded.settings, loaded.origins)).rstrip() + "\n")
    return OK


def _read(options: argparse.Namespace) -> Loaded:
    loaded = read(Path(options.config) if options.config else None)
    for warning in loaded.warnings:
        sys.stderr.write(f"proplet: warning: {warning}\n")
    return loaded


def _files(loaded: Loaded) -> str:
    return f"read {', '.join(str(path) for path in loaded.files)}" if loaded.files else "no configuration file"
