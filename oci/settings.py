"""How to reach registries: plain values, set by the configuration and safe to send to another process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024
MAX_MANIFEST_BYTES = 4 * MIB  # what the distribution specification asks every registry to accept
DEFAULT_MAX_MODULE_BYTES = 100 * MIB


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What is particular to one registry.

    ``plain_http``: True is http, False is https, None is http on loopback (unless ``ca_file`` or
    ``insecure`` say that TLS is spoken there) and https everywhere else.
    ``ca_file``: certificates (PEM) to trust instead of the system's. ``insecure``: accept any certificate.
    ``username`` and ``password`` go before every credentials file; the password is never shown.
    ``client_cert_file`` and ``client_key_file`` (PEM) are shown to a registry that asks who connects.
    ``mirrors``: ``host[:port][/prefix]``, asked in this order before the registry itself; each has its own settings.
    """

    plain_http: bool | None = None
    ca_file: Path | None = None
    insecure: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """Limits and credentials of every pull; times in seconds, sizes in bytes.

    ``hosts`` is keyed by ``host[:port]`` exactly as in a reference (``docker.io`` for Docker Hub).
    ``docker_config``: a ``config.json`` instead of ``$DOCKER_CONFIG/config.json`` and ``~/.docker/config.json``.
    ``max_attempts`` counts the first; a wait the registry asks for (Retry-After) is kept up to ``max_retry_wait_s``.
    ``signature_policy``: who must have signed what (`proplet.oci.policy`); None allows everything. ``signed_only``:
    what the policy says nothing of must be signed. ``local_url_hosts``: hosts of ``https://`` modules that may be on
    loopback or at a link-local address.
    """

    hosts: Mapping[str, HostSettings] = field(default_factory=dict)
    docker_config: Path | None = None
    use_docker_config: bool = True
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    total_timeout_s: float = 600.0
    max_module_bytes: int = DEFAULT_MAX_MODULE_BYTES
    max_attempts: int = 4
    max_retry_wait_s: float = 30.0
    first_retry_wait_s: float = 0.5
    signature_policy: Path | None = None
    signed_only: bool = False
    local_url_hosts: tuple[str, ...] = ()

    def host(self, registry: str) -> HostSettings:
        """The settings of one registry, or the defaults."""
        return self.hosts.get(registry, HostSettings())
