"""The part of the application that serves modules to others: pulled for proplets, and the mirror of the store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from proplet.agent.config_schema import MirrorTable, NodeSettings
from proplet.agent.failures import as_node_errors
from proplet.agent.image_parts import registry_settings, store_directory
from proplet.manager.images import Images, ImagesSettings, open_images
from proplet.manager.module_answers import AnswerSettings

if TYPE_CHECKING:
    from proplet.manager.mirror import Mirror, MirrorSettings


def images_settings(settings: NodeSettings) -> ImagesSettings:
    """How images are pulled for others: as the node pulls its own, but never from its own mirror."""
    registry = registry_settings(settings)
    if settings.manager is not None and (table := settings.manager.mirror) is not None:
        from proplet.manager.mirror import without_own

        registry = without_own(registry, table.host, table.port)
    return ImagesSettings(store_directory(settings), registry, store_bytes=settings.modules.store_size_bytes)


def mirror_settings(settings: NodeSettings, table: MirrorTable) -> "MirrorSettings":
    """Where the mirror listens and what it gives away."""
    from proplet.manager.mirror import MirrorSettings

    assert settings.manager is not None
    return MirrorSettings(
        store_dir=store_directory(settings),
        host=table.host,
        port=table.port,
        username=table.username,
        password=table.password.reveal() if table.password else None,
        tls_certificate=table.tls_cert_file,
        tls_key=table.tls_key_file,
        allow=settings.manager.images.allow,
    )


def answer_settings(settings: NodeSettings, images: Images) -> AnswerSettings | None:
    """What is handed out over MQTT; None where that is switched off."""
    table = settings.manager.images if settings.manager is not None else None
    if table is None or not table.over_mqtt:
        return None
    return AnswerSettings(images, table.allow, table.chunk_size_bytes, settings.mqtt.max_packet_size_bytes)


@asynccontextmanager
async def open_served_images(settings: NodeSettings) -> "AsyncIterator[tuple[Images, Mirror | None]]":
    """Yield the images for others, and the mirror where one is configured.

    Raises:
        NodeError: the mirror cannot be opened as configured.
    """
    async with open_images(images_settings(settings)) as images:
        table = settings.manager.mirror if settings.manager is not None else None
        if table is None:
            yield images, None
            return
        from proplet.manager.mirror import MirrorError, open_mirror  # with it comes an HTTP server

        with as_node_errors(MirrorError):
            async with open_mirror(mirror_settings(settings, table), images) as mirror:
                yield images, mirror
