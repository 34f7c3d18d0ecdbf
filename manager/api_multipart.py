"""Reads one file out of a multipart/form-data body (RFC 7578) that is in memory already.

Small on purpose: the upload route needs one named part with a file name, nothing else. The part's bytes are a view into
the body, never decoded, so a module cannot be altered on its way.
"""

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

_MAX_PARTS = 32
_MAX_PART_HEAD = 8 * 1024


class MultipartError(ValueError):
    """The body is no multipart/form-data, or lacks what is needed; the message says which."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """An uploaded file: the name the sender gave it, and its bytes."""

    filename: str
    content: bytes


def file_part(content_type: str, body: bytes, name: str) -> FilePart:
    """Return the part called `name`, a file.

    Raises:
        MultipartError: not multipart/form-data, malformed, or there is no such part.
    """
    boundary = _boundary(content_type)
    delimiter = b"--" + boundary
    # The first delimiter may stand at the very start; every other one is preceded by CRLF, which belongs to it.
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if at == 1:
        raise MultipartError("the body does not contain the boundary its Content-Type names")
    for _ in range(_MAX_PARTS):
        at += len(delimiter)
        if body[at : at + 2] == b"--":
            raise MultipartError(f"there is no part named {name!r} with a file")
        line_end = body.find(b"\r\n", at)
        if line_end < 0 or body[at:line_end].strip(b" \t"):
            raise MultipartError("a boundary is not followed by the end of its line")
        end = body.find(b"\r\n" + delimiter, line_end)
        if end < 0:
            raise MultipartError("the body ends before its last boundary")
        found = _read_part(body, line_end + 2, end, name)
        if found is not None:
            return found
        at = end + 2
    raise MultipartError(f"there are more than {_MAX_PARTS} parts")


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise MultipartError("send multipart/form-data with a boundary")
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise MultipartError("the boundary must have 1 to 70 ASCII characters")
    return boundary.encode("ascii")


def _read_part(body: bytes, start: int, end: int, name: str) -> FilePart | None:
    # A part without headers begins with the empty line at once; it has no name, so it is not ours.
    head_end = body.find(b"\r\n\r\n", start - 2, min(end + 4, start + _MAX_PART_HEAD))
    if head_end < 0:
        raise MultipartError("a part's headers do not end")
    head = BytesHeaderParser().parsebytes(body[start : head_end + 2])
    if head.get_param("name", header="Content-Disposition") != name:
        return None
    filename = head.get_filename()
    if filename is None:
        return None
    return FilePart(filename, body[head_end + 4 : end])
