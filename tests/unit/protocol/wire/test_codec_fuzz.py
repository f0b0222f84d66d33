"""No byte string makes a decoder do worse than raise DecodeError."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import DecodeError, MessageTooLargeError
from protocol.wire import codec
from protocol.wire.messages import Abort, Message

GOLDEN_FRAMES = [
    bytes.fromhex(entry["frame"])
    for path in sorted((Path(__file__).parents[3] / "contract" / "golden").glob("*.json"))
    for entry in json.loads(path.read_text(encoding="utf-8")).values()
]
DECODERS: list[codec.Decoder[Any]] = [
    codec.engine_command_decoder(),
    codec.engine_event_decoder(),
    codec.auth_command_decoder(),
    codec.auth_event_decoder(),
    codec.parser_command_decoder(),
    codec.parser_event_decoder(),
]
decoders = st.sampled_from(DECODERS)


def decode_or_refuse(decoder: codec.Decoder[Any], frame: bytes) -> None:
    try:
        message = decoder.decode(frame)
    except DecodeError:
        return
    assert isinstance(message, Message)
    assert decoder.decode(codec.encode(message)) == message or "nan" in repr(message)


@given(decoders, st.binary(max_size=300))
@example(DECODERS[0], b"\x91" * 200_000)
@example(DECODERS[1], b"\x81\xa1a" * 100_000)
@example(DECODERS[0], b"\xdf\xff\xff\xff\xff")
@example(DECODERS[0], b"\xdd\xff\xff\xff\xff\x00")
@example(DECODERS[0], b"\xc6\xff\xff\xff\xff")
@example(DECODERS[2], b"\x81\xa4type\xd9\x02\xff\xfe")
def test_random_bytes_are_refused_or_are_a_message(
    decoder: codec.Decoder[Any], frame: bytes
) -> None:
    decode_or_refuse(decoder, frame)


@given(
    decoders,
    st.sampled_from(GOLDEN_FRAMES),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 200),
)
def test_damaged_frames_are_refused_or_are_a_message(
    decoder: codec.Decoder[Any], frame: bytes, damage: list[tuple[int, int]], num_cut: int
) -> None:
    damaged = bytearray(frame)
    for position, value in damage:
        damaged[position % len(damaged)] = value
    decode_or_refuse(decoder, bytes(damaged[: len(damaged) - num_cut % len(damaged)]))


@given(decoders, st.sampled_from(GOLDEN_FRAMES), st.sampled_from(GOLDEN_FRAMES), st.data())
def test_spliced_frames_are_refused_or_are_a_message(
    decoder: codec.Decoder[Any], head: bytes, tail: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(head)))
    decode_or_refuse(decoder, head[:cut] + tail[data.draw(st.integers(0, len(tail))) :])


def test_a_frame_beyond_the_limit_is_refused_unread() -> None:
    decoder = codec.Decoder[Abort](Abort, max_bytes=10)
    with pytest.raises(MessageTooLargeError):
        decoder.decode(codec.encode(Abort(request_id="x" * 20, attempt=0)))
