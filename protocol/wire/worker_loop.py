"""What a worker's I/O thread does: sessions with gateways, heartbeats, drain, goodbye."""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from protocol.errors import ErrorCode
from protocol.version import (
    BATCH_VERSION,
    METRICS_VERSION,
    OLDEST_VERSION,
    PROTOCOL_VERSION,
    ProtocolVersion,
)
from protocol.wire.codec import Decoder
from protocol.wire.command_age import CommandAge
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import (
    Drain,
    Goodbye,
    Heartbeat,
    Phase,
    Pong,
    Ready,
    Refused,
    Role,
)
from protocol.wire.rate_bound import RateBound
from protocol.wire.readiness import ReadyFile
from protocol.wire.send_queue import merge_step_outputs
from protocol.wire.transport import Dealer, TransportLimits, new_context
from protocol.wire.worker_handler import Announcement, MetricSource, WorkerHandler, WorkerSettings
from protocol.wire.worker_link import WorkerLink

CommandT = TypeVar("CommandT")
_logger = logging.getLogger("penstock.worker")

EXIT_CLEAN = 0
EXIT_FAILED = 1
_OF_THE_CONNECTION: frozenset[type] = frozenset({Heartbeat, Goodbye, Drain, Refused, Pong})
_DRAIN_CHECK_INTERVAL_S = 0.02
STOP_LOOK_S = 1.0
"""Stopping all containers signals them one by one; gateways tell of their drain at once."""
_NORMAL_BEATS = 2
"""A loop that does nothing for so many heartbeats was stopped, swapped out or blocked."""


