"""The gateway's end of the wire: one ROUTER for a role, a bounded queue for each slow peer."""

import asyncio
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from protocol.errors import ConfigurationError, DecodeError, PeerOverflowError, ProtocolError
from protocol.wire import codec
from protocol.wire.keys import ServerSecurity
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import Role
from protocol.wire.rate_bound import RateBound
from protocol.wire.send_queue import Merge, SendQueue
from protocol.wire.transport_curve import ZapHandler, secure_server
from protocol.wire.transport_io import (
    NOBLOCK,
    SNDMORE_NOBLOCK,
    EdgeTriggeredReader,
    TransportLimits,
    check_size,
    new_socket,
)

EventT = TypeVar("EventT")
_logger = logging.getLogger("penstock.transport")
_RETRY_INTERVAL_S = 0.05
_MAX_ADDRESSES = 4096
"""Connections whose addresses are remembered; who never says who he is doesn't fill the memory."""
_MAPPED = re.compile(r"::ffff:(?=[0-9.]+$)")
"""Before IPv4 addresses, as libzmq writes them with IPv6 on."""
_WATCHED = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Router(Generic[EventT]):
    """Receives typed events from many workers and sends each of them messages.

    All methods and callbacks run in the thread of the event loop given to `bind`. A peer that
    takes nothing costs at most `limits.max_queue_bytes`; nothing here ever blocks. It is long
    because sending, queueing and retrying share the state of one socket.

    Args:
        endpoint: What to bind, `ipc:///path` or `tcp://host:port`; port 0 takes a free one.
        decoder: Of the events of this role.
        on_message: Called with the sender's identity and each good message.
        on_malformed: Called with the sender's identity for each frame that doesn't decode.
        on_overflow: Called, later in the loop, when a peer's queue was full and has been dropped:
            it has missed messages, so everything it works on must be given up.
        on_gone: Called, later in the loop, when sending showed that a peer has disconnected.
        on_disconnect: Called soon after some connection ended. ZeroMQ doesn't tell whose; sending
            every peer a heartbeat then brings `on_gone` for the ones that left.
        role: Whose key may connect; needed with `security` only.
        security: CURVE keys for tcp; a Unix socket is guarded by its file mode.
        limits: Bounds in bytes and messages.
        merge: How queued messages to a slow peer become one.
    """

    def __init__(
        self,
        endpoint: str,
        decoder: codec.Decoder[EventT],
        *,
        on_message: Callable[[bytes, EventT], None],
        on_malformed: Callable[[bytes, ProtocolError], None] | None = None,
        on_overflow: Callable[[bytes], None] | None = None,
        on_gone: Callable[[bytes], None] | None = None,
        on_disconnect: Callable[[], None] | None = None,
        role: Role | None = None,
        security: ServerSecurity | None = None,
        limits: TransportLimits | None = None,
        merge: Merge | None = None,
    ) -> None:
        if security is not None and role is None:
            raise ValueError("a secured Router needs the role whose key may connect")
        self._endpoint = endpoint
        self._decoder = decoder
        self._on_message = on_message
        self._on_malformed = on_malformed
        self._on_overflow = on_overflow
        self._on_gone = on_gone
        self._on_disconnect = on_disconnect
        self._role = role
        self._security = None if endpoint.startswith("ipc://") else security
        self._limits = limits or TransportLimits()
        self._merge = merge
        # Of peers that take batches, or take nothing at present.
        self._queues: dict[bytes, SendQueue] = {}
        # Who has something unsent and is not known to be slow, in order; and who is.
        self._pending: dict[bytes, None] = {}
        self._blocked: dict[bytes, None] = {}
        self._addresses: OrderedDict[bytes, str] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._is_disconnect_planned = False
        self._refusal_log_bound = RateBound(1 / 30, max_burst=2)
        self.num_received = 0
        self.num_malformed = 0

    def bind(self, loop: asyncio.AbstractEventLoop) -> str:
        """Begin listening; called in the loop's thread.

        Returns:
            The endpoint with the real port; an ipc socket is open to this user only (mode 0600).

        Raises:
            ConfigurationError: The address is in use or not of this machine.
        """
        self._loop = loop
        # libzmq asks one ZAP handler a context, and each role has other keys. Where there are none
        # all sockets of the process share one, whose I/O thread wakes less often than three would.
        self._context: zmq.Context[zmq.Socket[bytes]] = (
            zmq.Context.instance() if self._security is None else zmq.Context()
        )
        self._zap: ZapHandler | None = None
        if self._security is not None and self._role is not None:
            self._zap = ZapHandler(self._context, self._security.allowed_names(self._role))
            self._zap.start(loop)
        self._socket = new_socket(self._context, zmq.ROUTER, self._limits)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if self._security is not None:
            secure_server(self._socket, self._security)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        self._monitor_reader = EdgeTriggeredReader(self._monitor, self._on_monitor)
        self._reader = EdgeTriggeredReader(
            self._socket,
            self._on_frames,
            retry=self._retry_blocked,
            flush=self._flush,
            max_messages=self._limits.max_messages_per_wakeup,
            min_frames=2,  # the peer's identity stands before what it sent
            read_second=None if self._endpoint.startswith("ipc://") else self._read_from,
        )
        try:
            bound = self._bind_socket()
        except (zmq.ZMQError, OSError) as error:
            self._release()
            raise ConfigurationError(f"Cannot listen on {self._endpoint}: {error}.") from error
        self._monitor_reader.start(loop)
        self._reader.start(loop)
        return bound

    def send(self, identity: bytes, message: Message) -> None:
        """Send a peer a message, or queue it while the peer is slow; dropped if it is gone.

        Raises:
            PeerOverflowError: Its queue is full. The queue has been dropped, `on_overflow` follows.
            EncodeError: The message can't be written.
            MessageTooLargeError: It is larger than the peer takes.
        """
        if self._loop is None:
            return
        frame = codec.encode(message)
        check_size(frame, self._limits)
        queue = self._queues.get(identity)
        if queue is None:
            if self._try_send(identity, frame):
                return
            queue = self._new_queue(identity)
            self._block(identity, queue)
        try:
            queue.push(message, frame)
        except PeerOverflowError:
            self.forget(identity)
            if self._on_overflow is not None:
                self._loop.call_soon(self._on_overflow, identity)
            raise
        if queue.is_blocked:
            return
        if queue.num_bytes >= self._limits.max_batch_bytes:
            self._send_queued(identity, queue)
        else:
            self._pending[identity] = None
            self._reader.recheck()

    def send_batches(self, identity: bytes) -> None:
        """From now on, until `forget`, messages of one turn of the loop share a frame."""
        queue = self._queues.get(identity)
        if queue is None:
            queue = self._new_queue(identity)
        queue.takes_batches = True

    def cancel(self, identity: bytes, request_id: str) -> bool:
        """Drop a request's questions that have not left; whether there were any."""
        queue = self._queues.get(identity)
        return queue is not None and queue.cancel(request_id)

    def forget(self, identity: bytes) -> None:
        """Drop what is queued for a peer, and what is known of it."""
        self._queues.pop(identity, None)
        self._pending.pop(identity, None)
        self._blocked.pop(identity, None)

    def address_of(self, identity: bytes) -> str:
        """From where a peer connected over TCP; empty where nobody knows."""
        return self._addresses.get(identity, "")

    def num_queued_bytes(self, identity: bytes) -> int:
        """How much waits for a slow peer."""
        queue = self._queues.get(identity)
        return 0 if queue is None else queue.num_bytes

    def close(self) -> None:
        """Stop listening; what was handed to libzmq may still leave within `limits.linger_s`."""
        if self._loop is None:
            return
        self._flush()
        self._loop = None
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._queues.clear()
        self._reader.stop()
        self._monitor_reader.stop()
        self._release()
        if self._endpoint.startswith("ipc://"):
            with suppress(FileNotFoundError):
                Path(self._endpoint.removeprefix("ipc://")).unlink()

    def _bind_socket(self) -> str:
        endpoint = self._endpoint
        if endpoint.startswith("ipc://"):
            self._socket.bind(endpoint)  # replaces a socket file left behind by a killed process
            Path(endpoint.removeprefix("ipc://")).chmod(0o600)
            return endpoint
        self._socket.bind(endpoint)
        bound = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        # With IPv6 on, libzmq writes IPv4 addresses in their mapped form.
        return re.sub(r"\[::ffff:([0-9.]+)\]", r"\1", bound)

    def _release(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        if self._zap is not None:
            self._zap.close()
        if self._security is not None:
            # Waits for what lingers, so not in this thread, which has other work.
            threading.Thread(target=self._context.term, name="zmq-term", daemon=True).start()

    def _read_from(self, identity: bytes) -> bytes:
        """What a peer sent; with the first of it libzmq says from where."""
        if identity in self._addresses:
            return self._socket.recv(NOBLOCK)
        frame = self._socket.recv(NOBLOCK, copy=False)
        try:
            address = str(frame.get("Peer-Address"))
        except zmq.ZMQError:
            address = ""
        self._addresses[identity] = _MAPPED.sub("", address)
        if len(self._addresses) > _MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        return frame.bytes

    def _on_frames(self, frames: list[bytes]) -> int:
        identity = frames[0]
        messages: Sequence[EventT | ProtocolError]
        if len(frames) == 2:
            messages = self._decoder.decode_all(frames[1])
        else:
            messages = (DecodeError(f"A message has one frame, not {len(frames) - 1}."),)
        self.num_received += len(messages)
        for message in messages:
            if self._loop is None:
                break  # closed by what an earlier message of the batch led to
            if isinstance(message, ProtocolError):
                self.num_malformed += 1
                if self._on_malformed is not None:
                    self._on_malformed(identity, message)
            else:
                try:
                    self._on_message(identity, message)
                except Exception:  # costs the others of the frame nothing
                    _logger.exception("a callback for incoming messages failed")
        return len(messages)

    def _new_queue(self, identity: bytes) -> SendQueue:
        queue = self._queues[identity] = SendQueue(
            self._limits.max_queue_bytes, self._limits.max_merged_bytes, self._merge
        )
        return queue

    def _block(self, identity: bytes, queue: SendQueue) -> None:
        queue.is_blocked = True
        self._blocked[identity] = None
        self._plan_retry()

    def _try_send(self, identity: bytes, frame: bytes) -> bool:
        """Whether the message needs no more care: it was sent, or its peer is gone."""
        try:
            self._socket.send(identity, SNDMORE_NOBLOCK)
            self._socket.send(frame, NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.forget(identity)
            if self._on_gone is not None and self._loop is not None:
                # First what it sent last, such as a Goodbye, which may still wait unread.
                self._reader.recheck()
                self._loop.call_soon(self._on_gone, identity)
        finally:
            self._reader.recheck()
        return True

    def _send_queued(self, identity: bytes, queue: SendQueue) -> None:
        while queue.num_bytes:
            if not self._try_send(identity, queue.head(self._limits.max_batch_bytes)):
                self._block(identity, queue)
                return
            if self._queues.get(identity) is not queue:
                return  # the peer is gone
            queue.pop()
        queue.is_blocked = False
        if not queue.takes_batches:
            del self._queues[identity]

    def _flush(self) -> None:
        while self._pending:
            identity = next(iter(self._pending))
            del self._pending[identity]
            self._send_queued(identity, self._queues[identity])

    def _retry_blocked(self) -> None:
        if self._blocked:
            blocked, self._blocked = self._blocked, {}
            for identity in blocked:
                self._send_queued(identity, self._queues[identity])
        if self._pending:
            self._flush()

    def _plan_retry(self) -> None:
        # The descriptor also wakes us when a peer takes messages again; this is the safety net.
        if self._retry_timer is None and self._loop is not None:
            self._retry_timer = self._loop.call_later(_RETRY_INTERVAL_S, self._retry_now)

    def _retry_now(self) -> None:
        self._retry_timer = None
        self._reader.recheck()
        if self._blocked:
            self._plan_retry()

    def _on_monitor(self, frames: list[bytes]) -> int:
        event = parse_monitor_message(frames)["event"]
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and self._refusal_log_bound.allow():
            _logger.warning(
                "a connection to the %s socket failed its handshake: the peer has another public "
                "key for us, or no keys",
                self._role or "worker",
            )
        is_end = event == zmq.EVENT_DISCONNECTED and self._on_disconnect is not None
        if is_end and self._loop is not None and not self._is_disconnect_planned:
            # libzmq reports the end of a connection a moment before it takes down the pipe.
            self._is_disconnect_planned = True
            self._loop.call_later(0.02, self._report_disconnect)
        return 1

    def _report_disconnect(self) -> None:
        self._is_disconnect_planned = False
        if self._loop is not None and self._on_disconnect is not None:
            self._socket.getsockopt(zmq.EVENTS)  # lets libzmq take down what has ended
            self._on_disconnect()
            self._reader.recheck()
