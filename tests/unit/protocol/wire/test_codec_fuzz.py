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


def decode_all(frame: bytes) -> list[str]:
    """The request ids of an engine's commands; a type's name for what is none."""
    return [
        message.request_id if isinstance(message, Abort) else type(message).__name__
        for message in codec.engine_command_decoder().decode_all(frame)
    ]


def aborts(count: int) -> list[bytes]:
    return [codec.encode(Abort(request_id=str(number), attempt=0)) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 255, 256, codec.MAX_BATCH_MESSAGES])
def test_messages_that_share_a_frame_come_out_in_order(count: int) -> None:
    assert decode_all(codec.join(aborts(count))) == [str(number) for number in range(count)]


def test_an_array_of_one_message_is_read_too() -> None:
    assert decode_all(b"\x91" + aborts(1)[0]) == ["0"]
    assert decode_all(b"\xdd\x00\x00\x00\x01" + aborts(1)[0]) == ["0"]


def test_bad_messages_of_a_frame_are_told_one_by_one_and_the_good_ones_count() -> None:
    frames = aborts(3)
    frames[1:1] = [b"\xc0", b"\x81\xa4type\xa7unknown", codec.join(aborts(2))]
    assert decode_all(codec.join(frames)) == ["0", *["DecodeError"] * 3, "1", "2"]


@pytest.mark.parametrize(
    "frame",
    [
        b"\x90",
        b"\xdc",
        b"\xdd\x00\x00",
        codec.join(aborts(3))[:-1],
        b"\x91" * 200_000,
        b"\xdd\xff\xff\xff\xff" + b"\xc0" * 1000,
        b"\xdc\x04\x01" + b"".join(aborts(codec.MAX_BATCH_MESSAGES + 1)),
    ],
)
def test_an_array_that_is_no_batch_is_one_bad_message(frame: bytes) -> None:
    assert decode_all(frame) == ["DecodeError"]


def test_a_frame_beyond_the_limit_is_refused_before_it_is_looked_at() -> None:
    decoder = codec.Decoder[Abort](Abort, max_bytes=100)
    (error,) = decoder.decode_all(codec.join(aborts(10)))
    assert isinstance(error, MessageTooLargeError)


@given(decoders, st.binary(max_size=300), st.integers(0, 15))
def test_a_random_array_gives_messages_or_errors_and_at_least_one(
    decoder: codec.Decoder[Any], rest: bytes, length: int
) -> None:
    found = decoder.decode_all(bytes([0x90 | length]) + rest)
    assert found
    assert all(isinstance(message, Message | DecodeError) for message in found)
