"""What the link to the broker is told: the node's settings turned into its own. Pure; for agent and manager alike."""

from proplet.agent.config_schema import NodeSettings
from proplet.agent.mqtt_model import MqttSettings
from proplet.agent.topics import Topics

_INFLIGHT = 100  # messages on their way to the broker: what a round trip costs is then shared by many


def topics_of(settings: NodeSettings) -> Topics:
    """The channel's topics."""
    return Topics(settings.mqtt.domain, settings.mqtt.channel)


def link_settings(settings: NodeSettings, address: str, client_id: str, username: str, password: str) -> MqttSettings:
    """How the link of one part of this node reaches the broker at `address`."""
    mqtt = settings.mqtt
    return MqttSettings(
        address=address,
        client_id=client_id,
        username=username,
        password=password,
        keepalive_s=int(mqtt.keep_alive_s),
        ca_file=str(mqtt.tls.ca_file) if mqtt.tls.ca_file else None,
        cert_file=str(mqtt.tls.cert_file) if mqtt.tls.cert_file else None,
        key_file=str(mqtt.tls.key_file) if mqtt.tls.key_file else None,
        insecure_skip_verify=mqtt.tls.insecure_skip_verify,
        max_packet_bytes=mqtt.max_packet_size_bytes,
        max_inflight=_INFLIGHT,
    )
