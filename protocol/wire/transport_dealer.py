"""The worker's end of the wire: one DEALER to one gateway address, dialled until it answers."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from protocol.errors import DecodeError, ProtocolError
from protocol.wire import codec
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages.base import Message
from protocol.wire.rate_bound import RateBound
from protocol.wire.send_queue import Merge, SendQueue
from protocol.wire.transport_curve import secure_client
from protocol.wire.transport_io import (
    NOBLOCK,
    EdgeTriggeredReader,
    TransportLimits,
    check_size,
    guarded,
    new_socket,
)

CommandT = TypeVar("CommandT")
_logger = logging.getLogger("penstock.transport")

_AUTH_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_ENDS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | _AUTH_FAILURES
)


class Dealer(Generic[CommandT]):
    """Keeps a connection to one gateway address and carries messages over it.

    A connection is a session: libzmq's own reconnecting is off, because it would silently lose
    what was on the way. When a connection ends, `on_disconnected` says so and the next one has a
    new socket and a new identity. All methods run in the thread of the loop given to `connect`. It
    is long because dialling, sending, retrying and ending share the state of one session.

    Args:
        address: What to dial, without names that need resolving.
        decoder: Of the commands of this role.
        context: ZeroMQ context of the process.
        instance_id: Of the worker; identities are made from it.
        on_message: Called with each good message.
        on_connected: Called when the handshake is through.
        on_disconnected: Called once for each `on_connected`.
        on_malformed: Called for each frame that doesn't decode.
        on_first: Called after the first frame of a wake-up, and after every so many messages of a
            frame (`limits.max_answered_together`); what they led to can leave.
        on_drained: Called whenever nothing is left to read.
        security: CURVE keys for tcp; a Unix socket is guarded by its file mode.
        limits: Bounds in bytes, messages and seconds.
        merge: How queued messages to a slow gateway become one.

    Attributes:
        is_connected: Whether a session lasts.
        num_received: Messages so far, bad ones included.
        num_malformed: Messages so far that were none of this role.
    """

    def __init__(
        self,
        address: str,
        decoder: codec.Decoder[CommandT],
        *,
        context: "zmq.Context[zmq.Socket[bytes]]",
        instance_id: str,
        on_message: Callable[[CommandT], None],
        on_connected: Callable[[], None],
        on_disconnected: Callable[[], None],
        on_malformed: Callable[[ProtocolError], None],
        on_first: Callable[[], None],
        on_drained: Callable[[], None],
        security: ClientSecurity | None = None,
        limits: TransportLimits | None = None,
        merge: Merge | None = None,
    ) -> None:
        self.address = address
        self._decoder = decoder
        self._context = context
        self._instance_id = instance_id
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._on_malformed = on_malformed
        self._on_first = on_first
        self._on_drained = on_drained
        self._security = None if address.startswith("ipc://") else security
        self._limits = limits or TransportLimits()
        self._queue = SendQueue(self._limits.max_queue_bytes, self._limits.max_merged_bytes, merge)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: _Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._redial_s = self._limits.min_redial_s
        self._refusal_log_bound = RateBound(1 / 30)
        self.is_connected = False
        self.num_received = 0
        self.num_malformed = 0

    def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin dialling, and go on until `close`."""
        self._loop = loop
        self._dial()

    def send(self, message: Message) -> None:
        """Send a message, or queue it while the gateway is slow; dropped while not connected.

        Raises:
            PeerOverflowError: The queue is full; the session is lost, so call `reset`.
            EncodeError: The message can't be written.
            MessageTooLargeError: It is larger than the gateway takes.
        """
        if not self.is_connected:
            return
        frame = codec.encode(message)
        check_size(frame, self._limits)
        queue = self._queue
        if not queue.num_bytes and not queue.takes_batches:
            if self._try_send(frame):
                return
            queue.is_blocked = True
        queue.push(message, frame)
        if queue.num_bytes >= self._limits.max_batch_bytes:
            self.flush()
        elif not queue.is_blocked:
            self.recheck()

    def send_batches(self) -> None:
        """From now until the session ends, messages of one turn of the loop share a frame."""
        self._queue.takes_batches = True

    def flush(self) -> None:
        """Send what has queued up, unless the gateway took nothing when it was last tried."""
        if not self._queue.is_blocked:
            self._retry()

    @property
    def num_queued_bytes(self) -> int:
        """How much waits because the gateway is slow."""
        return self._queue.num_bytes

    def recheck(self) -> None:
        """Look soon whether something is there to read."""
        if self._connection is not None:
            self._connection.recheck()

    def reset(self, redial_s: float = 0.0) -> None:
        """End this session and dial again, after a pause of at least `redial_s`."""
        self._end_session()
        self._redial_s = max(self._redial_s, redial_s)
        self._plan_dial()

    def close(self) -> None:
        """End the session for good; what was handed to libzmq leaves within `limits.linger_s`."""
        self._end_session()
        if self._timer is not None:
            self._timer.cancel()
        self._loop = None

    def _dial(self) -> None:
        if self._loop is None:
            return
        socket = new_socket(self._context, zmq.DEALER, self._limits)
        # Never the same twice: ROUTERs may not mix up two connections of one worker.
        identity = f"{self._instance_id}.{secrets.token_hex(4)}"
        socket.setsockopt(zmq.ROUTING_ID, identity.encode())
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        if self._security is not None:
            secure_client(socket, self._security)
        self._connection = _Connection(
            socket,
            lambda reader_socket: EdgeTriggeredReader(
                reader_socket,
                self._on_frames,
                retry=self._retry,
                flush=self.flush,
                on_first=self._on_first,
                on_drained=self._on_drained,
                max_messages=self._limits.max_messages_per_wakeup,
            ),
            self._on_monitor,
        )
        self._connection.start(self._loop, self.address)
        self._timer = self._loop.call_later(self._limits.handshake_timeout_s, self._on_timeout)

    def _plan_dial(self) -> None:
        if self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._redial_s, self._dial)
        self._redial_s = min(self._redial_s * 2, self._limits.max_redial_s)

    def _on_timeout(self) -> None:
        if not self.is_connected:
            self.reset()

    def _end_session(self) -> None:
        self.flush()
        was_connected, self.is_connected = self.is_connected, False
        self._queue.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if was_connected:
            self._on_disconnected()

    def _on_monitor(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            if self._timer is not None:
                self._timer.cancel()
            self._redial_s = self._limits.min_redial_s
            self.is_connected = True
            self._on_connected()
            return
        if event & _AUTH_FAILURES and self._refusal_log_bound.allow():
            _logger.error(
                "the gateway at %s refused our key or speaks another security; check the keys",
                self.address,
            )
        # A gateway that can't decrypt our greeting just hangs up (rfc.zeromq.org/26).
        is_hung_up = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._security is not None
        if is_hung_up and self._refusal_log_bound.allow():
            _logger.error(
                "the gateway at %s broke off the handshake; is our gateway.public its key?",
                self.address,
            )
        if event & _ENDS and self._connection is not None and self._loop is not None:
            # First what it sent last, such as a Goodbye, which may still wait unread.
            self._connection.recheck()
            self._loop.call_soon(self._on_end, self._connection)

    def _on_end(self, connection: "_Connection") -> None:
        if self._connection is connection:
            self.reset()

    def _on_frames(self, frames: list[bytes]) -> int:
        messages: Sequence[CommandT | ProtocolError]
        if len(frames) == 1:
            messages = self._decoder.decode_all(frames[0])
        else:
            messages = (DecodeError(f"A message has one frame, not {len(frames)}."),)
        self.num_received += len(messages)
        connection = self._connection
        for number, message in enumerate(messages):
            if number and not number % self._limits.max_answered_together:
                self._on_first()
            if self._connection is not connection:
                break  # what an earlier message of the batch led to
            if isinstance(message, ProtocolError):
                self.num_malformed += 1
                self._on_malformed(message)
            else:
                guarded(self._on_message, message)
        return len(messages)

    def _try_send(self, frame: bytes) -> bool:
        assert self._connection is not None  # noqa: S101 - is_connected says so
        return self._connection.try_send(frame)

    def _retry(self) -> None:
        queue = self._queue
        while queue.num_bytes and self.is_connected:
            if not self._try_send(queue.head(self._limits.max_batch_bytes)):
                queue.is_blocked = True
                return
            queue.pop()
        queue.is_blocked = False


class _Connection:
    """One socket with its monitor and readers, from dialling to the end of the connection."""

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        make_reader: Callable[["zmq.Socket[bytes]"], EdgeTriggeredReader],
        on_event: Callable[[int], None],
    ) -> None:
        self._socket = socket
        self._on_event = on_event
        self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _ENDS)
        self._monitor_reader = EdgeTriggeredReader(self._monitor, self._on_monitor)
        self._reader = make_reader(socket)

    def start(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._monitor_reader.start(loop)
        self._socket.connect(address)
        self._reader.start(loop)

    def try_send(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame, NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._reader.recheck()
        return True

    def recheck(self) -> None:
        self._reader.recheck()

    def close(self) -> None:
        self._reader.stop()
        self._monitor_reader.stop()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()

    def _on_monitor(self, frames: list[bytes]) -> int:
        event = parse_monitor_message(frames)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._socket.getsockopt(zmq.EVENTS)  # lets libzmq put up the pipe before we send
            self._reader.recheck()
        self._on_event(int(event))
        return 1
