"""Messages to MessagePack bytes and back, with types; the only place that knows the format."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from protocol.errors import DecodeError, MessageTooLargeError
from protocol.wire import messages
from protocol.wire.messages.base import Message

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default bound of one message; beyond it a socket drops the peer's message unread."""

MessageT = TypeVar("MessageT")

_encoder = msgspec.msgpack.Encoder()

encode: Callable[[Message], bytes] = _encoder.encode
"""One message as MessagePack bytes."""


class Decoder(Generic[MessageT]):
    """Decodes bytes into one union of messages.

    Args:
        union: A union of `protocol.wire.messages`, such as `EngineCommand`.
        max_bytes: Longer input is refused before it is looked at.
    """

    def __init__(self, union: Any, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)
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
