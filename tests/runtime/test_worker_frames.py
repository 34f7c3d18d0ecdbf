"""The frames between agent and child."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.worker_frames import MAX_FRAME, Decoder, FrameError, encode

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(_VALUES, max_size=6), st.integers(1, 40))
def test_messages_arrive_whole_however_the_stream_is_cut(messages: list[object], size: int) -> None:
    data, decoder = encode(messages), Decoder()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert [message for piece in pieces for message in decoder.feed(piece)] == messages


def test_a_length_beyond_the_limit_is_refused() -> None:
    with pytest.raises(FrameError, match="claims"):
        list(Decoder().feed((MAX_FRAME + 1).to_bytes(4, "big")))


@given(st.binary(min_size=5, max_size=60))
def test_rubbish_is_a_frame_error_or_waits_for_more_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        list(Decoder().feed(data))
