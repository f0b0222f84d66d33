"""Where answers are written: the end of a connection, and answers of any length."""

import asyncio
from typing import Protocol


class AnsweringProtocol(Protocol):
    """What the transport needs of the protocol of its connection."""

    @property
    def has_unread_body(self) -> bool:
        """Whether the request that is answered has sent, or will send, what nobody reads."""
        ...

    def linger(self) -> None:
        """Close once the client had a moment to read."""
        ...


class AnyLength(int):
    """The length of an answer that ends with its connection; uvicorn counts down from it.

    An old client gets no chunks (RFC 9112 §6.1), which uvicorn would send to it.
    """

    def __lt__(self, _other: object) -> bool:
        return False

    def __sub__(self, _other: object) -> "AnyLength":
        return self

    def __ne__(self, _other: object) -> bool:
        return False

    def __eq__(self, _other: object) -> bool:
        return True

    __hash__ = int.__hash__


class LingeringTransport:
    """A connection's transport whose `close`, as uvicorn calls it after an answer, may linger.

    Args:
        transport: The real one.
        protocol: Knows whether a body was left unread.
    """

    def __init__(self, transport: asyncio.Transport, protocol: AnsweringProtocol) -> None:
        self._transport = transport
        self._protocol: AnsweringProtocol | None = protocol
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def close(self) -> None:
        """Close, after a moment where the client may still be sending."""
        protocol = self._protocol
        if protocol is None or self._transport.is_closing() or not protocol.has_unread_body:
            self._transport.close()
        else:
            protocol.linger()

    def let_go(self) -> None:
        """The connection is gone: two that know each other would wait for the collector."""
        self._protocol = None
