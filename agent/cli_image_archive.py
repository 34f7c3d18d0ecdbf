"""``proplet image export`` and ``import``: images and their signatures in a file, for devices without a registry."""

import argparse
import sys
from pathlib import Path
from typing import Any, BinaryIO

from proplet.agent import render
from proplet.agent.bars import bars
from proplet.agent.cli import FAILED, OK, USAGE, CliError
from proplet.agent.cli_image_pull import complain, open_store, table
from proplet.oci import archive, unarchive
from proplet.oci.archive_names import repository_for
from proplet.oci.archive_source import open_source
from proplet.oci.errors import InvalidReference
from proplet.oci.reference import Reference

_STREAM = "-"


def export(options: argparse.Namespace) -> int:
    """Write images into an archive, all of them or none; what was written is said on standard error."""
    if options.file == _STREAM and sys.stdout.isatty():
        raise CliError("an archive is nothing for a terminal: redirect the output, or use -f FILE", USAGE)
    with open_store(options, hold=True) as (layout, _), bars(quiet=options.quiet) as shown:
        shown.begin("exporting", ", ".join(options.images))
        if options.file == _STREAM:
            done = archive.export(layout, options.images, sys.stdout.buffer.write, shown.tell)
            sys.stdout.buffer.flush()
        else:
            with archive.whole_file(Path(options.file)) as file:
                done = archive.export(layout, options.images, file.write, shown.tell)
        shown.end()
    if not options.quiet:
        what = f"{_count(len(done.images), 'image')} and {_count(len(done.signatures), 'signature')}"
        where = "standard output" if options.file == _STREAM else options.file
        sys.stderr.write(f"{what}, {render.size(done.size)}, written to {where}\n")
    return OK


def bring(options: argparse.Namespace) -> int:
    """Take the images of an archive into the store, and say which; one that cannot be is said, the others come."""
    name = "the archive on standard input" if options.file == _STREAM else options.file
    repository = _repository(options)
    source: Path | BinaryIO = Path(options.file)
    if options.file == _STREAM:
        if sys.stdin is None or sys.stdin.isatty():
            raise CliError("standard input is a terminal: name a file, or pipe an archive in", USAGE)
        source = sys.stdin.buffer
    elif not Path(options.file).exists():
        raise CliError(f"{options.file}: no such file or directory")
    with open_store(options, hold=True) as (layout, settings), bars(quiet=options.quiet) as shown:
        shown.begin("importing", name)
        with open_source(source, name, layout.root) as opened:
            done = unarchive.bring(
                opened,
                layout,
                repository=repository,
                max_module_bytes=settings.registry.max_module_bytes,
                progress=shown.tell,
            )
        shown.end()
    for image, reason in done.refused:
        complain(image, f"{image} was not imported: {reason}")
    if options.output == "json":
        sys.stdout.write(render.as_json(_document(done)))
    else:
        _show(done)
    return FAILED if done.refused else OK


def _show(done: unarchive.Imported) -> None:
    if done.images:
        table(
            [
                ["IMAGE", "DIGEST", "SIZE", ""],
                *(
                    [entry.name, str(entry.digest), render.size(entry.size), f"was {entry.replaced.short}"
                     if entry.replaced else ""]
                    for entry in done.images
                ),
            ]
        )  # fmt: skip
    if done.signatures:
        sys.stdout.write(f"and {_count(len(done.signatures), 'signature')}, checked when an image is used\n")


def _document(done: unarchive.Imported) -> dict[str, Any]:
    def listed(entries: list[unarchive.Entry]) -> list[dict[str, Any]]:
        return [
            {
                "image": entry.name,
                "digest": str(entry.digest),
                "size": entry.size,
                "replaced": str(entry.replaced) if entry.replaced else None,
            }
            for entry in entries
        ]

    return {
        "images": listed(done.images),
        "signatures": [{"name": entry.name, "digest": str(entry.digest)} for entry in done.signatures],
        "refused": [{"image": name, "reason": reason} for name, reason in done.refused],
        "copiedBytes": done.copied_bytes,
    }


def _repository(options: argparse.Namespace) -> str:
    if options.name is None:
        return repository_for("image" if options.file == _STREAM else str(Path(options.file).absolute()))
    try:
        reference = Reference.parse(options.name)
    except InvalidReference as error:
        raise CliError(str(error), USAGE) from error
    if options.name.endswith(f":{reference.tag}") or reference.digest is not None:
        raise CliError(f"--name {options.name}: give only the repository, the tags are those of the archive", USAGE)
    return reference.name


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
