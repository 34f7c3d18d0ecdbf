"""Digests and the hasher that checks bytes as they pass."""

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.digest import Digest, VerifyingHasher
from proplet.oci.errors import DigestMismatch, InvalidDigest, SizeMismatch

chunks = st.lists(st.binary(max_size=200), max_size=8)


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_is_written_and_read_back(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@pytest.mark.parametrize(
    "text",
    ["", "sha256", "sha256:", "sha256:abc", f"sha256:{'A' * 64}", f"sha256:{'a' * 65}", f"md5:{'a' * 32}",
     f"sha512:{'a' * 64}", f" sha256:{'a' * 64}", f"sha256:{'a' * 63}\n", f"sha256:{'a' * 63}٣", f"SHA256:{'a' * 64}"],
)  # fmt: skip
def test_anything_else_is_no_digest(text: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    with suppress(InvalidDigest):
        assert str(Digest.parse(text)) == text


@given(chunks, st.sampled_from(["sha256", "sha512"]))
def test_the_hasher_accepts_the_right_bytes_however_they_are_cut(parts: list[bytes], algorithm: str) -> None:
    data = b"".join(parts)
    hasher = VerifyingHasher(Digest.of(data, algorithm), len(data))
    for part in parts:
        hasher.update(part)
    assert hasher.finish() == Digest.of(data, algorithm)


@given(st.binary(min_size=1), st.data())
def test_the_hasher_notices_any_changed_bit(data: bytes, draw: st.DataObject) -> None:
    position = draw.draw(st.integers(0, len(data) * 8 - 1))
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    hasher = VerifyingHasher(Digest.of(data), len(data))
    hasher.update(bytes(changed))
    with pytest.raises(DigestMismatch):
        hasher.finish()


@given(st.binary(min_size=1))
def test_the_hasher_notices_missing_and_surplus_bytes(data: bytes) -> None:
    short = VerifyingHasher(Digest.of(data), len(data))
    short.update(data[:-1])
    with pytest.raises(SizeMismatch):
        short.finish()
    long = VerifyingHasher(Digest.of(data), len(data))
    with pytest.raises(SizeMismatch):
        long.update(data + b"x")
