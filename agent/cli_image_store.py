"""``proplet image ls``, ``rm`` and ``gc``: what this node's store holds, and what is to leave it."""

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from proplet.agent import render
from proplet.agent.cli import OK, USAGE, CliError
from proplet.agent.cli_image_pull import open_store, table
from proplet.agent.config_values import parse_size
from proplet.agent.journal_needs import unfinished_needs
from proplet.oci.collecting import Collected, collect, remove, used_by
from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidReference
from proplet.oci.reference import Reference, parse_image
from proplet.oci.survey import Blob, StoredImage, Survey, checked, survey

_DIGEST_START: Final = re.compile(r"(?:(sha256|sha512):)?([0-9a-f]{4,128})")


def ls(options: argparse.Namespace) -> int:
    """List the images, after every byte of them was compared with its digest."""
    with open_store(options) as (layout, settings):
        found = survey(layout)
        told = unfinished_needs(settings.journal) if settings.journal else {}
        users = used_by(layout, found, told or {})
        signed = {image.digest: found.signatures_of(image) for image in found.images}
        images = [image for image in checked(layout, found.images) if options.all or image.signs is None]
    loose = list(found.loose) if options.all else []
    images.sort(key=lambda image: (image.names or ("",), image.digest))
    loose.sort(key=lambda blob: blob.digest)
    if options.output == "json":
        said = [_document(image, users, signed[image.digest]) for image in images]
        sys.stdout.write(render.as_json([*said, *(_document(blob, users, ()) for blob in loose)]))
        return OK
    rows = [row for image in images for row in _rows(image, users, signed[image.digest], digests=options.digests)]
    rows += [row for blob in loose for row in _rows(blob, users, (), digests=options.digests)]
    if rows:
        head = ["NAME", "TAG", "DIGEST"] if options.digests else ["NAME", "TAG OR DIGEST"]
        table([[*head, "SIZE", "LAST USED", "NOTES"], *rows])
    elif found.images or found.loose:
        sys.stderr.write("the store has no images, only modules that came with tasks: add --all\n")
    else:
        sys.stderr.write("the store is empty\n")
    return OK


def rm(options: argparse.Namespace) -> int:
    """Forget images and delete what no other needs: all that are named, or none."""
    with open_store(options) as (layout, settings):
        found = survey(layout)
        wanted = [_named(found, text) for text in options.images]
        done = remove(layout, wanted, partial(unfinished_needs, settings.journal) if settings.journal else dict)
    if not options.quiet:
        _tell(done, "removed")
    return OK


def gc(options: argparse.Namespace) -> int:
    """Delete what was not used for longest."""
    with open_store(options) as (layout, settings):
        budget = settings.store_bytes
        if options.size is not None:
            try:
                budget = parse_size(options.size)
            except ValueError as error:
                raise CliError(str(error), USAGE) from error
        needed = partial(unfinished_needs, settings.journal) if settings.journal else dict
        done = collect(layout, budget, needed=needed, dry_run=options.dry_run)
    would = "would be " if options.dry_run else ""
    if not options.quiet:
        _tell(done, f"{would}removed")
    sys.stdout.write(f"{render.size(done.freed)} {would}freed; the store has {render.size(done.size)}")
    sys.stdout.write(f" of {render.size(budget)}\n")
    if done.size > budget:
        sys.stderr.write("proplet: warning: what is left is in use, or was written just now, and had to stay\n")
    return OK


def _tell(done: Collected, what: str) -> None:
    for item in done.removed:
        names = ", ".join(item.names) or str(item.digest)
        sys.stdout.write(f"{what} {render.one_line(names)} ({render.size(item.size)})\n")
    if done.leftovers:
        sys.stdout.write(f"{what} downloads that were broken off ({render.size(done.leftovers)})\n")


def _named(found: Survey, text: str) -> StoredImage | Blob | str:
    """What of the store somebody means: by a name in it, or by the beginning of a digest."""
    names = {name for image in found.images for name in image.names}
    try:
        reference = parse_image(text)
    except InvalidReference:
        reference = None
    for name in (text, reference.store_name if reference else ""):
        if name in names:
            return name
    if isinstance(reference, Reference) and reference.digest is not None:
        for image in found.images:
            if image.digest == reference.digest and any(name.startswith(reference.name) for name in image.names):
                return image
    elif (start := _DIGEST_START.fullmatch(text)) is not None:
        algorithm, digits = start.groups()
        fit = [
            item
            for item in found.items
            if item.digest.hex.startswith(digits) and algorithm in (None, item.digest.algorithm)
        ]
        if len(fit) > 1:
            several = ", ".join(str(item.digest)[: len("sha256:") + len(digits) + 8] for item in fit[:6])
            raise CliError(f"{text} is the beginning of several digests: {several}; write more of it")
        if fit:
            return fit[0]
    raise CliError(f"{render.one_line(text)} is not in the store; `proplet image ls` shows what is")


def _notes(item: StoredImage | Blob, users: Mapping[Digest, str], signed: Sequence[StoredImage]) -> str:
    damage = item.damage if isinstance(item, StoredImage) else ""
    notes = [f"damaged: {damage}"] if damage else []
    if item.digest in users:
        notes.append(f"in use{users[item.digest]}")
    if signed:
        notes.append("signed")
    if isinstance(item, StoredImage) and item.signs is not None:
        notes.append(f"about {item.signs.short}")
    return ", ".join(notes)


def _rows(
    item: StoredImage | Blob, users: Mapping[Digest, str], signed: Sequence[StoredImage], *, digests: bool
) -> list[list[str]]:
    used = f"{render.age(time.time() - item.last_used)} ago" if item.last_used else "-"
    rest = [render.size(item.size), used, _notes(item, users, signed)]
    rows = []
    for name in item.names or ("",):
        repository, tag = _split(name)
        where = [tag or "-", str(item.digest)] if digests else [tag or item.digest.short]
        rows.append([repository or "-", *where, *rest])
    return rows


def _split(name: str) -> tuple[str, str]:
    """A name of the store as repository and tag; the tag is empty where it has none."""
    if "://" in name:
        return name, ""
    repository, at, _ = name.partition("@")
    if at:
        return repository, ""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "")


def _document(item: StoredImage | Blob, users: Mapping[Digest, str], signed: Sequence[StoredImage]) -> dict[str, Any]:
    image = item if isinstance(item, StoredImage) else None
    return {
        "names": list(item.names),
        "digest": str(item.digest),
        "module": str(image.module) if image and image.module else None,
        "mediaType": image.media_type if image else None,
        "size": item.size,
        "lastUsed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(item.last_used)) if item.last_used else None,
        "inUse": item.digest in users,
        "usedBy": users.get(item.digest, "").removeprefix(" by ") or None,
        "signatures": sorted(name for other in signed for name in other.names),
        "about": str(image.signs) if image and image.signs else None,
        "damage": (image.damage or None) if image else None,
    }
