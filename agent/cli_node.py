"""``proplet up`` and ``proplet service``: this node as a process, and as a service of the machine."""

import argparse
import sys
from pathlib import Path

from proplet.agent.cli import OK
from proplet.agent.config import FLAGS, read

_FLAGS = {
    **{flag.replace("-", "_"): setting for setting, flag in FLAGS.items()},
    "client_key": "mqtt.client_key",
    "client_key_file": "mqtt.client_key_file",
    "log_level": "node.log_level",
}


def up(options: argparse.Namespace) -> int:
    """Run the node until it is told to end."""
    import logging

    from proplet.agent.systemd import configure_logging

    given = ((setting, getattr(options, flag, None)) for flag, setting in _FLAGS.items())
    flags = {setting: text for setting, text in given if text is not None}
    loaded = read(Path(options.config) if options.config else None, flags=flags)
    # WARN and ERROR are names of logging's, too.
    configure_logging(getattr(logging, loaded.settings.node.log_level.name))
    log = logging.getLogger(__name__)
    log.info("%s", f"configuration: {', '.join(map(str, loaded.files))}" if loaded.files else "no configuration file")
    for warning in loaded.warnings:
        log.warning("%s", warning)
    from proplet.agent.daemon import run

    return run(loaded.settings)


def service_install(options: argparse.Namespace) -> int:
    """Install the service."""
    from proplet.agent.unit import install_unit

    return _said(install_unit(start=not options.no_start))


def service_uninstall(options: argparse.Namespace) -> int:
    """Remove the service."""
    from proplet.agent.unit import uninstall_unit

    return _said(uninstall_unit(purge=options.purge))


def _said(done: list[str]) -> int:
    for line in done:
        sys.stdout.write(f"{line}\n")
    return OK
