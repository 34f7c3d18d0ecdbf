"""What the headers of an answer say, read with suspicion."""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

from proplet.oci.errors import RegistryError

_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_LINK = re.compile(r"<([^<>]{1,2000})>((?:\s*;[^,<]*)*)")


def content_length(headers: Mapping[str, str]) -> int | None:
    """The announced length of the body.

    Raises:
        RegistryError: the body is compressed although we asked for it as stored.
    """
    if headers.get("Content-Encoding", "identity").lower() not in {"", "identity"}:
        raise RegistryError(
            "the registry compresses what was asked for as stored: turn that off, or fix the proxy between"
        )
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the registry asks us to wait: a number or a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def content_range(headers: Mapping[str, str]) -> tuple[int, int, int] | None:
    """First and last byte of a partial body and the size of the whole, or None (RFC 9110, 14.4)."""
    found = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def next_page(headers: Mapping[str, str], url: str) -> str | None:
    """Where the list at ``url`` goes on: what a Link header calls ``rel="next"`` (RFC 8288), or None."""
    for found in _LINK.finditer(headers.get("Link", "")):
        if re.search(r';\s*rel\s*=\s*"?next"?\s*(;|$)', found[2]):
            try:
                return urljoin(url, str(found[1]))
            except ValueError:  # an address in brackets that is none
                return None
    return None
