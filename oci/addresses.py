"""Which network addresses are special to a pull: loopback, and those it never connects to."""

import ipaddress

_LOOPBACK = tuple(ipaddress.ip_network(text) for text in ("127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128"))
_FORBIDDEN = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # RFC 3927; most clouds serve instance credentials at 169.254.169.254
        "fe80::/10",  # RFC 4291
        "fd00:ec2::/32",  # Amazon's metadata service over IPv6, fd00:ec2::254
        "fd20:ce::254/128",  # Google's over IPv6
        "100.100.100.200/32",  # Alibaba's metadata service
        "192.0.0.192/32",  # Oracle's
        "168.63.129.16/32",  # Azure's
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last four bytes


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself. Names are not resolved: only ``localhost`` is known."""
    if host.rstrip(".").lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and any(address in network for network in _LOOPBACK)


def is_forbidden(host: str) -> bool:
    """Whether an address is link-local or serves a cloud's metadata. A name is not an address."""
    address = _address(host)
    return address is not None and any(address in network for network in _FORBIDDEN)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, out of whatever IPv6 notation an IPv4 address is wrapped in."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
