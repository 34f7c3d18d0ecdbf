"""Modules in tar layers: found, bounded, and never more than one."""

import gzip
import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.oci.digest import Digest
from proplet.oci.errors import AmbiguousLayer, InvalidArchive, NoWasmLayer, OciError, StoreDamaged, TooLarge
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor
from proplet.oci.unpack import module_in, noted
from tests.support.registry import ADDITION

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def archive(*files: tuple[str, bytes], compressed: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(out.getvalue(), 1) if compressed else out.getvalue()


def layer(store: OciLayout, data: bytes) -> Descriptor:
    return Descriptor(GZIP, store.add_blob(data), len(data))


@pytest.mark.parametrize("compressed", [True, False])
def test_the_one_module_of_a_layer_becomes_a_blob(store: OciLayout, compressed: bool) -> None:
    data = archive(("app/", b""), ("app/readme.txt", b"x" * 5000), ("app/main.wasm", ADDITION), compressed=compressed)
    one = layer(store, data)
    assert noted(store, one.digest) is None
    module = module_in(store, one, MIB)
    assert module == Digest.of(ADDITION)
    assert store.read(module, MIB) == ADDITION
    assert noted(store, one.digest) == module
    before = (store.root / "unpacked").stat().st_mtime_ns
    assert module_in(store, one, MIB) == module
    assert (store.root / "unpacked").stat().st_mtime_ns == before  # nothing is written twice


def test_gzip_in_several_members_and_with_padding_is_read(store: OciLayout) -> None:
    plain = archive(("a.wasm", ADDITION), compressed=False)
    data = gzip.compress(plain[:700]) + gzip.compress(plain[700:]) + bytes(100)
    assert module_in(store, layer(store, data), MIB) == Digest.of(ADDITION)


def test_a_damaged_or_missing_module_is_unpacked_again(store: OciLayout) -> None:
    one = layer(store, archive(("a.wasm", ADDITION)))
    module = module_in(store, one, MIB)
    note = next((store.root / "unpacked").iterdir())
    store.path(module).write_bytes(b"rotten")
    assert store.read(module_in(store, one, MIB), MIB) == ADDITION
    store.remove_blob(module)
    assert store.read(module_in(store, one, MIB), MIB) == ADDITION
    for text in ("", "sha256:" + "0" * 64, "nonsense", "é"):
        note.write_text(text)
        assert module_in(store, one, MIB) == module
    store.path(one.digest).write_bytes(b"rotten")
    store.remove_blob(module)
    with pytest.raises(StoreDamaged):
        module_in(store, one, MIB)


def test_none_and_several_modules_are_told_apart(store: OciLayout) -> None:
    with pytest.raises(NoWasmLayer, match=r"\*\.wasm"):
        module_in(store, layer(store, archive(("a.txt", b"x"))), MIB)
    with pytest.raises(AmbiguousLayer, match=r"a\.wasm, b\.wasm"):
        module_in(store, layer(store, archive(("a.wasm", ADDITION), ("b.wasm", ADDITION))), MIB)


def test_a_module_beyond_the_limit_and_a_bomb_are_refused_early(store: OciLayout) -> None:
    with pytest.raises(TooLarge, match="2000 bytes"):
        module_in(store, layer(store, archive(("a.wasm", bytes(2000)))), 1000)
    bomb = archive(("zeros", bytes(70 * MIB)), ("a.wasm", ADDITION))
    assert len(bomb) < MIB
    with pytest.raises(TooLarge, match="unpacks to more"):
        module_in(store, layer(store, bomb), 1000)


@pytest.mark.parametrize("name", ["../../a.wasm", "/etc/a.wasm", "a/../../b.wasm"])
def test_names_that_lead_elsewhere_are_refused(store: OciLayout, name: str) -> None:
    with pytest.raises(InvalidArchive):
        module_in(store, layer(store, archive((name, ADDITION))), MIB)


@settings(max_examples=60)
@given(st.data())
def test_any_damage_is_an_error_of_ours_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = OciLayout(tmp_path_factory.mktemp("layout"))
    whole = bytearray(archive(("app/", b""), ("app/main.wasm", ADDITION), compressed=data.draw(st.booleans())))
    match data.draw(st.sampled_from(["cut", "change", "noise"])):
        case "cut":
            whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
        case "change":
            whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        case _:
            whole = bytearray(data.draw(st.binary(max_size=300)))
    with suppress(OciError):
        module = module_in(store, layer(store, bytes(whole)), MIB)
        assert store.verify(module) >= 0
    assert not [path for path in store.root.rglob("*") if ".tmp-" in path.name]
