"""``proplet image inspect``: what a module can ask for, in words and for programs; nothing is run."""

import json
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from proplet.agent import inspection
from tests.cli.command import Done, proplet_now
from tests.support.modules import module
from tests.support.registry import ADDITION, PASSWORD, USER, running_registry


def inspect(home: Path, wasm: bytes, *options: str) -> Done:
    file = home / "module.wasm"
    file.write_bytes(wasm)
    return proplet_now(home, ["image", "inspect", "-q", *options, file])


def document(home: Path, wasm: bytes) -> Any:
    done = inspect(home, wasm, "-o", "json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def what(seen: Any) -> list[str]:
    return [ask["what"] for ask in seen["canAskFor"]]


def test_a_module_without_imports_can_ask_for_nothing(home: Path) -> None:
    done = inspect(home, module("addition"))
    assert done.code == 0
    assert "Size       42 B" in done.out
    assert "Kind       core module" in done.out
    assert "Can ask for nothing" in done.out
    assert "main (i32, i32) -> (i32)" in done.out


def test_a_preview_1_program_is_described_for_programs(home: Path) -> None:
    seen = document(home, module("files"))
    assert (seen["kind"], seen["servesHttp"], seen["isolation"]["class"]) == ("core", False, "shared")
    assert what(seen) == ["directories"]
    assert seen["canAskFor"][0]["imports"] == ["wasi_snapshot_preview1.path_open"]
    assert "permissions.dirs" in seen["canAskFor"][0]["given"]
    assert {"name": "read", "type": "() -> (i32)"} in seen["exports"]
    assert (seen["size"], seen["digest"][:7]) == (len(module("files")), "sha256:")


def test_a_component_shows_its_wit_types_and_why_it_runs_alone(home: Path) -> None:
    seen = document(home, module("component_requester"))
    assert (seen["kind"], seen["isolation"]["class"]) == ("component", "own")
    assert {"outbound HTTP", "arguments and environment"} <= set(what(seen))
    assert "directories" not in what(seen)
    assert {"name": "wasi:cli/run@0.2.0#run", "type": "func() -> result"} in seen["exports"]
    greeter = inspect(home, module("component_greeter"))
    assert "greet: func(name: string) -> string" in greeter.out


def test_what_is_not_provided_here_is_said(home: Path) -> None:
    done = inspect(home, module("missing_import"))
    assert "not provided here" in done.out
    assert "env.print, env.beep" in done.out


def test_names_cannot_write_to_the_terminal(home: Path) -> None:
    wasm = bytes(wat2wasm('(module (import "a\\1b[2J" "b\\0ac" (func)) (func (export "x\\1b]0;y\\07")))'))
    done = inspect(home, wasm)
    assert done.code == 0
    assert all(line.isprintable() for line in done.out.splitlines())


def test_what_cannot_be_inspected_is_said_in_a_line(home: Path) -> None:
    done = inspect(home, b"\0asm\x01\0\0\0\xff")
    assert (done.code, done.out) == (1, "")
    assert "not a valid WebAssembly module" in done.err
    missing = proplet_now(home, ["image", "inspect", "nowhere.wasm"])
    assert (missing.code, missing.out) == (1, "")
    assert "nowhere.wasm" in missing.err


@pytest.mark.registry
def test_an_image_is_pulled_once_and_then_found_in_the_store(home: Path) -> None:
    with running_registry(home / "registry", basic=True) as registry:
        image = f"{registry.address}/add:1"
        digest = registry.push("add", "1", ADDITION)
        (home / "password").write_text(PASSWORD)
        (home / "password").chmod(0o600)
        (home / "node.toml").write_text(
            f'[broker]\n[registries."{registry.address}"]\nusername = "{USER}"\npassword_file = "{home}/password"\n'
        )
        arguments = ["image", "inspect", "-q", "-o", "json", "--config", home / "node.toml", image]
        first = proplet_now(home, arguments)
    assert first.code == 0, first.err
    assert json.loads(first.out)["imageDigest"] == str(digest)
    again = proplet_now(home, arguments)
    assert (again.code, again.out) == (0, first.out)


def test_a_service_needs_no_permission_for_the_http_it_serves() -> None:
    imports = ["wasi:http/types@0.2.0", "wasi:sockets/tcp@0.2.0", "wasi:nn/tensor@0.2.0"]
    served = inspection.asks(imports, component=True, serves_http=True)
    assert [ask.what for ask in served] == ["standard streams", "sockets", "other"]
    assert [ask.what for ask in inspection.asks(imports, component=True)] == ["outbound HTTP", "sockets", "other"]
    assert inspection.isolation(component=True, waits=False, serves_http=True)[0] == "own"
