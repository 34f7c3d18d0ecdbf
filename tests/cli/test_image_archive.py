"""``proplet image push``, ``pull``, ``export`` and ``import``: the whole trip of a module, and what goes wrong."""

import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import COMMAND, Done, environment, proplet_now
from tests.support.modules import module, padded
from tests.support.registry import RunningRegistry, running_registry

ADDITION = module("addition")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def second(home: Path) -> Path:
    """Another device's home."""
    path = home / "second"
    path.mkdir()
    return path


def image(home: Path, *arguments: str | Path, stdin: bytes = b"") -> Done:
    return proplet_now(home, ["image", *arguments], stdin)


def done(home: Path, *arguments: str | Path, stdin: bytes = b"") -> Any:
    """What a command says to programs, once it is known to have gone well."""
    answer = image(home, *arguments, "-q", "-o", "json", stdin=stdin)
    assert answer.code == 0, answer.err
    assert all(line.startswith("proplet: warning: ") for line in answer.err.splitlines())
    return json.loads(answer.out)


def lone_blobs(home: Path) -> list[str]:
    """Files of a store that are no blobs."""
    blobs = home / ".local/state/proplet/modules/blobs/sha256"
    return [path.name for path in blobs.iterdir() if len(path.name) != 64] if blobs.exists() else []


@pytest.mark.registry
def test_a_module_goes_by_registry_and_by_file_from_one_device_to_another(
    registry: RunningRegistry, home: Path, second: Path
) -> None:
    name = f"{registry.address}/trip/add:v1"
    (home / "add.wasm").write_bytes(ADDITION)
    pushed = done(home, "push", "add.wasm", name, "--annotation", "org.opencontainers.image.authors=me")
    [pulled] = done(home, "pull", name)
    assert (pulled["digest"], pulled["size"], pulled["fromStore"]) == (pushed["digest"], len(ADDITION), False)
    assert image(home, "export", "-q", "-f", "usb.tar", name) == Done(0, "", "")
    answer = done(second, "import", home / "usb.tar")
    assert [one["image"] for one in answer["images"]] == [name]
    offline = second / "node.toml"
    offline.write_text(f'[broker]\n[registries."{registry.address}"]\nplain_http = false\n')
    run = proplet_now(second, ["run", "-q", "--config", offline, name, "3", "4"])
    assert (run.code, run.out) == (0, "7\n"), run.err
    again = f"{registry.address}/trip/again:v2"
    assert done(second, "push", name, again) | {"size": 0} == {
        "image": again, "digest": pushed["digest"], "size": 0, "sentBytes": 0, "signatures": 0}  # fmt: skip


@pytest.mark.registry
def test_signatures_come_with_a_pull_and_go_with_a_file(registry: RunningRegistry, home: Path, second: Path) -> None:
    name = f"{registry.address}/signed/add:1"
    digest = registry.push("signed/add", "1", ADDITION).replace(":", "-")
    registry.push("signed/add", f"{digest}.sig", b"{}", media_type="application/vnd.dev.cosign.simplesigning.v1+json")
    done(home, "pull", name)
    exported = image(home, "export", "-f", "usb.tar", name)
    assert "1 image and 1 signature, " in exported.err
    answer = done(second, "import", home / "usb.tar")
    assert [one["name"] for one in answer["signatures"]] == [f"{registry.address}/signed/add:{digest}.sig"]


