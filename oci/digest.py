"""Content digests: the value, and a hasher that checks bytes while they stream.

Grammar and registered algorithms: OCI image specification 1.1, descriptor.md, "Digests".
"""

import hashlib
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from proplet.oci.errors import DigestMismatch, InvalidDigest, SizeMismatch, Truncated

# Hex digits of each registered algorithm; blake3 is registered too but is not in the standard library.
_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_BATCH_BYTES = 1024 * 1024
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The name of some bytes: an algorithm and the lower-case hex of their hash.

    Raises:
        InvalidDigest: for an unknown algorithm, upper-case or too few or many digits.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.algorithm)
        if length is None:
            raise InvalidDigest(f"digest algorithm {self.algorithm[:40]!r} is not known: use sha256 or sha512")
        if len(self.hex) != length:
            raise InvalidDigest(f"a {self.algorithm} digest has {length} hex digits, not {len(self.hex)}")
        if not _HEX.fullmatch(self.hex):
            raise InvalidDigest(f"a {self.algorithm} digest consists of the digits 0-9 and a-f (lower case) only")

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """The digest written as ``algorithm:hex``.

        Raises:
            InvalidDigest: for anything else.
        """
        algorithm, colon, digits = text.partition(":")
        if not colon:
            raise InvalidDigest(f"{text[:80]!r} is not a digest: write it as sha256:<64 hex digits>")
        return cls(algorithm, digits)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> "Digest":
        """The digest of some bytes."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    @property
    def short(self) -> str:
        """The algorithm and the first twelve digits, for people."""
        return f"{self.algorithm}:{self.hex[:12]}"

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class VerifyingHasher:
    """An incremental hash that knows what should come out, and how many bytes should go in.

    ``update`` refuses the first byte too many, so that an endless body costs no more than the promised size.
    """

    def __init__(self, expected: Digest | None = None, size: int | None = None, what: str = "the content") -> None:
        """Expect this digest and size; None means that any will do. ``what`` names the bytes in errors."""
        self._expected = expected
        self._algorithm = expected.algorithm if expected else "sha256"
        self._hash = hashlib.new(self._algorithm)
        self._size = size
        self._what = what
        self.count = 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            SizeMismatch: when there are more than announced.
        """
        self.count += len(chunk)
        if self._size is not None and self.count > self._size:
            raise SizeMismatch(f"{self._what} is longer than the {self._size} bytes its descriptor announces")
        self._feed(chunk)

    def _feed(self, chunk: bytes) -> None:
        self._hash.update(chunk)

    def finish(self) -> Digest:
        """The digest of everything taken, once it is known to be the right one.

        Raises:
            Truncated: when bytes are missing.
            DigestMismatch: when the digest is another.
        """
        if self._size is not None and self.count != self._size:
            raise Truncated(f"{self._what} ended after {self.count} of {self._size} bytes")
        found = Digest(self._algorithm, self._hash.hexdigest())
        if self._expected is not None and found != self._expected:
            raise DigestMismatch(
                f"{self._what} has digest {found}, not {self._expected}: it was changed or damaged and is not used"
            )
        return found


class OverlappedHasher(VerifyingHasher):
    """The same, hashing in a second thread while the next bytes are on their way; ``close`` or ``finish`` ends that.

    hashlib lets other threads run while it hashes, and to hash takes as long as to receive.
    """

    def __init__(self, expected: Digest | None = None, size: int | None = None, what: str = "the content") -> None:
        super().__init__(expected, size, what)
        self._batch: list[bytes] = []
        self._batched = 0
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None

    def finish(self) -> Digest:
        """As `VerifyingHasher.finish`."""
        self.close()
        return super().finish()

    def close(self) -> None:
        """Hash what is left and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._hash_all(self._batch)
        self._batch, self._batched = [], 0

    def _feed(self, chunk: bytes) -> None:
        self._batch.append(chunk)
        self._batched += len(chunk)
        if self._batched < _BATCH_BYTES:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "proplet-hash")
        if self._under_way is not None:
            self._under_way.result()  # no more than one batch waits
        self._under_way = self._thread.submit(self._hash_all, self._batch)
        self._batch, self._batched = [], 0

    def _hash_all(self, batch: list[bytes]) -> None:
        for chunk in batch:
            self._hash.update(chunk)
