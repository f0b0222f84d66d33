"""CURVE on ZeroMQ sockets: key pairs, socket options, who may connect (ZAP, rfc.zeromq.org/27)."""

import asyncio
import logging
from collections.abc import Callable, Mapping

import zmq
from zmq.utils import z85

from protocol.wire.keys import ClientSecurity, ServerSecurity
from protocol.wire.rate_bound import RateBound
from protocol.wire.transport_io import EdgeTriggeredReader

ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_ZAP_DOMAIN = b"penstock"
_logger = logging.getLogger("penstock.security")


def new_key_pair() -> tuple[bytes, bytes]:
    """A new CURVE key pair as (public, secret), each 40 bytes of Z85 text (rfc.zeromq.org/32)."""
    public, secret = zmq.curve_keypair()
    return public, secret


def secure_server(socket: "zmq.Socket[bytes]", security: ServerSecurity) -> None:
    """Make a socket, before it binds, accept CURVE clients only."""
    socket.curve_server = True
    socket.curve_secretkey = security.secret_key.reveal()
    socket.zap_domain = _ZAP_DOMAIN
    # Without a ZAP handler that answers 200, no connection is accepted.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_client(socket: "zmq.Socket[bytes]", security: ClientSecurity) -> None:
    """Make a socket, before it connects, speak CURVE to the server of a known public key."""
    socket.curve_serverkey = security.server_public_key
    socket.curve_publickey = security.public_key
    socket.curve_secretkey = security.secret_key.reveal()


class ZapHandler:
    """Answers libzmq's question whether a public key may connect to the sockets of a context.

    Args:
        context: The context whose sockets ask; it has one handler.
        names: Z85 public key → name, for the keys that may come in.
        on_denied: Called for each refused key with the peer's address.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        names: Mapping[bytes, str],
        on_denied: Callable[[str], None] | None = None,
    ) -> None:
        self._names = {z85.decode(key): name for key, name in names.items()}
        self._on_denied = on_denied
        self._log_bound = RateBound(1.0, max_burst=5)
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ZAP_ADDRESS)
        self._reader = EdgeTriggeredReader(self._socket, self._answer)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer from this event loop; call before the first socket binds."""
        self._reader.start(loop)

    def close(self) -> None:
        """Stop answering; from then on no new connection is accepted."""
        self._reader.stop()
        self._socket.close()

    def _answer(self, frames: list[bytes]) -> int:
        # rfc.zeromq.org/27: version, request id, domain, address, identity, mechanism, credentials.
        request_id = frames[1] if len(frames) > 1 else b""
        name = None
        if (
            len(frames) == 7
            and frames[0] == _ZAP_VERSION
            and frames[2] == _ZAP_DOMAIN
            and frames[5] == b"CURVE"
        ):
            name = self._names.get(frames[6])
        if name is not None:
            reply = [_ZAP_VERSION, request_id, b"200", b"OK", name.encode(), b""]
        else:
            reply = [_ZAP_VERSION, request_id, b"400", b"This key may not connect.", b"", b""]
            address = frames[3].decode("ascii", "replace") if len(frames) > 3 else "?"
            if self._log_bound.allow():
                _logger.warning("refused a connection from %s: unknown key or wrong role", address)
            if self._on_denied is not None:
                self._on_denied(address)
        self._socket.send_multipart(reply)
        self._reader.recheck()
        return 1