@pytest.mark.registry
def test_one_image_that_fails_does_not_keep_the_others_from_coming(registry: RunningRegistry, home: Path) -> None:
    digest = registry.push("several/add", "1", ADDITION)
    good, bad = f"{registry.address}/several/add:1", f"{registry.address}/several/add:2"
    answer = image(home, "pull", bad, good)
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert lines[0].split() == ["IMAGE", "DIGEST", "SIZE", "SIGNER"]
    assert lines[1].split()[:2] == [good, digest]
    assert len(lines) == 2
    errors = [line for line in answer.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "tag 2" in errors[0]
    assert f"pulling {good}" in answer.err


@pytest.mark.registry
def test_an_archive_goes_through_pipes(registry: RunningRegistry, home: Path, second: Path) -> None:
    registry.push("piped/add", "1", ADDITION)
    name = f"{registry.address}/piped/add:1"
    assert image(home, "pull", "-q", name).code == 0
    packed = subprocess.run(
        [COMMAND, "image", "export", "-q", "-f", "-", name], env=environment(home), capture_output=True, check=True
    ).stdout
    assert done(second, "import", "-", stdin=packed)["images"][0]["image"] == name
    broken = image(second, "import", "-", stdin=packed[:1300])
    assert (broken.code, broken.out) == (1, "")
    assert "ends in the middle of" in broken.err


def test_what_cannot_be_exported_or_imported_is_said_in_a_line(home: Path) -> None:
    for arguments, message in (
        (["export", "-f", "x.tar", "example.com/no/image:1"], "is not in the store"),
        (["export", "-f", "no/such/x.tar", "example.com/no/image:1"], "No such file or directory"),
        (["import", "nothing.tar"], "nothing.tar: no such file or directory"),
        (["import", "plain.tar"], "is no tar archive"),
        (["push", "example.com/no/image:1"], "is not in the store"),
        (["push", "no.wasm", "localhost:1/x:1"], "no.wasm: No such file or directory"),
    ):
        (home / "plain.tar").write_bytes(b"text" * 400)
        answer = image(home, arguments[0], "-q", *arguments[1:])
        assert (answer.code, answer.out) == (1, ""), arguments
        assert message in answer.err
        assert len(answer.err.splitlines()) == 1
    for arguments in (
        ["push", "no.wasm"],
        ["push", "no.wasm", "UPPER/x y"],
        ["import", "--name", "a/b:c", "plain.tar"],
    ):
        answer = image(home, *arguments)
        assert (answer.code, answer.out) == (2, ""), arguments
    assert not (home / "x.tar").exists()


class _Endless(BaseHTTPRequestHandler):
    """A registry whose blob never ends, and that takes an upload and never answers."""

    protocol_version = "HTTP/1.1"
    waiting: threading.Event
    size = 50_000_000

    def do_GET(self) -> None:
        wasm = padded(ADDITION, self.size)
        from hashlib import sha256

        layer = f"sha256:{sha256(wasm).hexdigest()}"
        if "/manifests/" in self.path:
            body = json.dumps({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.wasm.config.v0+json", "size": 2,
                           "digest": f"sha256:{sha256(b'{}').hexdigest()}"},
                "layers": [{"mediaType": "application/wasm", "digest": layer, "size": self.size}],
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.size))
        self.end_headers()
        self.wfile.write(wasm[:3_000_000])
        self.wfile.flush()
        self.waiting.set()
        self.rfile.read(1)  # until the client goes

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endless() -> Iterator[tuple[str, threading.Event]]:
    waiting = threading.Event()
    handler = type("Handler", (_Endless,), {"waiting": waiting})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", waiting
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_interrupted_pull_ends_at_once_without_a_trace(home: Path, endless: tuple[str, threading.Event]) -> None:
    address, waiting = endless
    with subprocess.Popen(
        [COMMAND, "image", "pull", f"{address}/large/module:1"],
        env=environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert waiting.wait(30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "error" not in err
    assert all(name.startswith(".partial-") for name in lone_blobs(home))
    assert not list((home / ".local/state/proplet/modules").glob(".tmp-*"))


def test_a_terminal_sees_a_bar_that_goes_away(home: Path, endless: tuple[str, threading.Event]) -> None:
    address, waiting = endless
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [COMMAND, "image", "pull", f"{address}/large/module:1"],
        env=environment(home, TERM="xterm-256color"), cwd=home, stdout=subprocess.PIPE, stderr=follower,
    ) as process:  # fmt: skip
        os.close(follower)
        assert waiting.wait(30)
        seen = b""
        while b" of 47.7 MiB" not in seen:
            try:
                seen += os.read(leader, 65536)
            except OSError:
                pytest.fail(f"it ended: {seen!r}")
        process.send_signal(signal.SIGINT)
        try:
            while more := os.read(leader, 65536):
                seen += more
        except OSError:  # the other end is closed
            pass
        process.communicate(timeout=20)
    os.close(leader)
    assert process.returncode == 130
    assert b"pulling" in seen
    assert b"Traceback" not in seen
    assert b"\x1b[?25h" in seen, "the cursor is shown again"


def test_a_password_in_a_url_is_shown_nowhere(home: Path) -> None:
    for command in ("pull", "verify"):
        answer = image(home, command, "https://me:hidden@example.com/x.wasm")
        assert answer.code == 1
        assert "holds a user name" in answer.err
        assert "hidden" not in answer.err + answer.out


@pytest.mark.registry
def test_a_mirror_that_is_passed_over_is_a_warning_like_all_others(registry: RunningRegistry, home: Path) -> None:
    name = f"{registry.address}/passed/add:v1"
    (home / "add.wasm").write_bytes(ADDITION)
    assert image(home, "push", "add.wasm", name).code == 0
    config = home / "mirror.toml"
    config.write_text(f'[broker]\n[registries."{registry.address}"]\nmirrors = ["127.0.0.1:1"]\n')
    answer = image(home, "pull", "-q", "--config", config, name)
    assert answer.code == 0
    assert "proplet: warning: the mirror 127.0.0.1:1 of " in answer.err
    assert all(line.startswith("proplet: warning: ") for line in answer.err.splitlines())


def test_a_configuration_that_only_knows_registries_is_enough_to_move_images(home: Path) -> None:
    config = home / "only.toml"
    config.write_text('[registries."hub.example:5000"]\nplain_http = true\n')
    answer = image(home, "ls", "--config", config)
    assert (answer.code, answer.out + answer.err) == (0, "the store is empty\n"), answer
