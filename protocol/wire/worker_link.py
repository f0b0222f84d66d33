"""One worker's session with one gateway address: announce, hear, lose, announce again."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.errors import (
    EncodeError,
    ErrorCode,
    MessageTooLargeError,
    PeerOverflowError,
    ProtocolError,
)
from protocol.version import OLDEST_VERSION
from protocol.wire.command_age import CommandAge
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import Failure, Ping
from protocol.wire.rate_bound import RateBound
from protocol.wire.transport import Dealer
from protocol.wire.unsendable import failure_instead, split, unsent

CommandT = TypeVar("CommandT")
_logger = logging.getLogger("penstock.worker")


class WorkerLink(Generic[CommandT]):
    """What the worker knows about the gateway behind one address.

    Args:
        address: What is dialled.
        make_dealer: Makes the dealer with this link's callbacks.
        on_message: Called with this link and each good message.
        on_connected: Called with this link; it announces the worker.
        on_lost: Called with this link when its session ended for whatever reason.
        on_drained: Called whenever nothing is left to read from the gateway.
        max_gap_s: Between two rounds of reading in normal operation.
        clock: Monotonic seconds.

    Attributes:
        gateway_id: The gateway's instance id; None until its first heartbeat of this session.
        gateway_version: Of the wire, as its first heartbeat of this session said.
        last_heard: When the gateway last said something, or the session began.
        last_announced: When Ready was last sent.
        age: How long what is read may have waited.
        is_gateway_draining: Whether the gateway drains, as its last heartbeat said.
        takes_work: Whether the gateway gives this worker new work, as its last heartbeat said.
        is_parked: Not dialled, because another address leads to the same gateway.
        has_said_goodbye: The gateway ended this session on purpose.
    """

    def __init__(
        self,
        address: str,
        make_dealer: Callable[["WorkerLink[CommandT]"], Dealer[CommandT]],
        *,
        on_message: Callable[["WorkerLink[CommandT]", CommandT], None],
        on_connected: Callable[["WorkerLink[CommandT]"], None],
        on_lost: Callable[["WorkerLink[CommandT]", str], None],
        on_drained: Callable[[], None],
        max_gap_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.address = address
        self.gateway_id: str | None = None
        self.gateway_version = OLDEST_VERSION
        self.last_heard = clock()
        self.last_announced = clock()
        self.takes_work = False
        self.is_gateway_draining = False
        self.is_parked = False
        self.has_said_goodbye = False
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_drained = on_drained
        self._clock = clock
        # Answering and logging each bad frame would let a peer make us busy.
        self._malformed_bound = RateBound(1.0, max_burst=10, clock=clock)
        self._unsendable_bound = RateBound(1.0, max_burst=10, clock=clock)
        self.age = CommandAge(max_gap_s, self._ping, clock)
        self.dealer = make_dealer(self)

    def send(self, message: Message) -> None:
        """Send to the gateway; a gateway that takes nothing any more is lost.

        Of a message that can't be written, such as one with a lone surrogate, a Failure tells the
        request that it is about. One that is about several requests is sent in parts, so that only
        the bad ones fail.
        """
        try:
            self.dealer.send(message)
        except PeerOverflowError as error:
            _logger.warning("giving up the gateway at %s: %s", self.address, error.message)
            self.dealer.reset()
        except (EncodeError, MessageTooLargeError) as error:
            parts = split(message)
            for part in parts:
                self.send(part)
            if not parts:
                self._fail(message, error)

    def send_failure(self, about: object, code: ErrorCode, message: str) -> None:
        """Send a Failure of the request that a message is about, of its choice and attempt.

        Nothing is sent for a message that is about no single request.
        """
        failure = failure_instead(about, code, message)
        if failure is not None:
            self.send(failure)

    def handle_message(self, message: CommandT) -> None:
        """Callback of the dealer."""
        self.last_heard = self._clock()
        self._on_message(self, message)

    def handle_connected(self) -> None:
        """Callback of the dealer."""
        self.last_heard = self._clock()
        self.has_said_goodbye = False
        self.age.begin()
        self._on_connected(self)

    def handle_disconnected(self) -> None:
        """Callback of the dealer."""
        self._on_lost(self, "the connection ended")

    def handle_malformed(self, error: ProtocolError) -> None:
        """Callback of the dealer: count, and now and then say so."""
        if not self._malformed_bound.allow():
            return
        _logger.warning(
            "%d malformed frames from the gateway at %s so far: %s",
            self.dealer.num_malformed,
            self.address,
            error.message,
        )
        self.send(
            Failure(
                request_id="",
                code=ErrorCode.INVALID_REQUEST,
                message="A frame is no message of this worker's role.",
            )
        )

    def handle_drained(self) -> None:
        """Callback of the dealer."""
        if self.dealer.is_connected:
            self.age.note_drained()
        self._on_drained()

    def _fail(self, message: Message, error: ProtocolError) -> None:
        # A bug of ours, or more than anybody should ask for.
        if self._unsendable_bound.allow():
            _logger.error("a message could not be sent: %s", error.message, exc_info=error)
        failure = unsent(message, error, "worker")
        if failure is not None and failure != message:
            self.send(failure)

    def _ping(self, nonce: int) -> None:
        self.send(Ping(nonce=nonce))
