"""What a .wasm file becomes as an artifact, and the names of a component as wasmtime knows them."""

import io
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import Config, Engine
from wasmtime.component import Component

from proplet.oci.artifact import CREATED, VERSION, Artifact, make_artifact
from proplet.oci.component import component_names
from proplet.oci.digest import Digest
from proplet.oci.errors import NotWasm
from proplet.oci.manifest import OCI_MANIFEST, TITLE, WASM_CONFIG, ImageManifest, parse_manifest, select_layer
from tests.support.modules import DIRECTORY, module

ADDITION = module("addition")
HTTP = module("component_http")


def made(wasm: bytes, **how: Any) -> Artifact:
    return make_artifact(io.BytesIO(wasm), how.pop("title", "add.wasm"), 1700000000.9, **how)


def test_a_module_is_an_artifact_in_the_layout_of_the_cncf() -> None:
    artifact = made(ADDITION, tag="v1.2.3-rc.1")
    digest = str(Digest.of(ADDITION))
    assert json.loads(artifact.config) == {
        "created": "2023-11-14T22:13:20Z",
        "architecture": "wasm",
        "os": "wasip1",
        "layerDigests": [digest],
    }
    document = json.loads(artifact.manifest)
    assert (document["mediaType"], document["artifactType"]) == (OCI_MANIFEST, WASM_CONFIG)
    assert document["config"]["digest"] == str(Digest.of(artifact.config))
    assert document["layers"] == [
        {"mediaType": "application/wasm", "digest": digest, "size": len(ADDITION), "annotations": {TITLE: "add.wasm"}}
    ]
    assert document["annotations"] == {TITLE: "add", CREATED: "2023-11-14T22:13:20Z", VERSION: "1.2.3-rc.1"}
    read = parse_manifest(artifact.manifest)
    assert isinstance(read, ImageManifest)
    assert select_layer(read) == artifact.layer


def test_the_same_file_is_always_the_same_artifact_and_another_one_is_not() -> None:
    assert made(ADDITION).manifest == made(ADDITION).manifest
    assert made(ADDITION).digest != made(HTTP).digest


def test_what_the_publisher_says_goes_before_what_we_say() -> None:
    given_ = {CREATED: "2020-01-01T00:00:00Z", TITLE: "other", "org.example.x": "y"}
    artifact = made(ADDITION, annotations=given_, tag="latest")
    assert json.loads(artifact.manifest)["annotations"] == given_
    assert json.loads(artifact.config)["created"] == "2020-01-01T00:00:00Z"


def test_a_component_says_what_it_is_for() -> None:
    config = json.loads(made(HTTP).config)
    assert config["os"] == "wasip2"
    assert config["component"]["target"] == "wasi:http/proxy@0.2.12"
    assert config["component"]["exports"] == ["wasi:http/incoming-handler@0.2.12"]
    assert "wasi:http/types@0.2.12" in config["component"]["imports"]
    assert "target" not in json.loads(made(module("component_exports")).config)["component"]


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in DIRECTORY.glob("*.wasm") if path.read_bytes()[4:8] == b"\r\0\1\0")
)
def test_the_names_of_a_component_are_those_that_wasmtime_reads(name: str) -> None:
    engine = Engine(Config())
    kind = Component(engine, module(name)).type
    names = component_names(io.BytesIO(module(name)))
    assert set(names.imports) == set(kind.imports(engine))
    assert set(names.exports) == set(kind.exports(engine))


@pytest.mark.parametrize("wasm", [b"", b"(module)", b"\0asm\2\0\0\0", b"\x1f\x8b\x08\0\0\0\0\0"])
def test_what_is_no_module_is_refused(wasm: bytes) -> None:
    with pytest.raises(NotWasm, match="no WebAssembly module or component"):
        made(wasm)


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_preamble_are_read_or_refused(data: bytes) -> None:
    with suppress(NotWasm):
        component_names(io.BytesIO(b"\0asm\x0d\0\x01\0" + data))


@given(st.integers(0, len(HTTP) - 1), st.integers(1, 255))
def test_a_damaged_component_is_read_or_refused(at: int, flip: int) -> None:
    damaged = bytearray(HTTP)
    damaged[at] ^= flip
    with suppress(NotWasm):
        made(bytes(damaged))
