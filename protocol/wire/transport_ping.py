"""Asks a gateway's socket for a sign of life."""

import secrets
import time

import zmq

from protocol.errors import DecodeError
from protocol.wire import codec
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages.control import Ping, Pong
from protocol.wire.transport_curve import secure_client
from protocol.wire.transport_io import TransportLimits, new_context, new_socket


def ping(
    address: str, *, timeout_s: float = 5.0, security: ClientSecurity | None = None
) -> float | None:
    """Send a Ping and wait for its Pong; blocks.

    Args:
        address: A gateway's endpoint of any role.
        timeout_s: In all, connecting included.
        security: CURVE keys for tcp; a Unix socket is guarded by its file mode.

    Returns:
        Seconds until the Pong, or None when none came in time.
    """
    decoder = codec.Decoder[Pong](Pong)
    nonce = secrets.randbelow(1 << 62)
    begin = time.monotonic()
    context = new_context()
    socket = new_socket(context, zmq.DEALER, TransportLimits(linger_s=0.0))
    try:
        if security is not None and not address.startswith("ipc://"):
            secure_client(socket, security)
        socket.connect(address)
        socket.send(codec.encode(Ping(nonce=nonce)))
        while (remaining_s := begin + timeout_s - time.monotonic()) > 0:
            if not socket.poll(round(remaining_s * 1000)):
                break
            try:
                pong = decoder.decode(socket.recv())
            except DecodeError:
                continue
            if pong.nonce == nonce:
                return time.monotonic() - begin
        return None
    finally:
        socket.close(linger=0)
        context.term()
