"""What pulls images is told: the node's settings turned into a registry client's. Pure; for agent and manager alike."""

from pathlib import Path

from proplet.agent.config_schema import NodeSettings
from proplet.oci.settings import HostSettings, RegistrySettings


def store_directory(settings: NodeSettings) -> Path:
    """Where images are kept, as an OCI image layout."""
    return settings.node.state_dir / "modules"


def registry_settings(settings: NodeSettings) -> RegistrySettings:
    """How registries are reached, and what may come from them."""
    modules = settings.modules
    registries = {
        host: HostSettings(
            plain_http=given.plain_http,
            ca_file=given.ca_file,
            insecure=given.insecure,
            username=given.username,
            password=given.password.reveal() if given.password else None,
            client_cert_file=given.client_cert_file,
            client_key_file=given.client_key_file,
            mirrors=given.mirrors,
        )
        for host, given in settings.registries.items()
    }
    return RegistrySettings(
        hosts=registries,
        docker_config=modules.docker_config,
        use_docker_config=modules.use_docker_config,
        total_timeout_s=modules.pull_timeout_s,
        max_module_bytes=modules.max_module_size_bytes,
        signature_policy=modules.signature_policy,
        signed_only=modules.signed_only,
        local_url_hosts=modules.local_url_hosts,
    )
