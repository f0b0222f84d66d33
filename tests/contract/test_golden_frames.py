"""Frames written down once: what any MessagePack library reads and writes stays what it was."""

import json
import typing
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from protocol.errors import DecodeError
from protocol.wire import codec, messages

GOLDEN_DIR = Path(__file__).parent / "golden"
CLASSES = {str(cls.__struct_config__.tag): cls for cls in typing.get_args(messages.AnyMessage)}
DECODERS: list[codec.Decoder[Any]] = [
    codec.engine_command_decoder(),
    codec.engine_event_decoder(),
    codec.auth_command_decoder(),
    codec.auth_event_decoder(),
    codec.parser_command_decoder(),
    codec.parser_event_decoder(),
]
ANY = codec.Decoder[Any](messages.AnyMessage)


OLD_DIRS = [
    Path(__file__).parent / name
    for name in ("golden_1_0", "golden_1_1", "golden_1_2", "golden_1_3", "golden_1_4")
]


def load(directory: Path = GOLDEN_DIR) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Tag → the message as a plain map, and its frame."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        for tag, entry in json.loads(path.read_text(encoding="utf-8")).items():
            found[tag] = (with_bytes(entry["plain"]), bytes.fromhex(entry["frame"]))
    return found


def with_bytes(value: Any) -> Any:
    """JSON knows no bytes; the files write them as {"$bytes": hex}."""
    if isinstance(value, dict):
        if set(value) == {"$bytes"}:
            return bytes.fromhex(value["$bytes"])
        return {key: with_bytes(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_bytes(entry) for entry in value]
    return value


GOLDEN = load()
OLD_GOLDEN = {
    f"{directory.name}-{tag}": entry
    for directory in OLD_DIRS
    for tag, entry in load(directory).items()
}


def test_every_message_has_a_golden_frame_and_every_frame_a_message() -> None:
    assert set(GOLDEN) == set(CLASSES)


def test_the_frame_says_what_a_plain_messagepack_library_reads() -> None:
    for tag, (plain, frame) in GOLDEN.items():
        assert msgpack.unpackb(frame) == plain, tag
        assert plain["type"] == tag


def test_every_field_of_the_message_is_in_its_frame() -> None:
    for tag, (plain, _) in GOLDEN.items():
        fields = {field.encode_name for field in msgspec.structs.fields(CLASSES[tag])}
        assert set(plain) == fields | {"type"}, tag


def test_reading_and_writing_a_frame_gives_the_same_bytes() -> None:
    for tag, (_, frame) in GOLDEN.items():
        message = ANY.decode(frame)
        assert type(message) is CLASSES[tag]
        assert codec.encode(message) == frame, tag


def test_what_a_plain_library_writes_is_read_as_the_same_message() -> None:
    for tag, (plain, frame) in GOLDEN.items():
        shuffled = dict(sorted(plain.items(), reverse=True))
        assert ANY.decode(msgpack.packb(shuffled)) == ANY.decode(frame), tag


def test_fields_of_a_later_minor_version_are_skipped() -> None:
    for tag, (plain, frame) in GOLDEN.items():
        newer = msgpack.packb({**plain, "field_of_the_future": [1, {"a": None}]})
        assert ANY.decode(newer) == ANY.decode(frame), tag


def test_a_frame_of_an_older_minor_still_says_the_same() -> None:
    for name, (plain, frame) in OLD_GOLDEN.items():
        message = ANY.decode(frame)
        assert type(message) is CLASSES[plain["type"]], name
        # What came later is at its default, which is left out: an old reader finds nothing new.
        assert msgpack.unpackb(codec.encode(message)) == msgpack.unpackb(frame) == plain, name


@pytest.mark.parametrize("decoder", DECODERS)
def test_each_socket_reads_its_own_messages_and_no_others(decoder: codec.Decoder[Any]) -> None:
    read, refused = 0, 0
    for _, frame in GOLDEN.values():
        try:
            decoder.decode(frame)
            read += 1
        except DecodeError:
            refused += 1
    assert read >= 7
    assert refused >= 10


def test_a_heartbeat_is_spelt_byte_by_byte_as_documented() -> None:
    heartbeat = messages.Heartbeat(instance_id="gw", phase="ready")
    assert codec.encode(heartbeat) == (
        b"\x83\xa4type\xa9heartbeat\xabinstance_id\xa2gw\xa5phase\xa5ready"
    )
