"""A connection until its client says something: counted, but with nothing of HTTP made for it."""

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from uvicorn.server import ServerState

from gateway.http.connections.limits import ConnectionLimits
from gateway.telemetry.refusals import Refusals
from protocol.errors import ErrorCode
from protocol.runtime.addresses import plain_address

ARRIVAL_TIMEOUT_S: Final = 60.0
"""For the first byte of a request."""
HANDSHAKE_TIMEOUT_S: Final = 10.0
_THIS_MACHINE: Final = "127.0.0.1"
_LOOK_S: Final = 1.0


def client_of(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """A client's address and port; None if it has left already.

    Networks of proxies and of keys are written as IPv4, also where a socket takes IPv6 as well. On
    a Unix socket it is somebody on this machine, perhaps a proxy that is trusted.
    """
    sock, peer = transport.get_extra_info("socket"), transport.get_extra_info("peername")
    if sock is not None and sock.family == socket.AF_UNIX:
        return _THIS_MACHINE, 0
    return (plain_address(str(peer[0])), int(peer[1])) if isinstance(peer, tuple) else None


class Arrivals:
    """The connections that have said nothing yet; called by uvicorn for each new one.

    Args:
        limits: The bounds of connections.
        tls: The context for a new connection's TLS; None serves plain HTTP.
        http: Makes the protocol that takes over, of what uvicorn calls this with.
        refusals: Is told of those that get no place and no answer.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        tls: Callable[[], ssl.SSLContext] | None,
        http: Callable[..., asyncio.Protocol],
        refusals: Refusals | None = None,
    ) -> None:
        self.limits = limits
        self.refusals = refusals
        self.tls = tls
        self._http = http
        # The same for each connection, and made once.
        self.make_http: Callable[[], asyncio.Protocol] | None = None
        self._due: OrderedDict[Arrival, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, *, server_state: ServerState, **options: Any) -> "Arrival":
        """A new connection."""
        if self.make_http is None:
            self.make_http = partial(self._http, server_state=server_state, **options)
        return Arrival(self, server_state)

    def wait_for(self, arrival: "Arrival") -> None:
        """A connection has some time from now on."""
        loop = asyncio.get_running_loop()
        self._due[arrival] = loop.time() + ARRIVAL_TIMEOUT_S
        if self._timer is None:
            self._timer = loop.call_later(ARRIVAL_TIMEOUT_S, self._look)

    def forget(self, arrival: "Arrival") -> None:
        """It has been heard of; idempotent."""
        self._due.pop(arrival, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = [arrival for arrival, due in self._due.items() if due <= now]
        for arrival in late:
            arrival.shutdown()
            self.forget(arrival)
        self._timer = None
        for due in self._due.values():
            self._timer = loop.call_later(max(_LOOK_S, due - now), self._look)
            return


class Arrival(asyncio.Protocol):
    """What a connection is before its first request; a protocol of HTTP takes it over then.

    What HTTP needs for a connection is several times as large, and thousands that say nothing
    would leave the heap in pieces. The event loop's own TLS tells nobody of a connection before its
    handshake is done, so those that never shake hands would have no bound. Here all count, and make
    room for newcomers, like any other connection without a request.

    Args:
        arrivals: All of them.
        state: Of uvicorn's server.
    """

    __slots__ = (
        "_arrivals",
        "_early",
        "_is_admitted",
        "_state",
        "_task",
        "_transport",
        "address",
    )

    def __init__(self, arrivals: Arrivals, state: ServerState) -> None:
        self.address = ""
        self._arrivals = arrivals
        self._state = state
        self._transport: asyncio.Transport
        self._is_admitted = False
        self._early: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        self._transport = transport
        client = client_of(transport)
        self.address = client[0] if client else ""
        tls = self._arrivals.tls
        self._is_admitted = self._arrivals.limits.admit(self)
        if self._is_admitted:
            self._state.connections.add(self)  # type: ignore[arg-type]
            self._arrivals.wait_for(self)
            if tls is not None:
                self._early = b""
                loop = asyncio.get_running_loop()
                self._task = loop.create_task(self._shake_hands(tls()))
        elif tls is None:
            self._hand_over()  # which tells the client why it has to go
        else:
            if self._arrivals.refusals is not None:
                now = asyncio.get_running_loop().time()
                self._arrivals.refusals.tell(self.address, 0, ErrorCode.OVERLOADED, now)
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """The first of a request; it may overtake the news that the handshake is done."""
        if self._early is None:
            self._hand_over().data_received(data)
        else:
            self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self._leave()

    def close_idle(self) -> None:
        """Make room for a newcomer."""
        self.shutdown()
        self._leave()

    def shutdown(self) -> None:
        """End the connection: it has waited for too long, or the server stops."""
        self._transport.abort()

    async def _shake_hands(self, context: ssl.SSLContext) -> None:
        plain = self._transport
        try:
            secure = await asyncio.get_running_loop().start_tls(
                plain, self, context, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except OSError:  # it was no TLS, came too late, or the client has left
            plain.abort()
            self._leave()
            return
        early, self._early = self._early, None
        if secure is None or secure.is_closing():
            self._leave()
            return
        self._transport = secure
        if early:
            self.data_received(early)

    def _hand_over(self) -> asyncio.Protocol:
        self._leave()
        make_http = self._arrivals.make_http
        assert make_http is not None, "this was made after it"
        http = make_http()
        self._transport.set_protocol(http)
        http.connection_made(self._transport)
        return http

    def _leave(self) -> None:
        self._arrivals.forget(self)
        self._state.connections.discard(self)
        if self._is_admitted:
            self._is_admitted = False
            self._arrivals.limits.leave(self)
