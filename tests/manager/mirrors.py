"""What tests of the mirror begin with: images in a store, an open mirror, and a client that sends what it is told."""

import base64
import http.client
import io
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread

from proplet.manager.images import ImagesSettings, PulledImages, open_images
from proplet.manager.mirror import Mirror, MirrorSettings, open_mirror
from proplet.oci.artifact import make_artifact
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor
from tests.support.registry import ADDITION

MODULE = str(Digest.of(ADDITION))


def put_image(store: Path, name: str, wasm: bytes = ADDITION) -> str:
    """Put an image into a store under its full name; returns the digest of its manifest."""
    artifact, layout = make_artifact(io.BytesIO(wasm), "module.wasm", 0), OciLayout(store)
    for data in (wasm, artifact.config, artifact.manifest):
        layout.add_blob(data)
    layout.set_reference(name, Descriptor(OCI_MANIFEST, artifact.digest, len(artifact.manifest)))
    return str(artifact.digest)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error code of the specification."""
        return str(json.loads(self.body)["errors"][0]["code"])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Asker:
    """A client of one mirror, a connection for each request."""

    def __init__(self, address: str, ca_file: Path | None = None, credentials: str | None = None) -> None:
        self._address = address
        self._context = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
        self._headers = {}
        if credentials is not None:
            self._headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"

    async def __call__(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return await to_thread.run_sync(self._ask, path, method, headers)

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> Answer:
        if self._context is None:
            connection = http.client.HTTPConnection(self._address, timeout=30)
        else:
            connection = http.client.HTTPSConnection(self._address, timeout=30, context=self._context)
        try:
            connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
            for name, value in {**self._headers, **headers}.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            with connection.getresponse() as response:
                said = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, said, response.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class Served:
    """An open mirror, who asks it, and what pulls for it."""

    mirror: Mirror
    ask: Asker
    images: PulledImages
    store: Path


@asynccontextmanager
async def serving(store: Path, *, images: ImagesSettings | None = None, **how: Any) -> AsyncIterator[Served]:
    """A mirror of a store on a free port."""
    settings = MirrorSettings(store, port=0, **how)
    async with open_images(images or ImagesSettings(store)) as pulled, open_mirror(settings, pulled) as mirror:
        yield Served(mirror, Asker(mirror.address), pulled, store)
