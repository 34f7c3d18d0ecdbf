"""Who may read a page of `health`, and the files that this and TLS need, read anew when they change."""

import hmac
import ipaddress
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSED: Final = (
    "only for this machine: start the manager with --metrics-token-file=FILE and show that token, "
    "or with --metrics-secure=false for everybody (metrics_token_file and metrics_open in [kubernetes])\n"
)
_SHOW_IT: Final = "show the token of --metrics-token-file: Authorization: Bearer TOKEN\n"


class FileError(Exception):
    """A file cannot be used; the message says which and why."""


class Kept(Generic[T]):
    """What is made of files: made anew when one changes, as it was while that fails (cert-manager replaces them)."""

    def __init__(self, files: Sequence[str], make: Callable[[], T]) -> None:
        """Raises FileError: it cannot be made."""
        self._files = files
        self._make = make
        self._stamp = self._look()
        try:
            self._made = make()
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise FileError(f"{' and '.join(files)}: {error}") from error

    def get(self) -> T:
        """Return it, made of what the files have now."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._made = self._make()
                log.info("%s read anew", " and ".join(self._files))
            except (OSError, ValueError) as error:
                log.warning("%s cannot be used, what was there before is: %s", " and ".join(self._files), error)
        return self._made

    def _look(self) -> list[tuple[int, ...]]:
        stamps = list[tuple[int, ...]]()
        for file in self._files:
            try:
                seen = Path(file).stat()
                stamps.append((seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
            except OSError:
                stamps.append(())
        return stamps


def kept_certificate(files: tuple[str, str]) -> Kept[ssl.SSLContext]:
    """A server's side of TLS with a certificate and its key. Raises FileError."""

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*files)
        return context

    return Kept(files, make)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the address it comes from ("" if that is not known), and its `Authorization` header."""

    address: str = ""
    authorization: bytes = b""


class Guard:
    """Lets in who shows the token of a file; where there is none, who is on this machine, or everybody."""

    def __init__(self, token_file: str | None = None, *, everybody: bool = False) -> None:
        """Raises FileError: the token cannot be read."""
        self._everybody = everybody
        self._token = Kept((token_file,), lambda: _token(token_file)) if token_file else None

    def refusal(self, caller: Caller) -> tuple[int, str] | None:
        """Return status and text for who is not let in, None for who is."""
        if self._token is not None:
            scheme, _, shown = caller.authorization.partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), self._token.get()):
                return None
            return 401, _SHOW_IT
        return None if self._everybody or _is_near(caller.address) else (403, _CLOSED)


def _token(file: str) -> bytes:
    token = Path(file).read_bytes().strip()
    if not token:
        raise ValueError("it is empty")
    return token


def _is_near(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
