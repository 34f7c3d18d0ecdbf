"""The module in a layer that is a tar archive, as container images built ``FROM scratch`` have it.

Place in the flow: `pull` calls `module_in` once the layer is in the store, whole. The archive's one ``.wasm`` file
becomes a blob of its own, and ``unpacked/<algorithm>-<hex of the layer>`` remembers which. Nothing that the archive
calls its members is used as a path, and no more of it is unpacked than a module may have and its wrapping needs.

Layer media types: OCI image specification 1.1, layer.md; Docker image manifest version 2, schema 2.
"""

import zlib
from contextlib import suppress
from io import SEEK_CUR, SEEK_END, SEEK_SET
from pathlib import Path
from typing import BinaryIO, cast

from proplet.oci.digest import Digest
from proplet.oci.errors import AmbiguousLayer, InvalidArchive, InvalidDigest, NoWasmLayer, StoreDamaged, TooLarge
from proplet.oci.files import mapped, replace
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor
from proplet.oci.tarball import Member, members

_CHUNK = 128 * 1024
_MAX_AROUND = 64 * 1024 * 1024  # what may be in the archive beside the module
_MAX_NOTE_BYTES = 256
_FAR = 1 << 62
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def module_in(layout: OciLayout, layer: Descriptor, limit: int) -> Digest:
    """The module in a layer of the store, whose bytes are compared with its digest before they are unpacked.

    Unpacked already, the module is taken as it is once it was compared with its digest.

    Raises:
        NotInStore, StoreDamaged: the layer is not here, or not whole.
        InvalidArchive: it is no tar archive, plain or compressed with gzip, or a damaged one.
        NoWasmLayer, AmbiguousLayer: it holds no file ``*.wasm``, or several.
        TooLarge: the module has more than ``limit`` bytes, or the archive unpacks to much more.
        DiskFull, StoreReadOnly, StoreFailed: the disk.
    """
    known = noted(layout, layer.digest)
    if known is not None and layout.has(known):
        with suppress(StoreDamaged):
            if layout.verify(known) <= limit:
                return known
    with layout.open_verified(layer.digest) as file:
        module = _unpack(layout, file, limit)
    directory = layout.root / "unpacked"
    with mapped(layout.root):
        directory.mkdir(mode=0o700, exist_ok=True)
        replace(_note(layout, layer.digest), str(module).encode())
    return module


def noted(layout: OciLayout, layer: Digest) -> Digest | None:
    """The module that was unpacked from a layer, by the store's notes; whether it is still here is not looked at."""
    with suppress(OSError, InvalidDigest), _note(layout, layer).open("rb") as file:
        return Digest.parse(file.read(_MAX_NOTE_BYTES).decode("ascii", "replace").strip())
    return None


def _note(layout: OciLayout, layer: Digest) -> Path:
    return layout.root / "unpacked" / f"{layer.algorithm}-{layer.hex}"


def _unpack(layout: OciLayout, file: BinaryIO, limit: int) -> Digest:
    head = file.read(len(_GZIP))
    file.seek(0)
    archive = cast("BinaryIO", _Inflated(file, limit + _MAX_AROUND)) if head == _GZIP else file
    found: tuple[str, Digest] | None = None
    for member in members(archive):
        if not member.name.endswith(".wasm"):
            continue
        if found is not None:
            raise AmbiguousLayer(
                f"the image holds several modules ({found[0]}, {member.name}): build one with the one to run"
            )
        if member.size > limit:
            raise TooLarge(f"{member.name} in the image has {member.size} bytes, more than the limit of {limit}")
        found = member.name, _copy(layout, archive, member)
    if found is None:
        raise NoWasmLayer("the image holds no file *.wasm: copy the module into it, or push it as an artifact")
    return found[1]


def _copy(layout: OciLayout, archive: BinaryIO, member: Member) -> Digest:
    archive.seek(member.offset)
    with layout.new_blob(size=member.size, what=f"{member.name} in the image") as writer:
        left = member.size
        while left:
            chunk = archive.read(min(left, _CHUNK))
            if not chunk:
                raise InvalidArchive(f"the image's layer ends in the middle of {member.name}")
            writer.write(chunk)
            left -= len(chunk)
        return writer.commit()


class _Inflated:
    """A gzip stream (RFC 1952), read forwards, with as much of `BinaryIO` as reading an archive needs.

    Raises:
        InvalidArchive: it is damaged, or somebody wants to go back.
        TooLarge: it unpacks to more than ``limit`` bytes.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._inflater = zlib.decompressobj(_GZIP_WINDOW)
        self._ready = b""
        self._at = 0

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to a place further on. Where the end is nobody knows: far away."""
        if whence == SEEK_END:
            return _FAR
        wanted = offset + (self._at if whence == SEEK_CUR else 0)
        if wanted < self._at:
            raise InvalidArchive("the archive's parts are not in their order")
        while self._at < wanted and self.read(min(wanted - self._at, _CHUNK)):
            pass
        return self._at

    def read(self, size: int) -> bytes:
        """The next bytes; fewer only at the end."""
        pieces = []
        while size and (self._ready or self._inflate()):
            pieces.append(self._ready[:size])
            self._ready = self._ready[size:]
            size -= len(pieces[-1])
            self._at += len(pieces[-1])
        return b"".join(pieces)

    def _inflate(self) -> bool:
        """Get more ready, never more than a chunk; False at the end."""
        while not self._ready:
            if self._inflater.eof:
                self._inflater, rest = zlib.decompressobj(_GZIP_WINDOW), self._inflater.unused_data
                data = rest or self._file.read(_CHUNK)
                if not data.strip(b"\0"):  # the end, or what pads it
                    return False
            else:
                data = self._inflater.unconsumed_tail or self._file.read(_CHUNK)
                if not data:
                    raise InvalidArchive("the image's layer ends in the middle: its gzip stream is cut short")
            try:
                self._ready = self._inflater.decompress(data, _CHUNK)
            except zlib.error as error:
                raise InvalidArchive(f"the image's layer cannot be unpacked: {error}") from None
        if self._at + len(self._ready) > self._limit:
            raise TooLarge(f"the image's layer unpacks to more than {self._limit} bytes: it is no module")
        return True
