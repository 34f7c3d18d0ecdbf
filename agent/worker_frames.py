"""The frames that agent and child exchange over their private socket: four bytes of length, then one CBOR value.

Place in the flow: `worker_child` (the agent's end), `worker` and `builder` (the child's end). Several frames may be
written at once and may arrive cut anywhere. CBOR and not pickle or marshal: the child is the less trusted end, and what
it sends must not be able to run code here.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

import cbor2

MAX_FRAME: Final = 256 * 1024 * 1024
RECEIVE_BYTES: Final = 256 * 1024
_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The other end does not speak our frames: the channel is of no more use."""


def encode(messages: Iterable[Any]) -> bytes:
    """Return `messages` as consecutive frames."""
    parts = []
    for message in messages:
        body = cbor2.dumps(message)
        if len(body) > MAX_FRAME:
            raise FrameError(f"a frame of {len(body)} bytes is above the limit of {MAX_FRAME}")
        parts.append(_LENGTH.pack(len(body)))
        parts.append(body)
    return b"".join(parts)


class Decoder:
    """Cuts a stream of bytes back into messages; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield every message that `data` completes.

        Raises:
            FrameError: a length above the limit, or bytes that are not CBOR.
        """
        rest = self._rest
        rest += data
        start = 0
        try:
            while len(rest) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(rest, start)
                if length > MAX_FRAME:
                    raise FrameError(f"a frame claims {length} bytes, the limit is {MAX_FRAME}")
                end = start + _LENGTH.size + length
                if len(rest) < end:
                    break
                body = bytes(memoryview(rest)[start + _LENGTH.size : end])
                start = end
                try:
                    message = cbor2.loads(body)
                except cbor2.CBORDecodeError as error:
                    raise FrameError(f"a frame is not CBOR: {error}") from error
                yield message
        finally:
            del rest[:start]
