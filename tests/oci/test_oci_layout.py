"""The store on disk: its form, its checks, several processes at once, sudden death and bad disks."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    DigestMismatch,
    DiskFull,
    NotInStore,
    SizeMismatch,
    StoreDamaged,
    StoreFailed,
)
from proplet.oci.layout import REF_NAME, OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor

DATA = b"some bytes"


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def files(store: OciLayout) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()}


def record(store: OciLayout, name: str, data: bytes = DATA) -> Descriptor:
    manifest = Descriptor(OCI_MANIFEST, store.add_blob(data), len(data))
    store.set_reference(name, manifest)
    return manifest


def test_a_new_store_is_an_image_layout_for_its_owner_only(store: OciLayout) -> None:
    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((store.root / "index.json").read_bytes())["manifests"] == []
    record(store, "a:b")
    for path in [store.root, *store.root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@settings(max_examples=25)
@given(st.binary(max_size=2000), st.sampled_from(["sha256", "sha512"]))
def test_what_is_added_is_found_by_its_digest(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    store = OciLayout(tmp_path_factory.mktemp("layout"))
    digest = Digest.of(data, kind)
    for source in (data, io.BytesIO(data), [data[:3], data[3:]]):
        assert store.add_blob(source, digest, len(data)) == digest
    assert store.has(digest)
    assert store.verify(digest) == len(data)
    with store.open_verified(digest) as file:
        assert file.read() == data
    assert store.path(digest).name == digest.hex


def test_content_that_is_not_what_was_expected_leaves_nothing_behind(store: OciLayout) -> None:
    before = files(store)
    with pytest.raises(DigestMismatch):
        store.add_blob(DATA, Digest.of(b"other"))
    with pytest.raises(SizeMismatch):
        store.add_blob(io.BytesIO(DATA), Digest.of(DATA), len(DATA) - 1)
    with pytest.raises(SizeMismatch):
        store.add_blob([DATA], Digest.of(DATA), len(DATA) + 1)
    with store.new_blob() as writer:
        writer.write(DATA)  # and never committed
    assert files(store) == before


def test_any_changed_byte_on_disk_is_found_when_it_is_read(store: OciLayout) -> None:
    digest = store.add_blob(DATA)
    path = store.path(digest)
    for position in range(len(DATA)):
        rotten = bytearray(DATA)
        rotten[position] ^= 0x80
        path.write_bytes(rotten)
        with pytest.raises(StoreDamaged, match="pull again"):
            store.verify(digest)
        with pytest.raises(StoreDamaged):
            store.open_verified(digest)
        with pytest.raises(StoreDamaged):
            store.read(digest, 1000)
    assert store.add_blob(DATA) == digest  # adding it again repairs it
    assert store.read(digest, 1000) == DATA


def test_a_blob_that_is_not_there_is_said_not_to_be(store: OciLayout) -> None:
    for use in (store.open, store.verify, store.open_verified):
        with pytest.raises(NotInStore):
            use(Digest.of(DATA))
    with pytest.raises(NotInStore):
        store.set_reference("a:b", Descriptor(OCI_MANIFEST, Digest.of(DATA), 1))
    store.remove_blob(Digest.of(DATA))


def test_a_name_stands_for_what_was_recorded_last(store: OciLayout) -> None:
    first, second = record(store, "a:b"), record(store, "a:b", b"newer")
    other = record(store, "c:d")
    assert store.resolve("a:b") is not None
    assert {name: found.digest for name, found in store.references().items()} == {
        "a:b": second.digest,
        "c:d": other.digest,
    }
    assert first.digest == other.digest
    store.remove_reference("a:b")
    assert store.resolve("a:b") is None
    assert store.resolve("c:d") is not None


def test_entries_that_other_tools_made_are_kept(store: OciLayout) -> None:
    index = store.root / "index.json"
    foreign = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"x")), "size": 1, "platform": {"os": "linux"}}
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": [foreign], "annotations": {"k": "v"}}))
    record(store, "a:b")
    after = json.loads(index.read_bytes())
    assert after["manifests"][0] == foreign
    assert after["manifests"][1]["annotations"] == {REF_NAME: "a:b"}
    assert after["annotations"] == {"k": "v"}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"manifests": 3}', '{"manifests": [3]}', '{"manifests": [{}]}'])
def test_a_damaged_index_is_said_to_be_damaged(store: OciLayout, text: str) -> None:
    (store.root / "index.json").write_text(text)
    with pytest.raises(StoreDamaged, match=r"index\.json"):
        store.resolve("a:b")


def test_a_layout_of_another_version_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(StoreDamaged, match=r"version 1\.0"):
        OciLayout(tmp_path)


def test_leftovers_of_dead_writers_go_and_those_of_live_ones_stay(store: OciLayout) -> None:
    left = store.root / "blobs" / "sha256" / ".tmp-dead"
    left.write_bytes(b"half")
    (store.root / ".tmp-dead").write_bytes(b"half")
    with store.new_blob() as writer:
        writer.write(DATA)
        OciLayout(store.root)
        assert not left.exists()
        assert not (store.root / ".tmp-dead").exists()
        assert writer.commit() == Digest.of(DATA)
    assert store.verify(Digest.of(DATA)) == len(DATA)


CHILD = """
import os, random, sys
from pathlib import Path
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor
root, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for number in range(rounds):
    store = OciLayout(root)
    data = name.encode() + number.to_bytes(4, "big") + os.urandom(random.randrange(200_000))
    digest = store.add_blob([data[:1000], data[1000:]])
    store.set_reference(f"{name}:{number}", Descriptor(OCI_MANIFEST, digest, len(data)))
    print(number, flush=True)
