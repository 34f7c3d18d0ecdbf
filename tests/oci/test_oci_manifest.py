"""Manifests: reading them, and finding the module in them."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.errors import AmbiguousLayer, InvalidManifest, NoPlatform, NoWasmLayer, OciError
from proplet.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    WASM_LAYERS,
    ImageIndex,
    ImageManifest,
    parse_manifest,
    select_layer,
    select_platform,
)

CONFIG = "application/vnd.oci.image.config.v1+json"
WASM_CONFIG = "application/vnd.wasm.config.v0+json"
TAR = "application/vnd.oci.image.layer.v1.tar"


def point(media_type: str, number: int = 1, title: str | None = None, **more: Any) -> dict[str, Any]:
    annotations = {"annotations": {"org.opencontainers.image.title": title}} if title else {}
    return {"mediaType": media_type, "digest": f"sha256:{number:064x}", "size": number, **annotations, **more}


def image(*layers: dict[str, Any], config: str = CONFIG, **more: Any) -> ImageManifest:
    found = parse_manifest(raw(config=point(config), layers=list(layers), **more))
    assert isinstance(found, ImageManifest)
    return found


def index(*platforms: tuple[str, str] | None) -> ImageIndex:
    entries = [
        point(OCI_MANIFEST, number, **({"platform": {"os": of[0], "architecture": of[1]}} if of else {}))
        for number, of in enumerate(platforms)
    ]
    found = parse_manifest(raw(manifests=entries))
    assert isinstance(found, ImageIndex)
    return found


def raw(**document: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **document}).encode()


@pytest.mark.parametrize("media_type", WASM_LAYERS)
def test_a_layer_of_every_wasm_type_is_the_module(media_type: str) -> None:
    layer = select_layer(image(point(CONFIG, 1), point(media_type, 2), point("text/plain", 3)))
    assert (layer.media_type, layer.size) == (media_type, 2)


def test_the_first_of_several_counts_where_the_artifact_says_so() -> None:
    layers = point(WASM_LAYERS[0], 1), point(WASM_LAYERS[0], 2)
    assert select_layer(image(*layers, config=WASM_CONFIG)).size == 1
    with pytest.raises(AmbiguousLayer, match="2 modules"):
        select_layer(image(*layers))


@pytest.mark.parametrize(
    ("layer", "accepted"),
    [
        (point("application/octet-stream"), True),
        (point("application/octet-stream", title="a.wasm"), True),
        (point("application/octet-stream", title="a.txt"), False),
        (point(TAR, title="a.wasm"), True),
        (point(TAR, title="a.tar"), True),
        (point(TAR), True),
        (point(TAR + "+gzip", title="a.wasm"), True),
        (point(TAR + "+zstd", title="a.wasm"), False),
        (point("application/vnd.docker.image.rootfs.diff.tar.gzip"), True),
    ],
)
def test_a_lone_layer_without_a_wasm_type_counts_only_if_it_can_be_nothing_else(
    layer: dict[str, Any], accepted: bool
) -> None:
    if accepted:
        assert select_layer(image(layer)).size == 1
        with pytest.raises(NoWasmLayer):
            select_layer(image(layer, layer))
    else:
        with pytest.raises(NoWasmLayer, match="application/wasm"):
            select_layer(image(layer))


def test_no_layers_at_all_is_said_to_be_so() -> None:
    with pytest.raises(NoWasmLayer, match="no layers"):
        select_layer(image())


@pytest.mark.parametrize(
    ("platforms", "chosen"),
    [
        ([("linux", "amd64"), ("wasip1", "wasm"), ("wasi", "wasm"), ("", "wasm")], 3),
        ([("linux", "amd64"), ("wasip2", "wasm"), ("wasi", "wasm")], 2),
        ([("linux", "amd64"), ("wasip2", "wasm"), ("wasip1", "wasm")], 2),
        ([("js", "wasm"), ("linux", "arm64")], 0),
        ([("linux", "amd64")], 0),
        ([None], 0),
    ],
)
def test_the_platform_wasm_is_preferred_then_a_lone_entry(platforms: list[Any], chosen: int) -> None:
    assert select_platform(index(*platforms)).descriptor.size == chosen


def test_an_index_without_wasm_names_what_it_has() -> None:
    with pytest.raises(NoPlatform, match="linux/amd64, linux/arm64"):
        select_platform(index(("linux", "arm64"), ("linux", "amd64")))
    with pytest.raises(NoPlatform, match="none"):
        select_platform(index())


def test_attestations_are_not_counted_as_entries() -> None:
    attestation = point(OCI_MANIFEST, 2, platform={"os": "unknown", "architecture": "unknown"})
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    found = parse_manifest(raw(manifests=[attestation, point(OCI_MANIFEST, 1)]))
    assert isinstance(found, ImageIndex)
    assert select_platform(found).descriptor.size == 1


def test_docker_types_are_read_like_those_of_oci() -> None:
    assert isinstance(parse_manifest(raw(mediaType=DOCKER_MANIFEST, config=point(CONFIG), layers=[])), ImageManifest)
    assert isinstance(parse_manifest(raw(mediaType=DOCKER_LIST, manifests=[])), ImageIndex)


def test_the_document_says_what_it_is_and_the_header_only_where_it_does_not() -> None:
    both = raw(mediaType=OCI_MANIFEST, config=point(CONFIG), layers=[])
    assert isinstance(parse_manifest(both, OCI_INDEX), ImageManifest)
    silent = raw(config=point(CONFIG), layers=[])
    assert isinstance(parse_manifest(silent, f"{DOCKER_MANIFEST}; charset=utf-8"), ImageManifest)
    with pytest.raises(InvalidManifest):
        parse_manifest(silent, OCI_INDEX)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"3", b"[]", b"{}", b"\xff\xfe", raw(), raw(layers=[]), raw(layers=3, config=point(CONFIG)),
        raw(mediaType="text/html", layers=[], config=point(CONFIG)),
        raw(mediaType=OCI_INDEX, layers=[], config=point(CONFIG)),
        raw(manifests=[], layers=[], config=point(CONFIG)),
        raw(manifests=[3]), raw(manifests=[{}] * 1001),
        raw(config=point(CONFIG), layers=[point(CONFIG, digest="sha256:abc")]),
        raw(config=point(CONFIG), layers=[point(CONFIG, size=-1)]),
        raw(config=point(CONFIG), layers=[point(CONFIG, size=True)]),
        raw(config=point(CONFIG), layers=[point(CONFIG, size=1.5)]),
        raw(config=point(CONFIG), layers=[point(CONFIG, size=2**63)]),
        raw(config=point(CONFIG), layers=[point("", 1)]),
        json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(),
        b'{"schemaVersion": 2, "layers": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_document_that_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(data)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "digest", "size", "platform", "os", "annotations"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({"schemaVersion": st.just(2)}, optional={"config": JSON, "layers": JSON, "manifests": JSON})
)
def test_no_document_breaks_the_parser(document: dict[str, Any]) -> None:
    with suppress(OciError):
        found = parse_manifest(json.dumps(document).encode())
        select_layer(found) if isinstance(found, ImageManifest) else select_platform(found)
