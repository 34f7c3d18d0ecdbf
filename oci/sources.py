"""Where an image is taken from: the mirrors of its registry, in order, and then the registry itself.

A mirror ``host[:port]/prefix`` has ``docker.io/library/x`` as ``prefix/library/x`` and is a registry like any other,
with settings, credentials and certificates of its own. It is told in ``?ns=`` whose image is meant, as containerd
does, so that one pull-through cache can stand for several registries. Mirrors are believed as far as the registry is:
a digest decides about bytes, and what a tag means is what the first one says that knows it.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    ContentFault,
    InvalidCredentials,
    InvalidReference,
    NotFound,
    OciError,
    RegistryFault,
)
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor
from proplet.oci.reference import Reference
from proplet.oci.registry import RawManifest, RegistryClient
from proplet.oci.settings import RegistrySettings
from proplet.oci.watch import Watch

_MIRROR_ATTEMPTS = 2
_MIRROR_RETRY_WAIT_S = 2.0  # another source is at hand
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


def open_sources(
    reference: Reference, settings: RegistrySettings, cancelled: Callable[[], bool] = lambda: False
) -> "Sources":
    """The sources of an image, for one pull; a context manager. Nothing is sent, and no library loaded, yet."""
    return Sources(reference, settings, cancelled)


class Sources:
    """Mirrors and registry of one reference, asked one after the other. Methods and errors are `RegistryClient`'s.

    A mirror that cannot be reached is not asked again by the same object; one that does not have what is asked for, or
    sends other bytes, may have the next thing. ``warnings``: a line for each that was passed over.
    """

    def __init__(self, reference: Reference, settings: RegistrySettings, cancelled: Callable[[], bool]) -> None:
        """Made by `open_sources`."""
        self._reference = reference
        self._settings = settings
        self._sparing = replace(
            settings,
            max_attempts=min(settings.max_attempts, _MIRROR_ATTEMPTS),
            max_retry_wait_s=min(settings.max_retry_wait_s, _MIRROR_RETRY_WAIT_S),
        )
        self._mirrors = list(settings.host(reference.registry).mirrors)
        self._clients: dict[str, RegistryClient] = {}
        self._watch = Watch(settings.total_timeout_s, cancelled)
        self.warnings: list[str] = []

    def manifest(self, expected: Digest | None = None) -> RawManifest:
        """The manifest of the reference, or that with the expected digest."""
        return self._first(lambda client: client.manifest(expected))

    def find_manifest(self, key: str) -> RawManifest | None:
        """The manifest under another tag or digest of the same repository; None where no source has one."""
        return self._first(lambda client: client.find_manifest(key), lambda found: found is not None)

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """What refers to a manifest, by the first source that knows of any: mirrors often do not keep it."""
        return self._first(lambda client: client.referrers(digest), bool)

    def copy_blob(
        self,
        descriptor: Descriptor,
        layout: OciLayout,
        what: str,
        progress: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """Bring a blob into the store. What one source sent of it before it broke off, the next one continues."""
        self._first(lambda client: client.copy_blob(descriptor, layout, what, progress))

    def _first(
        self, ask: Callable[[RegistryClient], _Result], enough: Callable[[_Result], bool] = lambda _found: True
    ) -> _Result:
        passed: list[str] = []
        for mirror in tuple(self._mirrors):
            try:
                found = ask(self._mirror(mirror))
                if enough(found):
                    return found
            except (RegistryFault, ContentFault, InvalidReference, InvalidCredentials) as error:
                self._watch.check()  # the end of the whole pull is not the mirror's fault
                passed.append(f"mirror {mirror}: {error}")
                self._pass_over(mirror, error)
        try:
            return ask(self._registry())
        except (RegistryFault, ContentFault) as error:
            if not passed:
                raise
            raise type(error)(f"{error} (before that, {'; '.join(passed)})") from error

    def _pass_over(self, mirror: str, error: OciError) -> None:
        warning = f"the mirror {mirror} of {self._reference.registry} is passed over: {error}"
        if warning not in self.warnings:
            self.warnings.append(warning)
            log.log(logging.DEBUG if isinstance(error, NotFound) else logging.WARNING, "%s", warning)
        if not isinstance(error, NotFound | ContentFault):
            self._mirrors.remove(mirror)

    def _mirror(self, mirror: str) -> RegistryClient:
        if mirror not in self._clients:
            host, _, prefix = mirror.strip("/").partition("/")
            own = self._reference
            repository = f"{prefix.strip('/')}/{own.repository}" if prefix.strip("/") else own.repository
            there = replace(own, registry=host.lower(), repository=repository)
            self._clients[mirror] = RegistryClient(there, self._sparing, namespace=own.registry, watch=self._watch)
        return self._clients[mirror]

    def _registry(self) -> RegistryClient:
        if "" not in self._clients:
            self._clients[""] = RegistryClient(self._reference, self._settings, watch=self._watch)
        return self._clients[""]

    def close(self) -> None:
        """End all connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
