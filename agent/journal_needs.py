"""What the unfinished tasks of a node need of its store, read from the journal of a node that does not run.

Place in the flow: whoever removes modules asks here (the command line, a builder); a running node has pinned what it
needs (`module_holds`), so then nothing is read. Never disturbs a node that starts meanwhile: no lock is ever taken.
"""

import fcntl
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from proplet.agent import codec, wire
from proplet.agent.ports import StorageError
from proplet.oci.errors import OciError
from proplet.oci.reference import parse_image

_FLOCK: Final = struct.Struct("@hhqqi0q")  # as in `proplet.oci.pins`


def unfinished_needs(journal: Path) -> Mapping[str, str] | None:
    """Return what must stay, digests and names in the store, each with the task that needs it; None if a node runs.

    Raises:
        StorageError: the journal cannot be read: what it needs is then not known.
    """
    try:
        if not journal.exists():
            return {}
        if _in_use(journal):
            return None
        with tempfile.TemporaryDirectory(prefix="proplet-") as directory:
            needs = _read(journal, Path(directory))
        return None if _in_use(journal) else needs  # what was read of one that just started is worth nothing
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"{journal} cannot be read ({error}), so what unfinished tasks need is not known and nothing is removed: "
            "start the node once, or move that file away"
        ) from error


def _in_use(journal: Path) -> bool:
    """Whether a node has it open: it then holds SQLite's locks on it, which are asked for and not taken."""
    descriptor = os.open(journal, os.O_RDWR | os.O_CLOEXEC)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(_FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _read(journal: Path, spare: Path) -> dict[str, str]:
    log = journal.with_name(f"{journal.name}-wal")
    if log.exists() and log.stat().st_size:  # a node was killed: the latest is in there, and only SQLite can say what
        shutil.copyfile(journal, spare / journal.name)
        shutil.copyfile(log, spare / log.name)
        journal = spare / journal.name
        address = f"{journal.as_uri()}?mode=rw"
    else:
        address = f"{journal.absolute().as_uri()}?immutable=1"
    needs: dict[str, str] = {}
    with closing(sqlite3.connect(address, uri=True)) as db:
        columns = {row[1] for row in db.execute("PRAGMA table_info(attempts)")}
        if not columns:
            return needs
        image = "image_digest" if "image_digest" in columns else "NULL"
        query = f"SELECT task_id, module_digest, {image}, start FROM attempts WHERE start IS NOT NULL"  # noqa: S608
        for task_id, module_digest, image_digest, start in db.execute(query):
            who = f"task {task_id}"
            needs |= dict.fromkeys(filter(None, (module_digest, image_digest)), who)
            with suppress(codec.WireError, OciError):
                needs |= dict.fromkeys(_of_start(codec.decode_as(wire.Start, start)), who)
    return needs


def _of_start(start: wire.Start) -> list[str]:
    pinned = start.ext.image_digest if start.ext else None
    names = [parse_image(start.image_url).store_name] if start.image_url else []
    return [*names, pinned] if pinned else names
