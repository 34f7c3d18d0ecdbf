"""``proplet image push``: a ``.wasm`` file, or an image of the store with its signatures, into a registry."""

import argparse
import os
import sys
from pathlib import Path

from proplet.agent import render
from proplet.agent.bars import Bars, bars
from proplet.agent.cli import OK, USAGE, CliError
from proplet.agent.cli_image_pull import open_store, table
from proplet.oci.errors import InvalidReference
from proplet.oci.layout import OciLayout
from proplet.oci.push import Pushed, push_file, push_stored
from proplet.oci.reference import Reference
from proplet.oci.settings import RegistrySettings


def push(options: argparse.Namespace) -> int:
    """Push, and say what is in the registry now."""
    file = _file(options.module)
    target = _target(options.image) if options.image is not None else None
    annotations = dict(_annotation(text) for text in options.annotation)
    if file is not None and target is None:
        raise CliError(
            f"{options.module} is a file: say under which name to push it, such as ghcr.io/org/name:v1", USAGE
        )
    if file is None and annotations:
        raise CliError("--annotation is for a .wasm file: an image of the store is pushed as it is", USAGE)
    with open_store(options, hold=True) as (layout, settings), bars(quiet=options.quiet) as shown:
        shown.begin("pushing", str(target or options.module))
        if file is not None and target is not None:
            done = _push_file(file, target, settings.registry, annotations, shown)
        else:
            done = _push_stored(layout, options.module, target, settings.registry, shown)
        shown.end()
    if options.output == "json":
        sys.stdout.write(
            render.as_json(
                {
                    "image": str(done.reference),
                    "digest": str(done.digest),
                    "size": done.size,
                    "sentBytes": done.sent_bytes,
                    "signatures": done.signatures,
                }
            )
        )
    else:
        table(
            [
                ["IMAGE", "DIGEST", "SIZE", "SENT"],
                [str(done.reference), str(done.digest), render.size(done.size), render.size(done.sent_bytes)],
            ]
        )
    return OK


def _push_file(
    file: Path, target: Reference, registry: RegistrySettings, annotations: dict[str, str], shown: Bars
) -> Pushed:
    try:
        created = _created(file)
        return push_file(file, target, registry, created=created, annotations=annotations, progress=shown.tell)
    except OSError as error:
        raise CliError(f"{file}: {error.strerror or error}") from error


def _push_stored(
    layout: OciLayout, name: str, target: Reference | None, registry: RegistrySettings, shown: Bars
) -> Pushed:
    return push_stored(layout, name, target, registry, progress=shown.tell)


def _file(name: str) -> Path | None:
    """The local file that is meant, by the rules of `cli_run.local_module`; None for an image."""
    path = Path(name)
    if path.suffix == ".wat":
        raise CliError(f"{name} is WebAssembly as text: compile it first (wat2wasm {name})", USAGE)
    if "://" in name or not (path.suffix == ".wasm" or name.startswith((".", "/", "~")) or path.is_file()):
        return None
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise CliError(f"{name}: {error}") from error


def _target(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except InvalidReference as error:
        raise CliError(str(error), USAGE) from error


def _created(file: Path) -> float:
    """When it was made: so that the same file is the same image again. Source: reproducible-builds.org's variable."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    return float(told) if told.isascii() and told.isdigit() and len(told) < 12 else file.stat().st_mtime


def _annotation(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise CliError(f"--annotation {text}: write KEY=VALUE", USAGE)
    return key, value
