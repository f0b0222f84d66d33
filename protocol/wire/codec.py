"""Messages to MessagePack bytes and back, with types; the only place that knows the format."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from protocol.errors import DecodeError, EncodeError, MessageTooLargeError, ProtocolError
from protocol.wire import messages
from protocol.wire.messages.base import Message

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default bound of one message; beyond it a socket drops the peer's message unread."""

MAX_BATCH_MESSAGES = 1024
"""In one frame; a longer batch is one malformed frame, so that no peer makes us busy for long."""

MessageT = TypeVar("MessageT")

_parts_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_encoder = msgspec.msgpack.Encoder()


def encode_value(value: object) -> bytes:
    """Anything that a `Decoder` of its type reads; for two processes of one release.

    Raises:
        EncodeError: A text in it has a lone surrogate, or a number more than 64 bits.
    """
    try:
        return _encoder.encode(value)
    except Exception as error:
        kind = type(value).__name__
        raise EncodeError(f"A {kind} can't be written as MessagePack: {error}.") from error


encode: Callable[[Message], bytes] = encode_value
"""One message as MessagePack bytes; raises `EncodeError` as `encode_value` does."""


def join(frames: Sequence[bytes]) -> bytes:
    """Encoded messages as one frame: alone as it is, several as a MessagePack array of them."""
    if len(frames) == 1:
        return frames[0]
    if len(frames) < 16:
        return b"%c%b" % (0x90 | len(frames), b"".join(frames))
    return b"\xdc%b%b" % (len(frames).to_bytes(2, "big"), b"".join(frames))


_FIRST_ARRAY = 0x90


def _batch_length(frame: bytes) -> int | None:
    """How many messages the array in a frame says it has; None when it is no array."""
    first = frame[0] if frame else 0
    if _FIRST_ARRAY <= first <= 0x9F:
        return first & 0x0F
    if first == 0xDC:
        return int.from_bytes(frame[1:3], "big")
    return int.from_bytes(frame[1:5], "big") if first == 0xDD else None


class Decoder(Generic[MessageT]):
    """Decodes bytes into one union of messages.

    Args:
        union: A union of `protocol.wire.messages`, such as `EngineCommand`.
        max_bytes: Longer input is refused before it is looked at.
    """

    def __init__(self, union: Any, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)
        self._batch_decoder = msgspec.msgpack.Decoder(list[union])
        self._max_bytes = max_bytes

    def decode(self, frame: bytes | memoryview) -> MessageT:
        """The message in a frame.

        Raises:
            DecodeError: The bytes are no message of this union.
            MessageTooLargeError: More than `max_bytes`.
        """
        if len(frame) > self._max_bytes:
            raise MessageTooLargeError(
                f"A message of {len(frame)} bytes is over the limit of {self._max_bytes} bytes."
            )
        try:
            return self._decoder.decode(frame)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError(f"Not a message of this socket: {error}") from error

    def decode_all(self, frame: bytes) -> Sequence[MessageT | ProtocolError]:
        """The messages in a frame: one, or an array of them.

        What is no message of this union stands as a `DecodeError` or `MessageTooLargeError` in its
        place, and so does a frame that can't be read at all.
        """
        try:
            if frame and frame[0] < _FIRST_ARRAY:  # a map, as every message alone is
                return (self.decode(frame),)
            length = _batch_length(frame)
            if length is None:
                return (self.decode(frame),)
            if not 1 <= length <= MAX_BATCH_MESSAGES:
                raise DecodeError(
                    f"A batch of {length}; it has 1 to {MAX_BATCH_MESSAGES} messages."
                )
            if len(frame) > self._max_bytes:
                raise MessageTooLargeError(
                    f"A batch of {len(frame)} bytes is over the limit of {self._max_bytes} bytes."
                )
        except ProtocolError as error:
            return (error,)
        try:
            return self._batch_decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._decode_one_by_one(frame)

    def _decode_one_by_one(self, frame: bytes) -> Sequence[MessageT | ProtocolError]:
        try:
            parts = _parts_decoder.decode(frame)
        except (msgspec.MsgspecError, RecursionError) as error:
            return (DecodeError(f"Not a batch of messages: {error}"),)
        found: list[MessageT | ProtocolError] = []
        for part in parts:
            try:
                found.append(self.decode(memoryview(part)))
            except DecodeError as error:
                found.append(error)
        return found


def engine_command_decoder() -> Decoder[messages.EngineCommand]:
    """Decodes what an engine receives."""
    return Decoder(messages.EngineCommand)


def engine_event_decoder() -> Decoder[messages.EngineEvent]:
    """Decodes what a gateway receives from engines."""
    return Decoder(messages.EngineEvent)


def auth_command_decoder() -> Decoder[messages.AuthCommand]:
    """Decodes what an auth worker receives."""
    return Decoder(messages.AuthCommand)


def auth_event_decoder() -> Decoder[messages.AuthEvent]:
    """Decodes what a gateway receives from auth workers."""
    return Decoder(messages.AuthEvent)


def parser_command_decoder() -> Decoder[messages.ParserCommand]:
    """Decodes what a parser worker receives."""
    return Decoder(messages.ParserCommand)


def parser_event_decoder() -> Decoder[messages.ParserEvent]:
    """Decodes what a gateway receives from parser workers."""
    return Decoder(messages.ParserEvent)
