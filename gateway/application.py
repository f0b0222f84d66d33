"""The gateway as a whole: its parts wired together, its clocks, its start and its end."""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from gateway.config import GatewaySettings
from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Quarantine
from gateway.errors import ShuttingDownError
from gateway.ledger.data_slot import DataSlot
from gateway.ledger.outbox import Outbox
from gateway.request.services import Services
from gateway.request.sessions import SessionTable
from gateway.telemetry.metrics import Metrics, StateCollector
from gateway.telemetry.worker_metrics import WorkerMetricsCollector
from gateway.tools.toolbox import registered_toolbox
from gateway.workers.auth import AuthLink
from gateway.workers.engines import EngineLink
from gateway.workers.parsers import ParserLink
from gateway.workers.wire import LinkHandler
from protocol.wire.codec import (
    Decoder,
    auth_event_decoder,
    engine_event_decoder,
    parser_event_decoder,
)
from protocol.wire.endpoints import Endpoint
from protocol.wire.keys import ServerSecurity
from protocol.wire.messages import AuthEvent, EngineEvent, ParserEvent, Role
from protocol.wire.peers import Peer, PeerEvent, PeerLimits
from protocol.wire.role_server import RoleServer

EventT = TypeVar("EventT")
_logger = logging.getLogger("penstock.gateway")

RENEW_INTERVAL_S = 5.0
_TICK_S = 0.5
_FLUSH_PATIENCE_S = 2.0
_GOODBYE_S = 0.1
"""What workers get to read the goodbye; the end of a connection would overtake it."""
_STEP_S = 0.02


