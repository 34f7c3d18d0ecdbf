"""Transfers that break off: what is kept, who goes on with it, and that nobody fetches what another is fetching."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.oci.blobs import PARTIAL, PartialBlob
from proplet.oci.digest import Digest
from proplet.oci.errors import DigestMismatch, DiskFull, OciError, PullCancelled, SizeMismatch, Truncated
from proplet.oci.layout import OciLayout

DATA = bytes(range(256)) * 40
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def never(_seconds: float) -> None:
    raise AssertionError("nobody has to be waited for")


def continued(store: OciLayout, digest: Digest = DIGEST, size: int = len(DATA)) -> PartialBlob:
    return store.continue_blob(digest, size, "the blob", never)


def kept(store: OciLayout, digest: Digest = DIGEST) -> Path:
    return store.path(digest).with_name(f"{PARTIAL}{digest.hex}")


def broken_off(store: OciLayout, data: bytes) -> None:
    with continued(store) as blob:
        blob.write(data)


def transfer(store: OciLayout, data: bytes, error: OciError | None = None) -> None:
    with continued(store) as blob:
        blob.write(data)
        if error is not None:
            raise error
        blob.commit()


@settings(max_examples=40)
@given(st.binary(min_size=1, max_size=3000), st.lists(st.integers(0, 3000), max_size=4))
def test_a_transfer_in_any_number_of_pieces_is_whole(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    store = OciLayout(tmp_path_factory.mktemp("layout"))
    digest, at = Digest.of(data), 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        with continued(store, digest, len(data)) as blob:
            assert blob.count == at
            blob.write(data[at:cut])
            at = cut
    with continued(store, digest, len(data)) as blob:
        assert blob.count == at
        blob.write(data[at:])
        assert blob.commit() == digest
    assert store.verify(digest) == len(data)
    assert not kept(store, digest).exists()


def test_a_transfer_of_which_the_disk_gets_parts_early_is_whole_when_continued_and_begun_anew(store: OciLayout) -> None:
    piece = random.Random(7).randbytes(1 << 20)
    data = b"".join(bytes([at]) + piece for at in range(20))  # the disk is given more than one part of it
    digest = Digest.of(data)
    step = len(piece) + 1
    with continued(store, digest, len(data)) as blob:
        for at in range(0, 10 * step, step):
            blob.write(data[at : at + step])
    assert kept(store, digest).stat().st_size == 10 * step
    with continued(store, digest, len(data)) as blob:
        assert blob.count == 10 * step
        for at in range(10 * step, len(data), step):
            blob.write(data[at : at + step])
        blob.restart()
        for at in range(0, len(data), step):
            blob.write(data[at : at + step])
        assert blob.commit() == digest
    assert store.verify(digest) == len(data)


def test_a_blob_that_is_there_needs_no_transfer_and_a_damaged_one_does(store: OciLayout) -> None:
    store.add_blob(DATA)
    with continued(store) as blob:
        assert blob.is_present
        assert blob.count == len(DATA)
    assert not kept(store).exists()
    store.path(DIGEST).write_bytes(DATA[:-1] + b"x")
    with continued(store) as blob:
        assert (blob.is_present, blob.count) == (False, 0)
        blob.write(DATA)
        blob.commit()
    assert store.verify(DIGEST) == len(DATA)


def test_all_bytes_there_need_only_be_published(store: OciLayout) -> None:
    with continued(store) as blob:
        blob.write(DATA)
    with continued(store) as blob:
        assert blob.count == blob.size
        blob.commit()
    assert store.verify(DIGEST) == len(DATA)


def test_a_part_that_was_damaged_meanwhile_is_found_and_fetched_anew(store: OciLayout) -> None:
    for position in (0, 50, 99):
        broken_off(store, DATA[:100])
        rotten = bytearray(DATA[:100])
        rotten[position] ^= 1
        kept(store).write_bytes(rotten)
        with continued(store) as blob:
            assert blob.count == 100
            blob.write(DATA[100:])
            with pytest.raises(Truncated, match="fetched anew"):
                blob.commit()
            assert blob.count == 0
            blob.write(DATA)
            blob.commit()
        assert store.verify(DIGEST) == len(DATA)
        store.remove_blob(DIGEST)
    for odd in (DATA + b"more", DATA[:-1] + b"x"):
        kept(store).write_bytes(odd)
        with continued(store) as blob:
            assert blob.count == 0


def test_wrong_bytes_are_not_kept_and_missing_ones_are_waited_for(store: OciLayout) -> None:
    for wrong, kind in ((DATA[:-1] + b"x", DigestMismatch), (DATA + b"x", SizeMismatch)):
        with pytest.raises(kind):
            transfer(store, wrong)
        assert not kept(store).exists()
    with pytest.raises(DiskFull):
        transfer(store, DATA[:100], DiskFull("no space"))
    assert not kept(store).exists()
    with pytest.raises(PullCancelled):
        transfer(store, DATA[:50], PullCancelled("cancelled"))
    with pytest.raises(Truncated):
        transfer(store, DATA[50:100])
    assert kept(store).read_bytes() == DATA[:100]
    with continued(store) as blob:
        blob.restart()
    assert not kept(store).exists()


def test_what_never_fits_is_said_before_it_is_fetched(store: OciLayout) -> None:
    with pytest.raises(DiskFull):
        continued(store, size=2**60)
    assert not kept(store).exists()


def test_opening_the_store_leaves_parts_alone(store: OciLayout) -> None:
    broken_off(store, DATA[:100])
    OciLayout(store.root)
    assert kept(store).stat().st_size == 100


def test_who_waits_may_give_up_and_finds_what_the_other_fetched(store: OciLayout) -> None:
    def give_up(_seconds: float) -> None:
        raise PullCancelled("cancelled")

    with continued(store) as first:
        with pytest.raises(PullCancelled):
            store.continue_blob(DIGEST, len(DATA), "the blob", give_up)
        waited = []

        def work(seconds: float) -> None:  # what the other one does meanwhile
            waited.append(seconds)
            if len(waited) == 1:
                first.write(DATA)
                first.commit()

        with store.continue_blob(DIGEST, len(DATA), "the blob", work) as second:
            assert second.is_present
    assert waited
    assert not kept(store).exists()


def test_who_waits_for_one_that_fails_goes_on_itself(store: OciLayout) -> None:
    first = continued(store)
    first.write(DATA[:500])

    def work(_seconds: float) -> None:
        first.__exit__(None, None, None)

    with store.continue_blob(DIGEST, len(DATA), "the blob", work) as second:
        assert second.count == 500
    first = continued(store)
    first.restart()
    with store.continue_blob(DIGEST, len(DATA), "the blob", work) as second:
        assert second.count == 0
        second.write(DATA)
        second.commit()
    assert store.verify(DIGEST) == len(DATA)


CHILD = """
import sys
from pathlib import Path
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
import threading
store, source = OciLayout(Path(sys.argv[1])), Path(sys.argv[2])
data = source.read_bytes()
rest = threading.Event()
with store.continue_blob(Digest.of(data), len(data), "the blob", lambda s: rest.wait(s) and None) as blob:
    print("present" if blob.is_present else f"from {blob.count}", flush=True)
    if not blob.is_present:
        for at in range(blob.count, len(data), 1000):
            blob.write(data[at : at + 1000])
        print("all", flush=True)
        blob.commit()
print("done", flush=True)
"""


def test_of_several_processes_one_fetches_and_the_others_find_it(store: OciLayout, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA * 200)
    command = [sys.executable, "-c", CHILD, str(store.root), str(source)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [child.communicate(timeout=60)[0].split("\n")[0] for child in children]
    assert sorted(said) == ["from 0", "present", "present", "present"]


def test_a_killed_transfer_is_continued(store: OciLayout, tmp_path: Path) -> None:
    source = tmp_path / "source"
    data = os.urandom(3_000_000)
    source.write_bytes(data)
    digest = Digest.of(data)
    command = [sys.executable, "-c", CHILD, str(store.root), str(source)]
    moments = random.Random(5)
    counts = [0]
    for _ in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            first = child.stdout.readline().strip()
            if first == "present":
                break
            counts.append(int(first.removeprefix("from ")))
            for _line in range(moments.randrange(2)):
                child.stdout.readline()
            child.kill()
    assert counts == sorted(counts)
    finish = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert finish.stdout.endswith("done\n")
    assert store.verify(digest) == len(data)
