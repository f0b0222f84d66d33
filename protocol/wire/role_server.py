"""One role's socket at a gateway: who is there, what they say, and heartbeats to all of them."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from protocol.errors import EncodeError, MessageTooLargeError, PeerOverflowError, ProtocolError
from protocol.version import BATCH_VERSION, CANCEL_VERSION, PROTOCOL_VERSION
from protocol.wire.codec import Decoder
from protocol.wire.keys import ServerSecurity
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import Goodbye, Heartbeat, Phase, Refused, Role
from protocol.wire.messages.generation import Cancel
from protocol.wire.peers import Outcome, Peer, PeerEvent, PeerLimits, PeerTable
from protocol.wire.rate_bound import RateBound
from protocol.wire.transport import Router, TransportLimits
from protocol.wire.unsendable import split, unsent

EventT = TypeVar("EventT")
_logger = logging.getLogger("penstock.peers")

_MAX_REFUSED = 256
"""Refused connections that are remembered, so that each is logged once."""


class RoleServer(Generic[EventT]):
    """A Router and a PeerTable wired together; the counterpart of `Worker`.

    It is long because it stands for both towards a gateway, and hears what either reports.

    All methods and callbacks run in the thread of the event loop given to `start`.

    Args:
        role: Whose workers dial in here.
        endpoint: What to bind.
        decoder: Of the events of the role.
        instance_id: Of the gateway; the same on all its sockets, new at each start.
        security: CURVE keys for tcp; a Unix socket is guarded by its file mode.
        limits: Bounds of the socket.
        peer_limits: When a peer counts as silent, dead or hung.
        heartbeat_interval_s: Between two heartbeats to each peer.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        role: Role,
        endpoint: str,
        decoder: Decoder[EventT],
        *,
        instance_id: str,
        security: ServerSecurity | None = None,
        limits: TransportLimits | None = None,
        peer_limits: PeerLimits | None = None,
        heartbeat_interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.role: Role = role
        self._instance_id = instance_id
        self._on_event: Callable[[Peer, EventT], None]
        self._on_peer: Callable[[PeerEvent], None]
        self._heartbeat_interval_s = heartbeat_interval_s
        self._clock = clock
        self._phase: Phase = "ready"
        self._table = PeerTable(role, self._heartbeat, peer_limits)
        self._malformed_bound = RateBound(1.0, max_burst=10, clock=clock)
        self._refusal_bound = RateBound(1.0, max_burst=10, clock=clock)
        self._unsendable_bound = RateBound(1.0, max_burst=10, clock=clock)
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._tick_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._router = Router(
            endpoint,
            decoder,
            on_message=self._on_message,
            on_malformed=self._on_malformed,
            on_gone=self._on_gone,
            on_disconnect=self.beat,
            role=role,
            security=security,
            limits=limits,
        )

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_event: Callable[[Peer, EventT], None],
        on_peer: Callable[[PeerEvent], None],
    ) -> str:
        """Begin listening.

        Args:
            loop: Where everything happens.
            on_event: Called with each message that is no matter of the connection: outputs, answers
                and failures of requests.
            on_peer: Called when a peer joins, becomes ready, changes or is lost.

        Returns:
            The endpoint with the real port.

        Raises:
            ConfigurationError: It can't be bound.
        """
        self._on_event, self._on_peer = on_event, on_peer
        bound = self._router.bind(loop)
        self._loop = loop
        self._tick_timer = loop.call_later(self._heartbeat_interval_s, self._tick)
        return bound

    def peers(self) -> tuple[Peer, ...]:
        """Everybody who is connected and announced, in order of arrival."""
        return self._table.peers()

    @property
    def num_malformed(self) -> int:
        """Frames so far that were no message of this role."""
        return self._router.num_malformed

    def send(self, peer: Peer, message: Message) -> None:
        """Send a peer a message; if it is gone or takes nothing, `on_peer` reports it lost.

        Of a message that can't be written, or is larger than any peer takes, `on_event` reports the
        Failure soon, as if the peer had refused it. One that is about several requests is sent in
        parts, so that only the bad ones fail.
        """
        if self._table.get(peer.identity) is peer:
            self._send(peer.identity, message)

    def cancel(self, peer: Peer, request_id: str) -> bool:
        """Take back a request's Prepare, Detokenize or Embed, of which nobody wants the answer.

        Returns:
            Whether it had not left yet, so that the peer will never know of it. Otherwise a peer
            that takes `Cancel` is told.
        """
        if self._table.get(peer.identity) is not peer:
            return False
        if self._router.cancel(peer.identity, request_id):
            return True
        if peer.protocol_version >= CANCEL_VERSION:
            self._send(peer.identity, Cancel(request_id=request_id))
        return False

    def set_phase(self, phase: Phase) -> None:
        """Say in heartbeats what the gateway is doing."""
        self._phase = phase
        self.beat()

    def beat(self) -> None:
        """Send every peer a heartbeat."""
        for peer in self._table.peers():
            self._send(peer.identity, self._heartbeat(peer))

    def say_goodbye(self, reason: str = "the gateway stops") -> None:
        """Tell every peer that this is the end; a moment before `close`, or it may go unread."""
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        if self._loop is not None and not self._loop.is_closed():
            for peer in self._table.peers():
                self._send(peer.identity, Goodbye(reason=reason))
                self._table.on_gone(peer.identity)  # that it leaves now is no news

    def close(self) -> None:
        """Say goodbye to whoever is left and stop listening; `on_peer` is not called any more."""
        if self._loop is None:
            return
        self.say_goodbye()
        self._loop = None
        self._router.close()

    def _heartbeat(self, peer: Peer) -> Heartbeat:
        return Heartbeat(
            instance_id=self._instance_id,
            phase=self._phase,
            protocol_version=PROTOCOL_VERSION,
            takes_work=peer.takes_work and self._phase == "ready",
        )

    def _send(self, identity: bytes, message: Message) -> None:
        try:
            self._router.send(identity, message)
        except PeerOverflowError as error:
            # Lost at once, so that nothing more is sent; told later, because our caller is amid
            # something else.
            events = self._table.lose(identity, "overflow", error.message)
            if self._loop is not None:
                self._loop.call_soon(self._report, events)
        except (EncodeError, MessageTooLargeError) as error:
            parts = split(message)
            for part in parts:
                self._send(identity, part)
            if not parts:
                self._fail(identity, message, error)

    def _fail(self, identity: bytes, message: Message, error: ProtocolError) -> None:
        # A bug of ours, or more than anybody should ask for.
        if self._unsendable_bound.allow():
            _logger.error("a message could not be sent: %s", error.message, exc_info=error)
        peer, failure = self._table.get(identity), unsent(message, error, "gateway")
        if peer is not None and failure is not None and self._loop is not None:
            # Later, because our caller is amid something else. A Failure is an event of any role.
            self._loop.call_soon(self._on_event, peer, cast(EventT, failure))

    def _tick(self) -> None:
        if self._loop is None:
            return
        self._tick_timer = self._loop.call_later(self._heartbeat_interval_s, self._tick)
        self.beat()
        self._report(self._table.sweep(self._clock()))

    def _on_message(self, identity: bytes, message: EventT) -> None:
        outcome = self._table.on_message(identity, message, self._clock())
        if outcome.events or outcome.replies:
            self._act_on(identity, outcome)
        if outcome.peer is not None:
            self._on_event(outcome.peer, message)

    def _act_on(self, identity: bytes, outcome: Outcome) -> None:
        for event in outcome.events:
            if event.kind != "joined":
                continue
            event.peer.address = self._router.address_of(identity)
            if event.peer.protocol_version >= BATCH_VERSION:
                self._router.send_batches(identity)
        for reply in outcome.replies:
            if isinstance(reply, Refused) and self._is_news(identity):
                _logger.error("refused a worker on the %s socket: %s", self.role, reply.message)
            self._send(identity, reply)
        self._report(outcome.events)

    def _is_news(self, identity: bytes) -> bool:
        """Whether the refusal of a connection, which may repeat itself, is still to be logged."""
        if identity in self._refused or not self._refusal_bound.allow():
            return False
        self._refused[identity] = None
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)
        return True

    def _on_malformed(self, _identity: bytes, error: ProtocolError) -> None:
        if self._malformed_bound.allow():
            _logger.warning(
                "%d malformed frames on the %s socket so far: %s",
                self._router.num_malformed,
                self.role,
                error.message,
            )

    def _on_gone(self, identity: bytes) -> None:
        self._report(self._table.on_gone(identity))

    def _report(self, events: tuple[PeerEvent, ...]) -> None:
        for event in events:
            peer = event.peer
            if event.kind == "lost":
                _logger.warning(
                    "lost %s worker %s (%s): %s",
                    peer.role,
                    peer.instance_id,
                    event.reason,
                    event.message,
                )
                self._router.forget(peer.identity)
                if event.reason in ("silent", "hung", "overflow"):
                    # It may live on: it shall drop what it had and announce itself again.
                    goodbye = Goodbye(
                        reason=f"declared lost: {event.message}",
                        is_hung=peer.stuck_at is not None,
                    )
                    self._send(peer.identity, goodbye)
            elif event.kind != "updated":
                _logger.info("%s worker %s %s", peer.role, peer.instance_id, event.kind)
            self._on_peer(event)
