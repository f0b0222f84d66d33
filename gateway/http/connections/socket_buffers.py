"""What clients have sent over WebSockets and nobody has taken yet, bounded by caller."""

from collections import OrderedDict
from collections.abc import Callable


class SocketBuffers:
    """The bytes that each caller's WebSockets hold, messages that are not whole among them.

    While they are over the bound, one of the caller's sockets is read on, the one that has held
    something for longest, and the others are not. So a caller has at most the bound, and what one
    socket and one read of each may hold, and never a set of sockets of which none can go on.

    Args:
        max_bytes: Of one caller.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._callers: dict[bytes, _CallerBuffers] = {}

    def open(self, caller: bytes) -> "SocketBuffer":
        """The buffer of a new socket; it takes nothing until it holds something."""
        return SocketBuffer(self, caller)

    def hold(self, buffer: "SocketBuffer", num_bytes: int) -> None:
        """A socket holds so many bytes now."""
        held = self._callers.get(buffer.caller)
        if held is None:
            if not num_bytes:
                return
            held = self._callers[buffer.caller] = _CallerBuffers()
        first, was_over = held.first, held.num_bytes > self._max_bytes
        held.set(buffer, num_bytes)
        if not held.by_socket:
            del self._callers[buffer.caller]
        if was_over and held.num_bytes <= self._max_bytes:
            for other in list(held.by_socket):
                other.on_room()
        elif was_over and held.first is not first and held.first is not None:
            held.first.on_room()

    def is_full(self, buffer: "SocketBuffer") -> bool:
        """Whether a socket had better not be read."""
        held = self._callers.get(buffer.caller)
        return (
            held is not None
            and held.num_bytes > self._max_bytes
            and buffer in held.by_socket
            and held.first is not buffer
        )


class _CallerBuffers:
    """Those of one caller."""

    def __init__(self) -> None:
        self.num_bytes = 0
        # In the order in which they began to hold something.
        self.by_socket: OrderedDict[SocketBuffer, int] = OrderedDict()

    @property
    def first(self) -> "SocketBuffer | None":
        return next(iter(self.by_socket), None)

    def set(self, buffer: "SocketBuffer", num_bytes: int) -> None:
        self.num_bytes += num_bytes - self.by_socket.get(buffer, 0)
        if num_bytes:
            self.by_socket[buffer] = num_bytes
        else:
            self.by_socket.pop(buffer, None)


class SocketBuffer:
    """What one socket holds of its caller's bound.

    Args:
        buffers: All of them.
        caller: Whose it is.

    Attributes:
        on_room: Called when the socket may be read again, as far as its caller goes.
    """

    def __init__(self, buffers: SocketBuffers, caller: bytes) -> None:
        self._buffers = buffers
        self._is_closed = False
        self.caller = caller
        self.on_room: Callable[[], None] = _nobody

    def hold(self, num_bytes: int) -> None:
        """The socket holds so many bytes now; nothing once it is closed."""
        if not self._is_closed:
            self._buffers.hold(self, num_bytes)

    def close(self) -> None:
        """The socket has ended; idempotent."""
        self.hold(0)
        self._is_closed = True
        self.on_room = _nobody  # two that know each other would wait for the collector

    @property
    def is_full(self) -> bool:
        """Whether the socket had better not be read."""
        return self._buffers.is_full(self)


def _nobody() -> None:
    pass
