"""Whom a pull trusts: plain HTTP or TLS, and whose certificates."""

import os
import ssl
from pathlib import Path

from proplet.oci.addresses import is_loopback
from proplet.oci.errors import TlsFailed
from proplet.oci.reference import Reference
from proplet.oci.settings import HostSettings

_DEBIAN_TRUST = "/etc/ssl/certs/ca-certificates.crt"
_MAX_CA_BYTES = 4 * 1024 * 1024


def is_plain(reference: Reference, host: HostSettings) -> bool:
    """Whether the registry is spoken to without TLS: as configured, else on loopback if nothing there speaks of TLS."""
    if host.plain_http is not None:
        return host.plain_http
    return is_loopback(reference.host) and host.ca_file is None and not host.insecure


def certificates(reference: Reference, host: HostSettings) -> str | bool:
    """What requests calls ``verify``: a file of CA certificates, True for its own list, False to accept anything.

    Raises:
        TlsFailed: the configured CA file cannot be used.
    """
    if host.insecure:
        return False
    if host.ca_file is not None:
        _check_ca_file(host.ca_file, reference.registry)
        return str(host.ca_file)
    return _system_trust() or True


def _check_ca_file(path: Path, registry: str) -> None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CA_BYTES)
    except OSError as error:
        raise TlsFailed(f"the CA file {path} of registry {registry} cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise TlsFailed(f"the CA file {path} of registry {registry} holds no certificate: it must be PEM")


def _system_trust() -> str | None:
    """The certificates this device trusts, its administrator's among them; requests would take its own list instead."""
    for path in (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, _DEBIAN_TRUST):
        if path and os.access(path, os.R_OK):
            return path
    return None
