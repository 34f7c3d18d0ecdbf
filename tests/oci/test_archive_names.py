"""What images are called that come out of other tools' archives; and what skopeo makes of ours and we of its."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.archive import export, whole_file
from proplet.oci.archive_names import (
    CONTAINERD_NAME,
    REF_NAME,
    SUBJECT,
    Found,
    kept_annotations,
    names_of,
    repository_for,
    signs,
)
from proplet.oci.archive_source import open_source
from proplet.oci.artifact import make_artifact
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor
from proplet.oci.pull import pull
from proplet.oci.pulled import PullPolicy
from proplet.oci.reference import Reference
from proplet.oci.settings import RegistrySettings
from proplet.oci.unarchive import bring
from tests.support.image_tools import skopeo
from tests.support.modules import DIRECTORY, module

HOME = "localhost/file"
IMAGE, OTHER = Digest.of(b"image"), Digest.of(b"other")


def entry(digest: Digest = IMAGE, **annotations: str) -> Descriptor:
    keys = {"ref": REF_NAME, "containerd": CONTAINERD_NAME, "kind": "kind"}
    return Descriptor(OCI_MANIFEST, digest, 10, {keys[key]: value for key, value in annotations.items()})


def named(*entries: Descriptor, subjects: tuple[Digest | None, ...] = ()) -> list[str]:
    padded = (*subjects, *[None] * (len(entries) - len(subjects)))
    return names_of([Found(one, (one.digest,), padded[at]) for at, one in enumerate(entries)], HOME)


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({"ref": "ghcr.io/org/x:v1"}, "ghcr.io/org/x:v1"),
        ({"ref": "v1"}, "localhost/file:v1"),
        ({"ref": "latest", "containerd": "docker.io/library/hello:latest"}, "docker.io/library/hello:latest"),
        ({"ref": "hello:v1"}, "docker.io/library/hello:v1"),
        ({"ref": f"ghcr.io/org/x:v1@{IMAGE}"}, f"ghcr.io/org/x@{IMAGE}"),
        ({"ref": f"ghcr.io/org/x@{OTHER}"}, "localhost/file:latest"),
        ({"ref": "https://example.com/x.wasm"}, "https://example.com/x.wasm"),
        ({"ref": "../../etc/passwd:x"}, "localhost/file:latest"),
        ({}, "localhost/file:latest"),
    ],
)
def test_an_image_has_the_name_that_its_tool_gave_it(annotations: dict[str, str], name: str) -> None:
    assert named(entry(**annotations)) == [name]


def test_several_images_without_a_name_are_told_apart_by_digest() -> None:
    assert named(entry(), entry(OTHER)) == [f"{HOME}@{IMAGE}", f"{HOME}@{OTHER}"]


def test_what_signs_an_image_goes_where_the_image_is() -> None:
    image = entry(ref="ghcr.io/org/x:v1")
    tag = f"sha256-{IMAGE.hex}.sig"
    by_tag, by_cosign, referrer = (
        entry(OTHER, ref=tag),
        entry(OTHER, kind="dev.cosignproject.cosign/sigs"),
        entry(OTHER),
    )
    assert named(image, by_tag)[1] == f"ghcr.io/org/x:{tag}"
    assert named(image, by_cosign)[1] == f"ghcr.io/org/x:{tag}"
    assert named(image, referrer, subjects=(None, IMAGE))[1] == f"ghcr.io/org/x@{OTHER}"
    assert named(entry(OTHER, ref=f"ghcr.io/org/y:{tag}")) == [f"ghcr.io/org/y:{tag}"]
    assert signs(by_tag, None)
    assert signs(by_cosign, None)
    assert signs(referrer, IMAGE)
    assert not signs(image, None)
    assert kept_annotations(by_tag, IMAGE) == {SUBJECT: str(IMAGE)}


@given(st.lists(st.dictionaries(st.sampled_from(["ref", "containerd", "kind"]), st.text(max_size=40)), max_size=4))
def test_any_annotations_give_names_that_a_store_can_have(given_: list[dict[str, str]]) -> None:
    for name in named(*(entry(Digest.of(bytes([at])), **one) for at, one in enumerate(given_))):
        if not name.startswith("https://"):
            assert Reference.parse(name).store_name == name


@given(st.text(max_size=200))
def test_any_file_name_gives_a_repository(name: str) -> None:
    assert Reference.parse(f"{repository_for(name)}:v1").repository


def test_a_file_name_gives_a_repository_of_its_own() -> None:
    assert repository_for("/media/usb/My Module.oci.tar.gz") == "localhost/my-module"
    assert repository_for("/.tar") == "localhost/image"


def lay(layout: OciLayout, name: str) -> Digest:
    wasm = DIRECTORY / "component_http.wasm"
    with wasm.open("rb") as file:
        artifact = make_artifact(file, wasm.name, 0)
    for data in (wasm.read_bytes(), artifact.config, artifact.manifest):
        layout.add_blob(data)
    layout.set_reference(name, Descriptor(OCI_MANIFEST, artifact.digest, len(artifact.manifest)))
    return artifact.digest


def test_skopeo_reads_what_we_export_and_we_read_what_it_writes(tmp_path: Path) -> None:
    tool = skopeo(tmp_path)
    store, name = OciLayout(tmp_path / "store"), "example.com/demo/http:v1"
    digest = lay(store, name)
    with whole_file(tmp_path / "ours.tar") as file:
        export(store, [name], file.write)
    raw = tool.run("inspect", "--raw", f"oci-archive:{tmp_path}/ours.tar:{name}")
    assert Digest.of(raw.encode()) == digest
    assert json.loads(raw)["layers"][0]["digest"] == str(Digest.of(module("component_http")))
    tool.run("copy", f"oci-archive:{tmp_path}/ours.tar:{name}", f"oci-archive:{tmp_path}/theirs.tar:v7")
    tool.run("copy", f"oci-archive:{tmp_path}/ours.tar:{name}", f"oci:{tmp_path}/layout:v8")
    fresh = OciLayout(tmp_path / "fresh")
    for path, made in (("theirs.tar", "localhost/theirs:v7"), ("layout", "localhost/layout:v8")):
        with open_source(tmp_path / path, path, fresh.root) as source:
            done = bring(source, fresh, repository=repository_for(path))
        assert [(one.name, one.digest) for one in done.images] == [(made, digest)]
        pulled = pull(made, fresh, RegistrySettings(), policy=PullPolicy.NEVER)
        assert pulled.path.read_bytes() == module("component_http")
