"""A real OCI registry for tests: Debian's ``docker-registry`` on a free loopback port, and a way to push modules."""

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port

PROGRAM = "docker-registry"
WASM = "application/wasm"
WASM_CONFIG = "application/vnd.wasm.config.v0+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

# The addition module of the reference's documentation: exports main(i32, i32) -> i32.
ADDITION = bytes.fromhex("0061736d0100000001070160027f7f017f03020100070801046d61696e00000a09010700200020016a0b")

# user:secret, as bcrypt: docker-registry reads nothing else.
USER, PASSWORD = "user", "secret"
_BCRYPT = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"

_ANSWER_SECONDS = 15.0
_STOP_SECONDS = 10.0
_STEP_SECONDS = 0.02


@dataclass(frozen=True)
class RunningRegistry:
    """A registry that answers at ``address`` (``127.0.0.1:port``)."""

    address: str
    storage: Path
    process: subprocess.Popen[bytes]
    ca_file: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def push(self, repository: str, tag: str, wasm: bytes, **how: Any) -> str:
        """``push_module`` with this registry's certificate and credentials."""
        access = {"ca_file": self.ca_file, "username": self.username, "password": self.password}
        return push_module(self.address, repository, tag, wasm, **{**access, **how})


def require_docker_registry() -> None:
    """Skip the test where the program is missing; in CI, fail."""
    if shutil.which(PROGRAM) is None:
        line = "needs docker-registry: apt-get install docker-registry"
        if os.environ.get("CI") == "true":
            pytest.fail(line, pytrace=False)
        pytest.skip(line)


@contextmanager
def running_registry(
    directory: Path,
    *,
    basic: bool = False,
    tls: "TlsFiles | None" = None,
    client_ca: Path | None = None,
    auth: dict[str, Any] | None = None,
) -> Iterator[RunningRegistry]:
    """A registry with its storage, configuration and log under ``directory``; ended by its process id.

    ``client_ca``: only clients with a certificate that it signed are let in (needs ``tls``). ``auth``: that part of the
    registry's configuration, as `tests.support.registry_tokens` makes it.
    """
    require_docker_registry()
    directory.mkdir(parents=True, exist_ok=True)
    storage = directory / "storage"
    address = f"127.0.0.1:{free_port()}"
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": address, "secret": "only-for-tests"},
    }
    if basic:
        passwords = directory / "htpasswd"
        passwords.write_text(f"{USER}:{_BCRYPT}\n")
        config["auth"] = {"htpasswd": {"realm": "Registry Realm", "path": str(passwords)}}
    if tls is not None:
        config["http"]["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
        if client_ca is not None:
            config["http"]["tls"]["clientcas"] = [str(client_ca)]
    if auth is not None:
        config["auth"] = auth
    file = directory / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "serve", str(file)], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        _wait_until_it_answers(address, process, log, tls, asks_who=client_ca is not None)
        access = {"username": USER, "password": PASSWORD} if basic else {}
        yield RunningRegistry(address, storage, process, tls.ca if tls else None, **access)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class TlsFiles:
    """A certificate for 127.0.0.1 and localhost, its key, and the CA that signed it; PEM."""

    ca: Path
    certificate: Path
    key: Path


