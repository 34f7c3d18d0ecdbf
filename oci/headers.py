"""What the headers of an answer say, read with suspicion."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from proplet.oci.errors import RegistryError


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