"""


def child(store: OciLayout, name: str, rounds: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(store.root), name, str(rounds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_several_processes_lose_nothing_of_each_others(store: OciLayout) -> None:
    children = [child(store, name, 20) for name in ("a", "b", "c")]
    for one in children:
        one.communicate(timeout=60)
        assert one.returncode == 0
    found = store.references()
    assert set(found) == {f"{name}:{number}" for name in ("a", "b", "c") for number in range(20)}
    for descriptor in found.values():
        assert store.verify(descriptor.digest) == descriptor.size


def test_killed_at_any_point_the_store_is_whole_and_clean(store: OciLayout) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    done = set()
    for round_number in range(12):
        one = child(store, f"r{round_number}", 10_000)
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
        timer = threading.Timer(moments.uniform(0.0, 0.12), one.kill)
        timer.start()
        for line in one.stdout:
            done.add(f"r{round_number}:{line.strip()}")
        one.wait()
        one.stdout.close()
        timer.join()
        again = OciLayout(store.root)
        references = again.references()
        assert done <= set(references)  # what was recorded is not lost
        for descriptor in references.values():
            assert again.verify(descriptor.digest) == descriptor.size
        assert not [name for name in files(again) if ".tmp-" in name]
        for blob in (again.root / "blobs" / "sha256").iterdir():
            assert again.verify(Digest("sha256", blob.name)) >= 0
    assert done


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[list[str]]:
    """A command prefix under which ``$SMALL`` is a file system of 256 KiB, in a mount namespace of its own."""
    mount = tmp_path / "small"
    mount.mkdir()
    script = f'mount -t tmpfs -o size=256k tmpfs {mount} && SMALL={mount} exec "$@"'
    for options in (["-m"], ["-rm"]):
        prefix = ["unshare", *options, "sh", "-c", script, "sh"]
        if (
            shutil.which("unshare")
            and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
        ):
            yield prefix
            return
    line = "needs a mount namespace: run as root, or allow user namespaces"
    if os.environ.get("CI") == "true":
        pytest.fail(line, pytrace=False)
    pytest.skip(line)


FULL = """
import os, sys
from pathlib import Path
from proplet.oci.digest import Digest
from proplet.oci.errors import DiskFull
from proplet.oci.layout import OciLayout
store = OciLayout(Path(os.environ["SMALL"]) / "store")
kept = store.add_blob(b"kept")
for announce in (True, False):
    data = [bytes(65536)] * 8
    try:
        store.add_blob(data, size=8 * 65536 if announce else None)
    except DiskFull as error:
        print(error)
store.verify(kept)
store.add_blob(b"small ones still fit")
print(len([path for path in store.root.rglob("*") if ".tmp-" in path.name]), "left over")
"""


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(small_disk: list[str]) -> None:
    done = subprocess.run([*small_disk, sys.executable, "-c", FULL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    announced, met, left = done.stdout.splitlines()
    assert "free some space" in announced
    assert "524288 are needed" in announced
    assert "free some space" in met
    assert left == "0 left over"


def test_the_full_disk_error_has_its_reason() -> None:
    assert DiskFull.reason == "disk_full"


READ_ONLY = """
import os, sys
from pathlib import Path
from proplet.oci.digest import Digest
from proplet.oci.errors import StoreReadOnly
from proplet.oci.layout import OciLayout
root = Path(sys.argv[1])
store = OciLayout(root)
print(store.verify(Digest.of(b"some bytes")))
for attempt in (lambda: store.add_blob(b"new"), lambda: store.remove_reference("a:b"),
                lambda: OciLayout(root / "blobs" / "elsewhere")):
    try:
        attempt()
    except StoreReadOnly as error:
        print(error)
"""


def test_a_read_only_store_is_read_and_says_that_it_cannot_be_written(store: OciLayout, small_disk: list[str]) -> None:
    record(store, "a:b")
    script = f'mount --bind {store.root} {store.root} && mount -o remount,bind,ro {store.root} && exec "$@"'
    command = [*small_disk[:-2], script, "sh", sys.executable, "-c", READ_ONLY, str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, *errors = done.stdout.splitlines()
    assert size == str(len(DATA))
    assert len(errors) == 3
    assert all("needs a writable directory" in error for error in errors)


def test_a_store_where_a_file_is_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed):
        OciLayout(tmp_path / "file")
