"""Image references: ``[oci://][registry/]repository[:tag][@digest]``, parsed and written; and modules by URL.

The grammar is that of the distribution project (its ``reference`` package and the OCI distribution specification 1.1,
"Pulling manifests"), with the defaults of Docker Hub: no registry means ``docker.io``, one path component there means
``library/``. No tag and no digest mean ``latest``. A module may also be a file on a web server:
``https://host/path/x.wasm[#sha256=HEX]``.
"""

import ipaddress
import re
from dataclasses import dataclass, replace

from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest, InvalidReference

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
MAX_REPOSITORY = 255  # bytes; the reference package's limit on a repository name

_SCHEME = "oci://"
_HUB_ALIASES = {"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Reference:
    """What an image reference names.

    ``registry`` is ``host[:port]`` in lower case; an IPv6 host keeps its brackets. Either ``tag`` or ``digest`` or both
    are set; with both, the digest decides.

    Raises:
        InvalidReference: when a part breaks the grammar; the message names the part.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        _check_registry(self.registry)
        _check_repository(self.repository)
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise InvalidReference(
                f"tag {self.tag[:140]!r}: up to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
            )
        if self.tag is None and self.digest is None:
            raise InvalidReference("a reference needs a tag or a digest")

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """The reference written in ``text``.

        Raises:
            InvalidReference: the message quotes the text and names the part that is wrong.
        """
        try:
            return _parse(text)
        except InvalidReference as error:
            raise InvalidReference(f"image reference {text[:300]!r}: {error}") from None

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def host(self) -> str:
        """The registry's host without port and brackets."""
        return split_host_port(self.registry)[0]

    @property
    def manifest_key(self) -> str:
        """What goes into a manifest URL: the digest when there is one, else the tag."""
        return str(self.digest) if self.digest is not None else str(self.tag)

    @property
    def store_name(self) -> str:
        """The name under which a store remembers what this reference resolved to."""
        return f"{self.name}@{self.digest}" if self.digest is not None else f"{self.name}:{self.tag}"

    def with_digest(self, digest: Digest) -> "Reference":
        """The same image, pinned."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"


_URL = re.compile(r"https://[!-~]+", re.IGNORECASE)
_MAX_URL = 2000
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_SLASH = re.compile(r"%2F|%5C", re.IGNORECASE)
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986, section 2.3


@dataclass(frozen=True, slots=True)
class WebReference:
    """A module on a web server: ``https`` URL without fragment, the host in lower case, and what digest it must have.

    One place has one URL, since rules are about URLs: no default port, nothing escaped that need not be (RFC 3986,
    6.2.2.2), no dot segments.

    ``registry`` is the URL's ``host[:port]``, for the settings of that host.
    """

    url: str
    registry: str
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> "WebReference":
        """The URL of a module, which may end with ``#sha256=HEX`` or ``#sha512=HEX``.

        Raises:
            InvalidReference: it is no such URL, or holds a user name.
        """
        shown = text[:300]
        plain, hash_sign, fragment = text.partition("#")
        if not _URL.fullmatch(plain) or len(plain) > _MAX_URL:
            raise InvalidReference(
                f"module URL {shown!r}: write https://host/path, in ASCII, of up to {_MAX_URL} bytes"
            )
        rest = plain[len("https://") :]
        authority = re.split(r"[/?]", rest, maxsplit=1)[0]
        if "@" in authority:
            raise InvalidReference(
                f"the module URL of {authority.rpartition('@')[2]} holds a user name: none can be used"
            )
        if "\\" in plain:
            raise InvalidReference(f"module URL {shown!r}: write / and not a backslash")
        registry = authority.lower().removesuffix(":443")
        try:
            _check_registry(registry)
        except InvalidReference as error:
            raise InvalidReference(f"module URL {shown!r}: {str(error).replace('registry', 'host', 1)}") from None
        path = _ESCAPED.sub(_plain, rest[len(authority) :]) or "/"
        parts = path.partition("?")[0].split("/")[1:]
        # Servers differ in what an escaped slash is; where it is one, it must lead nowhere else either.
        if {".", ".."} & {part for text in parts for part in _SLASH.split(text)}:
            raise InvalidReference(f"module URL {shown!r}: write its path without '.' and '..' as parts")
        if "" in parts[:-1]:  # for most servers the same place as without
            raise InvalidReference(f"module URL {shown!r}: write its path without empty parts")
        digest = None
        if hash_sign:
            algorithm, equals, digits = fragment.partition("=")
            if not equals:
                raise InvalidReference(f"module URL {shown!r}: after '#' only sha256=<64 hex digits> has a meaning")
            try:
                digest = Digest(algorithm, digits)
            except InvalidDigest as error:
                raise InvalidReference(f"module URL {shown!r}: {error}") from None
        return cls(f"https://{registry}{path if path[0] == '/' else '/' + path}", registry, digest)

    @property
    def name(self) -> str:
        """What a signature policy is about: the URL."""
        return self.url

    @property
    def store_name(self) -> str:
        """The name under which a store remembers what this URL had."""
        return self.url

    @property
    def host(self) -> str:
        """The host without port and brackets."""
        return split_host_port(self.registry)[0]

    def __str__(self) -> str:
        digest = f"#{self.digest.algorithm}={self.digest.hex}" if self.digest is not None else ""
        return f"{self.url}{digest}"


def _plain(escaped: re.Match[str]) -> str:
    """An escaped character, without that where it means the same; RFC 3986, section 6.2.2."""
    character = chr(int(escaped[1], 16))
    return character if _UNRESERVED.fullmatch(character) else escaped[0].upper()


def parse_image(text: str) -> Reference | WebReference:
    """What a task's ``imageUrl`` names: an image, or a module by URL.

    Raises:
        InvalidReference: it is neither.
    """
    return WebReference.parse(text) if text[:8].lower() == "https://" else Reference.parse(text)


def split_host_port(registry: str) -> tuple[str, int | None]:
    """Host (brackets removed) and port of ``host[:port]``."""
    if registry.startswith("["):
        host, _, rest = registry[1:].partition("]")
        return host, int(rest[1:]) if rest.startswith(":") else None
    host, colon, port = registry.partition(":")
    return host, int(port) if colon else None


def _parse(text: str) -> Reference:
    if text != text.strip() or not text:
        raise InvalidReference("it is empty" if not text.strip() else "remove the spaces around it")
    rest = text.removeprefix(_SCHEME)
    if "://" in rest:
        raise InvalidReference(f"scheme {rest.partition('://')[0][:20]!r} is none of an image: use oci:// or https://")
    rest, at, digest_text = rest.partition("@")
    digest = _parse_digest(digest_text) if at else None
    head, slash, tail = rest.partition("/")
    if slash and _looks_like_registry(head):
        registry, path = head.lower(), tail
        if not _looks_like_registry(registry):  # written in lower case it would be read as a path of Docker Hub's
            raise InvalidReference(
                f"registry {head[:80]!r}: write it with its domain or port; if it is none, it must be lower case"
            )
    else:
        registry, path = DOCKER_HUB, rest
    path, colon, tag = path.partition(":")
    if colon and not tag:
        raise InvalidReference("tag is empty after ':'")
    if registry.removesuffix(":443") in {DOCKER_HUB, *_HUB_ALIASES}:
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and path and "/" not in path:
        path = f"library/{path}"
    return Reference(registry, path, tag if colon else None if digest else DEFAULT_TAG, digest)


def _parse_digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidReference(f"digest: {error}") from None


def _looks_like_registry(head: str) -> bool:
    """The first component is a registry if it could not be a path: Docker's rule.

    Upper case counts too, since a path has none and host names do not distinguish it.
    """
    return "." in head or ":" in head or head == "localhost" or head.startswith("[") or head.lower() != head


def _check_registry(registry: str) -> None:
    host, port = registry, ""
    if registry.startswith("["):
        address, bracket, port = registry[1:].partition("]")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise InvalidReference(f"registry {registry[:80]!r}: not an IPv6 address in brackets") from None
        if not bracket or "%" in address:
            raise InvalidReference(f"registry {registry[:80]!r}: write an IPv6 address as [address]:port, without zone")
        if port and not port.startswith(":"):
            raise InvalidReference(f"registry {registry[:80]!r}: only :port may follow the address")
    else:
        host, colon, rest = registry.partition(":")
        port = colon + rest
        if not _HOST.fullmatch(host) or len(host) > 253:
            raise InvalidReference(f"registry {host[:80]!r}: not a host name")
    if port and not (port[1:].isascii() and port[1:].isdigit() and len(port) <= 6 and 0 < int(port[1:]) < 65536):
        raise InvalidReference(f"registry {registry[:80]!r}: port must be a number from 1 to 65535")
    if port[1:2] == "0":  # a second name for the same place, which rules would not fit
        raise InvalidReference(f"registry {registry[:80]!r}: write the port without zeros before it")
    if registry.lower() != registry:
        raise InvalidReference(f"registry {registry[:80]!r}: must be lower case")


def _check_repository(repository: str) -> None:
    if not repository:
        raise InvalidReference("repository is empty")
    if len(repository) > MAX_REPOSITORY:
        raise InvalidReference(f"repository is longer than {MAX_REPOSITORY} characters")
    for component in repository.split("/"):
        if not component:
            raise InvalidReference(f"repository {repository!r}: has an empty part between slashes")
        if _COMPONENT.fullmatch(component):
            continue
        if component.lower() != component and _COMPONENT.fullmatch(component.lower()):
            raise InvalidReference(f"repository {repository!r}: {component!r} must be lower case")
        raise InvalidReference(
            f"repository {repository!r}: {component!r} may hold lower-case letters and digits, joined by "
            "'.', '_', '__' or dashes"
        )
