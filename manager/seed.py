"""Manifests in a directory, applied when the manager starts: what a device is to do without anybody asking.

Applying the same again changes nothing, so a Task that has run is not run again. A file that cannot be read, or a Task
or job that can no longer be changed, is said in the log; the others are applied all the same.
"""

import logging
from pathlib import Path
from typing import Final

import anyio.to_thread

from proplet.manager import rules
from proplet.manager.manifest import ManifestError, parse_documents
from proplet.manager.model import Resource
from proplet.manager.ports import AlreadyExistsError, ConflictError, NotFoundError, Store
from proplet.manager.runs import merged

log = logging.getLogger(__name__)

SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_MOST_BYTES: Final = 64 * 1024 * 1024


async def apply_directory(store: Store, directory: Path) -> int:
    """Apply the manifests in `directory`, in order of their names; return how many changed something.

    A directory that does not exist is an empty one. Raises StoreError.
    """
    changed = 0
    for path in await anyio.to_thread.run_sync(_files, directory):
        try:
            resources = await anyio.to_thread.run_sync(_read, path)
        except (ManifestError, OSError) as error:
            log.error("manifest %s is not applied: %s", path, error)  # noqa: TRY400 - the message says it all
            continue
        for resource in resources:
            changed += await _apply(store, resource, path)
    return changed


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _read(path: Path) -> list[Resource]:
    if path.stat().st_size > _MOST_BYTES:
        raise OSError(f"it has more than {_MOST_BYTES >> 20} MiB")
    return parse_documents(path.read_bytes(), str(path))


async def _apply(store: Store, wanted: Resource, path: Path) -> bool:
    while True:
        try:
            current = await store.get(wanted.kind, wanted.meta.key)
            changed = merged(current, wanted)
            if changed == current:
                return False
            if frozen := rules.frozen(current, changed):
                what = f"{wanted.kind.value} {current.meta.key} has started: {', '.join(frozen)} cannot change any more"
                log.error("%s: %s; give the new one another name", path, what)
                return False
            await store.put(changed)
        except NotFoundError:
            try:
                await store.create(wanted)
            except AlreadyExistsError:
                continue
        except ConflictError:
            continue
        log.info("%s: applied %s %s", path, wanted.kind.value, wanted.meta.key)
        return True