class House:
    """Sockets for the workers, the services on top, and their housekeeping.

    Args:
        settings: Of this process.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: The data folder or the keys can't be used.
    """

    def __init__(
        self, settings: GatewaySettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []
        self._instance_id = secrets.token_hex(8)
        self._security = None if settings.key_dir is None else ServerSecurity.load(settings.key_dir)
        self._clock = clock
        self.engine_server: RoleServer[EngineEvent] = self._role_server(
            "engine", settings.engine_endpoint, engine_event_decoder(), lambda: self._engines
        )
        self.auth_server: RoleServer[AuthEvent] = self._role_server(
            "auth", settings.auth_endpoint, auth_event_decoder(), lambda: self._auth
        )
        self.parser_server: RoleServer[ParserEvent] = self._role_server(
            "toolparser",
            settings.toolparser_endpoint,
            parser_event_decoder(),
            lambda: self._parsers,
        )
        self._engines = EngineLink(
            self.engine_server,
            lambda model: self._admission.pump(model),
            lambda usage: self._auth.report_orphans(usage),
        )
        self._auth = AuthLink(
            self.auth_server,
            timeout_s=settings.auth_timeout_s,
            require_keys=settings.require_keys,
            on_settled=lambda lease_id: self._outbox.acknowledge(lease_id),
            on_settle_refused=lambda request_id: self._outbox.refuse(request_id),
            on_ready=lambda: self._outbox.resend_all(),
            on_orphans_noted=self._engines.orphans_noted,
        )
        self._parsers = ParserLink(self.parser_server)
        self._admission = Admission(self._engines.engines, settings.max_queue, clock)
        self._slot = DataSlot(settings.data_dir) if settings.share_data_dir else None
        data_dir = settings.data_dir if self._slot is None else self._slot.folder
        self._outbox = Outbox(data_dir, self._auth.settle, settings.max_outbox, clock)
        self.services = Services(
            settings=settings,
            engines=self._engines,
            auth=self._auth,
            parsers=self._parsers,
            admission=self._admission,
            outbox=self._outbox,
            quarantine=Quarantine(clock),
            sessions=SessionTable(),
            metrics=Metrics(),
            toolbox=registered_toolbox(settings, os.environ),
            peers=self._peers,
            clock=clock,
        )
        self.services.metrics.registry.register(StateCollector(self._gauges))
        self.services.metrics.registry.register(WorkerMetricsCollector(self._peers))

    def _role_server(
        self,
        role: Role,
        endpoint: Endpoint,
        decoder: Decoder[EventT],
        link: Callable[[], LinkHandler[EventT]],
    ) -> RoleServer[EventT]:
        """The socket of a role; its link is asked for later, because it needs the socket."""
        return RoleServer(
            role,
            endpoint.text,
            decoder,
            instance_id=self._instance_id,
            on_event=lambda peer, event: link().on_event(peer, event),
            on_peer=lambda event: _hand_on(link(), event),
            security=self._security,
            peer_limits=PeerLimits(
                silent_s=min(PeerLimits.silent_s, self._settings.worker_dead_s / 2),
                dead_s=self._settings.worker_dead_s,
                stall_timeout_s=self._settings.stall_timeout_s,
            ),
            clock=self._clock,
        )

    @property
    def _servers(self) -> tuple[RoleServer[Any], ...]:
        return (self.engine_server, self.auth_server, self.parser_server)

    def start(self) -> None:
        """Listen for workers and begin housekeeping; called in the event loop.

        Raises:
            ConfigurationError: An endpoint can't be bound.
        """
        loop = asyncio.get_running_loop()
        for server in self._servers:
            server.start(loop)
        self._tasks = [loop.create_task(self._renew()), loop.create_task(self._tick())]

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish, and end the rest with a clear event."""
        self.services.is_draining = True
        for server in self._servers:
            server.set_phase("draining")
        sessions = self.services.sessions
        _logger.info("draining: %d requests run on", len(sessions))
        if not await _wait_for(lambda: len(sessions) == 0, timeout_s):
            _logger.warning("%d requests did not end in time", len(sessions))
            self.end_running()
            await _wait_for(lambda: len(sessions) == 0, _FLUSH_PATIENCE_S)

    def end_running(self) -> None:
        """End every request that runs with a clear event."""
        self.services.sessions.fail_all(ShuttingDownError())

    async def close(self) -> None:
        """Settle what can be settled, write down the rest, and let go of everything."""
        if self._auth.is_ready:
            await _wait_for(lambda: len(self._outbox) == 0, _FLUSH_PATIENCE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.services.toolbox is not None:
            await self.services.toolbox.close()
        for server in self._servers:
            server.say_goodbye()
        await self._outbox.close()
        if self._slot is not None:
            self._slot.close()
        await asyncio.sleep(_GOODBYE_S)
        for server in self._servers:
            server.close()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL_S)
            reports = self.services.sessions.lease_reports()
            if reports:
                self._auth.renew(reports)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.services.metrics.event_loop_lag_s.observe(max(0.0, loop.time() - due))
            self._outbox.resend_old()

    def _peers(self) -> Iterable[Peer]:
        for server in self._servers:
            yield from server.peers()

    def _gauges(
        self,
    ) -> Iterable[tuple[str, str, tuple[str, ...], dict[tuple[str, ...], float]]]:
        queues: dict[tuple[str, ...], float] = {
            (model,): self._admission.num_waiting(model) for model in self._engines.models()
        }
        workers: dict[tuple[str, ...], float] = {}
        for peer in self._peers():
            workers[peer.role, peer.phase] = workers.get((peer.role, peer.phase), 0) + 1
        malformed: dict[tuple[str, ...], float] = {
            (server.role,): server.num_malformed for server in self._servers
        }
        yield "queue_depth", "Requests that wait for an engine.", ("model",), queues
        yield "workers", "Connected workers.", ("role", "phase"), workers
        yield "malformed_frames_total", "Frames that were no message.", ("role",), malformed
        yield "outbox_depth", "Settlements not acknowledged.", (), {(): len(self._outbox)}


def _hand_on(link: LinkHandler[Any], event: PeerEvent) -> None:
    if event.kind == "ready":
        link.on_peer_ready(event.peer)
    elif event.kind == "updated":
        link.on_peer_updated(event.peer)
    elif event.kind == "lost":
        link.on_peer_lost(event.peer)


async def _wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether a condition came true in time; looked at every few milliseconds, at shutdown only."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(_STEP_S)
    return True
