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
    return system_trust() or True


def client_certificate(host: HostSettings, registry: str) -> tuple[str, str] | str | None:
    """What requests calls ``cert``: the files of certificate and key to show when the registry asks who connects.

    Raises:
        TlsFailed: they cannot be used; found here and not in the middle of a handshake, where nothing says which file.
    """
    certificate, key = host.client_cert_file, host.client_key_file
    if certificate is None:
        if key is not None:
            raise TlsFailed(f"registry {registry} has a client key and no certificate: set client_cert_file, too")
        return None
    whose = f"the client certificate {certificate} for registry {registry}"
    if key is not None:
        whose = f"the client certificate {certificate} with the key {key} for registry {registry}"
    try:
        # The password is empty: otherwise an encrypted key is asked for at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        what = "does not fit its key" if "MISMATCH" in str(error) else "is not PEM, or its key is encrypted or missing"
        raise TlsFailed(f"{whose} cannot be used: it {what}") from None
    except OSError as error:
        raise TlsFailed(f"{whose} cannot be read: {error.strerror}") from None
    return (str(certificate), str(key)) if key is not None else str(certificate)


def _check_ca_file(path: Path, registry: str) -> None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CA_BYTES)
    except OSError as error:
        raise TlsFailed(f"the CA file {path} of registry {registry} cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise TlsFailed(f"the CA file {path} of registry {registry} holds no certificate: it must be PEM")


def system_trust() -> str | None:
    """The certificates this device trusts, its administrator's among them; requests would take its own list instead."""
    for path in (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, _DEBIAN_TRUST):
        if path and os.access(path, os.R_OK):
            return path
    return None