class WorkerLoop(Generic[CommandT]):
    """Everything that happens in the I/O thread; all methods are called there.

    It is long because each kind of event has its method; what they decide is in modules beside it.

    Args:
        role: Of the worker.
        instance_id: Random, of this process.
        build: Version and fingerprint of the code, for people.
        decoder: Of the commands of the role.
        handler: Does the work.
        announcement: Shared with the façade, which changes it from other threads.
        security: CURVE keys for tcp; a Unix socket is guarded by its file mode.
        settings: Times.
        limits: Bounds of the sockets.
        flush_outbox: Called after the first command of a round, after the last, and before the
            goodbyes; hands over what the handler and other threads have sent.
        on_finished: Called once, with the exit code, when everything is closed.
        metrics: What the worker counts; None has nothing to report.
        ready_file: Is there while a gateway gives this worker work; None writes none.
        clock: Monotonic seconds.

    Attributes:
        last_tick: When it last looked after its connections, as `clock` says.
        gateway_versions: Of who is here; replaced, never changed: other threads read it.
    """

    def __init__(
        self,
        *,
        role: Role,
        instance_id: str,
        build: str,
        decoder: Decoder[CommandT],
        handler: WorkerHandler[CommandT],
        announcement: Announcement,
        security: ClientSecurity | None,
        settings: WorkerSettings,
        limits: TransportLimits,
        flush_outbox: Callable[[], None],
        on_finished: Callable[[int], None],
        metrics: MetricSource | None = None,
        ready_file: ReadyFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._role = role
        self._instance_id = instance_id
        self._incarnation = secrets.token_hex(8)
        self._host = socket.gethostname()
        self._build = build
        self._decoder = decoder
        self._handler = handler
        self._announcement = announcement
        self._security = security
        self._settings = settings
        self._limits = limits
        self._flush_outbox = flush_outbox
        self._on_finished = on_finished
        self._metrics = metrics
        self._metrics_due = clock()
        self._ready_file = ready_file
        self._clock = clock
        self._context = new_context()
        self._links: dict[str, WorkerLink[CommandT]] = {}
        self._gateways: dict[str, WorkerLink[CommandT]] = {}
        self.last_tick = clock()
        self._drain_deadline: float | None = None
        self._is_stopping = False
        self._is_finished = False
        self._age: CommandAge | None = None
        self._failure_log_bound = RateBound(1.0, max_burst=10, clock=clock)
        # Replaced, never changed: other threads read it.
        self.gateway_versions: Mapping[str, ProtocolVersion] = {}

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start beating; addresses come by `set_addresses`."""
        self._loop = loop
        loop.call_later(self._settings.heartbeat_interval_s, self._tick)

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Dial new addresses; leave those that are no longer named and lead nowhere."""
        if self._is_finished:
            return
        for address in addresses:
            if address not in self._links:
                link = self._new_link(address)
                self._links[address] = link
                link.dealer.connect(self._loop)
        for address, link in list(self._links.items()):
            # A gateway that still talks to us stays, whatever the name service says.
            if address not in addresses and link.gateway_id is None:
                del self._links[address]
                link.dealer.close()

    def send(self, gateway_id: str, message: Message) -> None:
        """Send to a gateway; dropped when it is gone."""
        link = self._gateways.get(gateway_id)
        if link is not None:
            link.send(message)

    def flush(self) -> None:
        """Let what was sent since the last turn leave now."""
        for link in self._links.values():
            link.dealer.flush()

    def command_age_s(self) -> float:
        """Called from `on_command`: upper bound of how long the command may have waited unread.

        0.0 unless this loop did not run for at least two heartbeats, as when the process was
        stopped or swapped out. Then the command may be one that nobody waits for any more.
        """
        return 0.0 if self._age is None else self._age.age_s()

    def beat(self) -> None:
        """Send a heartbeat on every connection; the phase may be new."""
        self._note_readiness()
        for link in self._links.values():
            if link.dealer.is_connected:
                link.send(self._heartbeat(link))

    def announce(self) -> None:
        """Send Ready and a heartbeat on every connection; they answer whether they give work."""
        for link in self._links.values():
            if link.dealer.is_connected:
                self._announce_to(link)

    @property
    def is_draining(self) -> bool:
        """Whether no new work is wanted."""
        return self._drain_deadline is not None

    def begin_stop(self) -> None:
        """After SIGTERM: drain, but only after the gateways that drain, where the settings say so.

        Meanwhile everything goes on as before, for running requests still need this worker.
        """
        if self._is_stopping:
            return
        self._is_stopping = True
        now = self._clock()
        self._wait_for_gateways(now + STOP_LOOK_S, now + self._settings.outlast_gateways_s)

    def _wait_for_gateways(self, look_until: float, deadline: float, is_told: bool = False) -> None:
        if self._is_finished or self.is_draining:
            return
        now = self._clock()
        are_draining = any(link.is_gateway_draining for link in self._gateways.values())
        is_looking = bool(self._gateways) and now < look_until
        if now >= deadline or not (are_draining or is_looking):
            if is_told and are_draining:
                _logger.warning("a gateway still drains; this worker waits no longer for it")
            self.begin_drain(self._settings.drain_timeout_s)
            return
        if not is_looking and not is_told:
            _logger.info("a gateway drains; this worker serves it to its end, and then stops")
            is_told = True
        self._loop.call_later(
            _DRAIN_CHECK_INTERVAL_S, self._wait_for_gateways, look_until, deadline, is_told
        )

    def begin_drain(self, timeout_s: float) -> None:
        """Send Drain, let the handler finish, then send Goodbye; a second call does nothing."""
        if self.is_draining or self._is_finished:
            return
        # In this order a NaN from the wire becomes 0.
        timeout_s = min(max(0.0, timeout_s), self._settings.drain_timeout_s)
        self._drain_deadline = self._clock() + timeout_s
        _logger.info("draining for at most %.1f s", timeout_s)
        for link in self._links.values():
            if link.dealer.is_connected:
                link.send(Drain(timeout_s=timeout_s))
        self.beat()
        self._loop.call_soon(self._check_drain)
        self._handler.on_drain(timeout_s)

    def finish(self, reason: str, exit_code: int) -> None:
        """Send every gateway a Goodbye and close; a second call does nothing."""
        if self._is_finished:
            return
        self._flush_outbox()
        self._is_finished = True
        self._note_readiness()
        for link in list(self._links.values()):
            if link.dealer.is_connected:
                link.send(Goodbye(reason=reason, has_failed=exit_code == EXIT_FAILED))
            link.gateway_id = None
            link.dealer.close()
        self._links.clear()
        self._gateways.clear()
        self._note_gateways()
        self._on_finished(exit_code)

    def close(self) -> None:
        """Wait, at most for the sockets' linger time, until the goodbyes have left."""
        self._context.term()

    def _new_link(self, address: str) -> WorkerLink[CommandT]:
        def make_dealer(link: WorkerLink[CommandT]) -> Dealer[CommandT]:
            return Dealer(
                address,
                self._decoder,
                context=self._context,
                instance_id=self._instance_id,
                on_message=link.handle_message,
                on_connected=link.handle_connected,
                on_disconnected=link.handle_disconnected,
                on_malformed=link.handle_malformed,
                on_first=self._flush_outbox,
                on_drained=link.handle_drained,
                security=self._security,
                limits=self._limits,
                merge=merge_step_outputs,
            )

        return WorkerLink(
            address,
            make_dealer,
            on_message=self._on_message,
            on_connected=self._announce_to,
            on_lost=self._on_lost,
            on_drained=self._flush_outbox,
            max_gap_s=_NORMAL_BEATS * self._settings.heartbeat_interval_s,
            clock=self._clock,
        )

    def _phase(self) -> Phase:
        return "draining" if self.is_draining else self._announcement.phase

    def _announce_to(self, link: WorkerLink[CommandT]) -> None:
        link.last_announced = self._clock()
        link.send(
            Ready(
                role=self._role,
                instance_id=self._instance_id,
                protocol_version=PROTOCOL_VERSION,
                build=self._build,
                phase=self._phase(),
                engine=self._announcement.engine,
                auth=self._announcement.auth,
                parser=self._announcement.parser,
                incarnation=self._incarnation,
                host=self._host,
            )
        )
        link.send(self._heartbeat(link))

    def _heartbeat(self, link: WorkerLink[CommandT]) -> Heartbeat:
        gateway_id = link.gateway_id
        return Heartbeat(
            instance_id=self._instance_id,
            phase=self._phase(),
            progress_counter=self._handler.progress_counter(),
            fraction=self._announcement.fraction,
            detail=self._announcement.detail,
            load=self._handler.load(),
            credits=None if gateway_id is None else self._handler.credits(gateway_id),
        )

    def _tick(self) -> None:
        if self._is_finished:
            return
        # Planned first, so that heartbeats go on whatever fails below.
        self._loop.call_later(self._settings.heartbeat_interval_s, self._tick)
        now = self._clock()
        # While this thread did not run, gateways had no chance to be heard.
        missed_s = now - self.last_tick - _NORMAL_BEATS * self._settings.heartbeat_interval_s
        self.last_tick = now
        self._report_metrics(now)
        self._note_readiness()
        if self._ready_file is not None:
            self._ready_file.touch()
        for link in list(self._links.values()):
            if not link.dealer.is_connected:
                continue
            if missed_s > 0:
                link.last_heard += missed_s
            if now - link.last_heard >= self._settings.gateway_silence_s:
                _logger.warning("the gateway at %s is silent", link.address)
                link.dealer.reset()
            elif (
                link.gateway_id is None
                and now - link.last_announced >= self._settings.ready_interval_s
            ):
                self._announce_to(link)
            else:
                link.send(self._heartbeat(link))
            link.dealer.recheck()  # so that each connection is read once a beat at least

    def _report_metrics(self, now: float) -> None:
        if self._metrics is None or now < self._metrics_due:
            return
        self._metrics_due = now + self._settings.metrics_interval_s
        message = self._metrics.message()
        for link in list(self._gateways.values()):
            if link.gateway_version >= METRICS_VERSION:
                link.send(message)

    def _on_message(self, link: WorkerLink[CommandT], message: CommandT) -> None:
        if type(message) not in _OF_THE_CONNECTION:  # nearly all of them
            self._on_command(link, message)
        elif isinstance(message, Heartbeat):
            self._on_heartbeat(link, message)
        elif isinstance(message, Goodbye):
            _logger.info(
                "the gateway at %s closed the connection: %s", link.address, message.reason
            )
            link.has_said_goodbye = True
            link.dealer.reset(self._settings.heartbeat_interval_s)
            if message.is_hung and self._settings.hang_grace_s is not None:
                counter = self._handler.progress_counter()
                self._loop.call_later(self._settings.hang_grace_s, self._end_if_hung, counter)
        elif isinstance(message, Drain):
            self.begin_drain(message.timeout_s)
        elif isinstance(message, Refused):
            self._on_refused(link, message)
        elif isinstance(message, Pong):
            link.age.note_pong(message.nonce)

    def _end_if_hung(self, counter: int) -> None:
        is_hung = self._handler.progress_counter() == counter and self._handler.load().num_running
        if is_hung and not self._is_finished:
            _logger.error("this worker hangs: it has work and makes no progress; it exits")
            self.finish("hung", EXIT_FAILED)

    def _on_command(self, link: WorkerLink[CommandT], command: CommandT) -> None:
        if link.gateway_id is None:
            message = "A gateway's heartbeat comes before its first command."
            link.send_failure(command, ErrorCode.WORKER_UNAVAILABLE, message)
            return
        self._age = link.age
        try:
            self._handler.on_command(link.gateway_id, command)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of a native library is no Exception
            if self._failure_log_bound.allow():
                _logger.exception("a %s could not be handled", type(command).__name__)
            message = "The worker could not handle this request."
            link.send_failure(command, ErrorCode.INTERNAL_ERROR, message)
        finally:
            self._age = None

    def _on_heartbeat(self, link: WorkerLink[CommandT], heartbeat: Heartbeat) -> None:
        gateway_id = heartbeat.instance_id
        if link.gateway_id == gateway_id:
            self._note_gateway_state(link, heartbeat)
            return
        if link.gateway_id is not None:
            # A proxy between us put another gateway behind the same connection.
            link.dealer.reset()
            return
        other = self._gateways.get(gateway_id)
        if other is not None:
            _logger.info("%s and %s lead to one gateway", other.address, link.address)
            other.is_parked = True
            # Not a loss that calls parked addresses back: three of them would take turns forever.
            other.gateway_id = None
            other.dealer.close()
            self._handler.on_gateway_lost(gateway_id)
        link.gateway_id = gateway_id
        link.gateway_version = heartbeat.protocol_version or OLDEST_VERSION
        if link.gateway_version >= BATCH_VERSION:
            link.dealer.send_batches()
        self._gateways[gateway_id] = link
        self._note_gateways()
        self._note_gateway_state(link, heartbeat)
        _logger.info("connected to gateway %s at %s", gateway_id, link.address)
        link.send(self._heartbeat(link))

    def _on_lost(self, link: WorkerLink[CommandT], reason: str) -> None:
        gateway_id, link.gateway_id = link.gateway_id, None
        if gateway_id is None or self._gateways.get(gateway_id) is not link:
            return
        del self._gateways[gateway_id]
        self._note_gateways()
        self._note_readiness()
        if self._is_finished:
            return
        level = logging.INFO if link.has_said_goodbye else logging.WARNING
        _logger.log(level, "lost gateway %s at %s: %s", gateway_id, link.address, reason)
        for parked in self._links.values():
            if parked.is_parked and parked is not link:
                parked.is_parked = False
                parked.dealer.connect(self._loop)
        self._handler.on_gateway_lost(gateway_id)

    def _on_refused(self, link: WorkerLink[CommandT], refused: Refused) -> None:
        _logger.error("the gateway at %s refused us: %s", link.address, refused.message)
        link.dealer.reset(self._settings.refused_redial_s)
        if not self._gateways:
            self.finish("refused", EXIT_FAILED)

    def _note_gateway_state(self, link: WorkerLink[CommandT], heartbeat: Heartbeat) -> None:
        link.is_gateway_draining = heartbeat.phase == "draining"
        # A gateway from before 1.2 doesn't say; it gives work to whoever is ready.
        is_ready = self._phase() == "ready"
        link.takes_work = is_ready if heartbeat.takes_work is None else heartbeat.takes_work
        self._note_readiness()

    def _note_readiness(self) -> None:
        if self._ready_file is not None:
            if self._announcement.stands_by:
                is_in_place = bool(self._gateways)
            else:
                is_in_place = any(link.takes_work for link in self._gateways.values())
            self._ready_file.set_ready(
                is_in_place and self._phase() == "ready" and not self._is_finished
            )

    def _note_gateways(self) -> None:
        self.gateway_versions = {
            gateway_id: link.gateway_version for gateway_id, link in self._gateways.items()
        }

    def _check_drain(self) -> None:
        if self._is_finished:
            return
        assert self._drain_deadline is not None  # noqa: S101 - only a drain comes here
        num_unfinished = self._handler.num_unfinished()
        self._flush_outbox()
        is_sent = all(not link.dealer.num_queued_bytes for link in self._links.values())
        if num_unfinished == 0 and is_sent:
            self.finish("drained", EXIT_CLEAN)
        elif self._clock() >= self._drain_deadline:
            _logger.warning("the drain ended with %d requests unfinished", num_unfinished)
            self.finish(f"drained with {num_unfinished} requests unfinished", EXIT_CLEAN)
        else:
            self._loop.call_later(_DRAIN_CHECK_INTERVAL_S, self._check_drain)