def make_tls_files(
    directory: Path, *, expired: bool = False, host: str = "IP:127.0.0.1,DNS:localhost", usage: str = "serverAuth"
) -> TlsFiles:
    """A new CA and a server's certificate (with ``usage="clientAuth"``: a client's), made with openssl."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    certificate, key, request, extensions = (directory / name for name in ("tls.pem", "tls.key", "tls.csr", "tls.ext"))
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    _openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=proplet test CA",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    _openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=registry")
    extensions.write_text(f"subjectAltName={host}\nextendedKeyUsage={usage}\nauthorityKeyIdentifier=keyid\n")
    # openssl's x509 takes no start date; a negative number of days ends it before today.
    _openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", certificate,
             "-days", "-1" if expired else "2", "-extfile", extensions)  # fmt: skip
    return TlsFiles(ca, certificate, key)


def push_module(
    registry_address: str,
    repository: str,
    tag: str,
    wasm_bytes: bytes,
    *,
    media_type: str = WASM,
    config_media_type: str = WASM_CONFIG,
    title: str | None = None,
    ca_file: Path | None = None,
    username: str | None = None,
    password: str | None = None,
) -> str:
    """Push a module as an artifact of one layer; returns the digest of its manifest (``sha256:...``)."""
    push = _Push(registry_address, repository, ca_file, username, password)
    layer: dict[str, Any] = push.blob(wasm_bytes, media_type)
    if title is not None:
        layer["annotations"] = {"org.opencontainers.image.title": title}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": push.blob(b"{}", config_media_type),
        "layers": [layer],
    }
    return push.manifest(json.dumps(manifest).encode(), OCI_MANIFEST, tag)


def push_manifest(registry_address: str, repository: str, tag: str, document: dict[str, Any]) -> str:
    """Push a manifest or index as it is; returns its digest."""
    push = _Push(registry_address, repository)
    return push.manifest(json.dumps(document).encode(), document["mediaType"], tag)


def push_raw(registry_address: str, repository: str, tag: str, manifest: bytes, media_type: str) -> str:
    """Push a manifest byte for byte; returns its digest."""
    return _Push(registry_address, repository).manifest(manifest, media_type, tag)


def push_blob(registry_address: str, repository: str, data: bytes, media_type: str) -> dict[str, Any]:
    """Push a blob; returns its descriptor."""
    return _Push(registry_address, repository).blob(data, media_type)


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    """The descriptor of some bytes."""
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


class _Push:
    """The push half of the distribution protocol, as far as tests need it."""

    def __init__(
        self,
        address: str,
        repository: str,
        ca_file: Path | None = None,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        self._root = f"{'https' if ca_file else 'http'}://{address}/v2/{repository}"
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if ca_file is not None:
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(ca_file))))
        if username is not None and password is not None:
            known = urllib.request.HTTPPasswordMgrWithPriorAuth()
            known.add_password(None, self._root, username, password, is_authenticated=True)
            handlers.append(urllib.request.HTTPBasicAuthHandler(known))
        self._opener = urllib.request.build_opener(*handlers)

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        found = descriptor(data, media_type)
        location = self._send("POST", f"{self._root}/blobs/uploads/", b"", "").headers["Location"]
        joint = "&" if "?" in location else "?"
        self._send("PUT", f"{location}{joint}digest={found['digest']}", data, "application/octet-stream")
        return found

    def manifest(self, data: bytes, media_type: str, tag: str) -> str:
        self._send("PUT", f"{self._root}/manifests/{tag}", data, media_type)
        return str(descriptor(data, media_type)["digest"])

    def _send(self, method: str, url: str, data: bytes, media_type: str) -> Any:
        request = urllib.request.Request(url, data=data, method=method)
        request.add_header("Content-Type", media_type)
        with self._opener.open(request, timeout=20) as response:
            response.read()
            return response


def _wait_until_it_answers(
    address: str, process: subprocess.Popen[bytes], log: Path, tls: TlsFiles | None, *, asks_who: bool
) -> None:
    context = ssl.create_default_context(cafile=str(tls.ca)) if tls else None
    if context is not None:  # it may be expired or for another host on purpose
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{PROGRAM} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            with opener.open(f"{'https' if tls else 'http'}://{address}/v2/", timeout=5):
                return True
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code == 401
        except OSError as error:
            return asks_who and "ALERT" in str(error).upper()  # it has read that we have none; older ones say "bad"

    _wait(answers, f"{PROGRAM} at {address} did not answer:\n{log.read_text()[-2000:]}")


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    end, never = time.monotonic() + _ANSWER_SECONDS, threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(otherwise)
        never.wait(_STEP_SECONDS)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
