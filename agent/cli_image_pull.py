"""``proplet image pull``: bring images into the store of this node, and the store itself for the commands beside it."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from proplet.agent import parts, render
from proplet.agent.bars import bars
from proplet.agent.cli import FAILED, OK, CliError
from proplet.agent.cli_run import configured, own_directory
from proplet.agent.fetch import ModulesSettings
from proplet.agent.ports import StorageError
from proplet.oci import pull as pulling
from proplet.oci.errors import OciError
from proplet.oci.layout import OciLayout
from proplet.oci.pins import Pins
from proplet.oci.pulled import Progress, PulledModule, PullPolicy
from proplet.oci.reference import Reference
from proplet.oci.settings import RegistrySettings
from proplet.oci.signatures import fetch
from proplet.oci.sources import open_sources


def pull(options: argparse.Namespace) -> int:
    """Pull the images that are named; one that fails is said and the others still come."""
    pulled: list[tuple[str, PulledModule]] = []
    failed = 0
    with open_store(options) as (layout, settings), bars(quiet=options.quiet) as shown:

        def tell(progress: Progress) -> None:
            shown.tell(progress.bytes_done, progress.bytes_total)

        for image in dict.fromkeys(options.images):
            shown.begin("pulling", image)
            try:
                module = pulling.pull(
                    image, layout, settings.registry, policy=PullPolicy(options.policy), progress=tell
                )
            except OciError as error:
                shown.end()
                failed += 1
                complain(image, error)
            else:
                warnings = list(module.warnings)
                if options.policy == PullPolicy.ALWAYS.value or not module.from_cache:
                    warnings += _bring_signatures(module, layout, settings.registry)
                shown.end()
                sys.stderr.writelines(f"proplet: warning: {render.one_line(text)}\n" for text in warnings)
                pulled.append((image, module))
    if options.output == "json":
        sys.stdout.write(render.as_json([_document(image, module) for image, module in pulled]))
    elif pulled:
        table([["IMAGE", "DIGEST", "SIZE", "SIGNER"], *(_row(module) for _, module in pulled)])
    return FAILED if failed else OK


@contextmanager
def open_store(options: argparse.Namespace, *, hold: bool = False) -> Iterator[tuple[OciLayout, ModulesSettings]]:
    """Yield this node's store of images and the settings it is used with, as the configuration says.

    ``hold``: nothing is removed from it meanwhile, by whichever process.

    Raises:
        CliError: it cannot be opened, or something of `proplet.oci` is not caught inside.
    """
    node = configured(options)
    settings = parts.modules_settings(node)
    try:
        own_directory(node.node.state_dir)
        layout = OciLayout(settings.store_dir.absolute())
        with Pins(layout.root) if hold else nullcontext() as pins:
            if pins is not None:
                pins.hold_everything()
            yield layout, settings
    except (OciError, StorageError) as error:
        raise CliError(str(error)) from error


def complain(name: str, error: OciError | str) -> None:
    """Say why one of several images failed, in a line on standard error."""
    text = str(error)
    where = "" if name in text else f"{render.one_line(render.without_user(name))}: "
    sys.stderr.write(f"proplet: error: {where}{render.one_line(text)}\n")


def table(rows: list[list[str]]) -> None:
    """Print rows in aligned columns."""
    sys.stdout.writelines(
        f"{line}\n" for line in render.aligned([[render.one_line(cell) for cell in row] for row in rows])
    )


def _bring_signatures(module: PulledModule, layout: OciLayout, settings: RegistrySettings) -> list[str]:
    """Keep who signed the image beside it, for exports and for later policies; what hinders that is only a warning."""
    if not isinstance(module.reference, Reference):
        return []
    try:
        with open_sources(module.reference.with_digest(module.manifest_digest), settings) as sources:
            fetch(module.reference, module.manifest_digest, layout, sources)
    except OciError as error:
        return [f"the signatures of {module.reference} could not be brought: {error}"]
    return []


def _row(module: PulledModule) -> list[str]:
    return [str(module.reference), str(module.manifest_digest), render.size(module.size), module.signer or "-"]


def _document(image: str, module: PulledModule) -> dict[str, Any]:
    return {
        "image": image,
        "reference": str(module.reference),
        "digest": str(module.manifest_digest),
        "moduleDigest": str(module.module_digest),
        "size": module.size,
        "mediaType": module.media_type,
        "signer": module.signer,
        "fromStore": module.from_cache,
    }
