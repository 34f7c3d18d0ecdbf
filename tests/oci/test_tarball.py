"""Tar archives: what Python's tarfile and GNU tar write is read, and what could do harm is refused."""

import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.oci.errors import InvalidArchive
from proplet.oci.tarball import END, header, members, padding

NAMES = st.lists(
    st.text("abcXYZ019-_.é", min_size=1, max_size=120).filter(lambda part: part not in {".", ".."}),
    min_size=1,
    max_size=4,
).map("/".join)


def tar(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    return {member.name: data[member.offset : member.offset + member.size] for member in members(io.BytesIO(data))}


@given(st.dictionaries(NAMES, st.binary(max_size=1500), min_size=1, max_size=5), st.sampled_from([0, 1, 2]))
@settings(max_examples=150)
def test_what_tarfile_writes_in_each_of_its_forms_is_read(files: dict[str, bytes], form: int) -> None:
    try:
        data = tar(files, form)
    except ValueError:  # names too long for the oldest form
        return
    assert read(data) == files


@given(st.dictionaries(NAMES, st.binary(max_size=1500), min_size=1, max_size=5))
def test_what_is_written_is_read_by_tarfile_and_by_us(files: dict[str, bytes]) -> None:
    data = b"".join(header(name, len(body)) + body + padding(len(body)) for name, body in files.items()) + END
    assert read(data) == files
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == list(files)


@given(st.binary(max_size=3000))
def test_any_bytes_are_an_archive_or_refused(data: bytes) -> None:
    with suppress(InvalidArchive):
        read(data)


@given(st.data())
def test_a_damaged_archive_is_read_as_it_was_or_refused(data: st.DataObject) -> None:
    whole = bytearray(tar({"blobs/sha256/aa": b"x" * 700, "index.json": b"{}"}, tarfile.PAX_FORMAT))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with suppress(InvalidArchive):
        assert all(not name.startswith("/") for name in read(bytes(whole)))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "blobs/../../x", "a\x1b[2J"])
def test_a_name_that_leads_out_of_the_archive_is_refused(name: str) -> None:
    with pytest.raises(InvalidArchive, match="leads out of it"):
        read(tar({name: b"x"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    member = tarfile.TarInfo("blobs/sha256/aa")
    member.type, member.linkname = kind, "/etc/shadow"
    with pytest.raises(InvalidArchive, match="is a link or a device"):
        read(member.tobuf() + END)


def test_an_extended_header_that_would_fill_the_memory_is_refused() -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 10 * 1024**3
    with pytest.raises(InvalidArchive, match="extended header of 10737418240 bytes"):
        read(member.tobuf(tarfile.GNU_FORMAT) + END)


def test_sparse_files_are_refused() -> None:
    record = b"21 GNU.sparse.major=1\n"
    record = b"%d%s" % (len(record), record[2:])
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, len(record)
    with pytest.raises(InvalidArchive, match="sparse"):
        read(member.tobuf() + record + padding(len(record)) + END)


def test_an_archive_that_was_cut_short_is_refused() -> None:
    whole = tar({"index.json": b"x" * 2000})
    with pytest.raises(InvalidArchive, match=r"ends in the middle of index\.json"):
        read(whole[:1024])
    with pytest.raises(InvalidArchive, match="empty"):
        read(b"")
    with pytest.raises(InvalidArchive, match="no tar archive"):
        read(b"PK" * 600)


def test_directories_and_the_dot_before_names_are_passed_over() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in ("./", "./blobs/"):
            directory = tarfile.TarInfo(name)
            directory.type = tarfile.DIRTYPE
            archive.addfile(directory)
        member = tarfile.TarInfo("./blobs/x")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert read(target.getvalue()) == {"blobs/x": b"abc"}
