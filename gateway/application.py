"""The gateway as a whole: its rooms wired together, its start and its end."""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from gateway import bridge
from gateway.batches.files import FileBounds
from gateway.batches.idle_room import IdleRoom
from gateway.batches.service import BatchService
from gateway.config import GatewaySettings
from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Quarantine
from gateway.dispatch.routing import PrefixRouter
from gateway.errors import ShuttingDownError
from gateway.hooks.runner import HookRunner, load_hooks
from gateway.housekeeping import Housekeeping, logs_failure
from gateway.http.access.route_rules import ROUTE_RULES
from gateway.http.background.background_responses import BackgroundResponses
from gateway.http.bodies.body_pool import BodyPool
from gateway.http.bodies.parsers import CONTINUED_RESPONSES, ParseContext
from gateway.http.bodies.reading import Bodies
from gateway.http.entry.host_guard import HostGuard
from gateway.http.errands import Errands
from gateway.http.parts import HttpParts
from gateway.http.readiness import Readiness
from gateway.ledger.data_slot import DataSlot, adopt_slots
from gateway.ledger.outbox import Outbox
from gateway.request.callers.identity import IdentityTable
from gateway.request.choices.launcher import EnginePool
from gateway.request.factory import RequestFactory, RequestRules
from gateway.request.idempotency.replays import ReplayTable
from gateway.request.jobs.model_names import ModelNames
from gateway.request.lifecycle.sessions import SessionTable
from gateway.storage.open_store import open_store
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.metrics import Metrics, StateCollector
from gateway.telemetry.request_trace import RequestTraces
from gateway.telemetry.worker_metrics import WorkerMetricsCollector
from gateway.telemetry.worker_records import WorkerRecords
from gateway.tools.tool_servers import tool_servers
from gateway.tools.toolbox import registered_toolbox
from gateway.workers.announcements import Announcements
from gateway.workers.auth import AuthLink, AuthNews
from gateway.workers.engine_directory import EngineDirectory
from gateway.workers.engines import EngineLink
from gateway.workers.parsers import ParserLink
from gateway.workers.wire import LinkHandler
from protocol.runtime.allocator import TRIM_INTERVAL_S, HeapKeeper, HeapTrimmer
from protocol.runtime.child_environment import child_environment
from protocol.runtime.large_pages import LargePages
from protocol.wire import worker_start
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
LOOK_INTERVAL_S = 1.0
SWEEP_INTERVAL_S = 60.0
_TICK_S = 0.5
_FLUSH_PATIENCE_S = 2.0
_GOODBYE_S = 0.1
"""What workers get to read the goodbye; the end of a connection would overtake it."""
_STEP_S = 0.02


class Application:
    """Sockets for the workers, the rooms on top of them, and their housekeeping.

    It is long because each part is put together, and each periodic chore done, by a method.

    Args:
        settings: Of this process.
        clock: Monotonic seconds.

    Attributes:
        parts: What HTTP works with.

    Raises:
        ConfigurationError: The data folder or the keys can't be used.
    """

    def __init__(
        self, settings: GatewaySettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.hooks = HookRunner(
            load_hooks(),
            settings.hook_timeout_s,
            lambda hook, outcome: self.parts.metrics.hook_calls.add(1, hook, outcome),
        )
        self.instance_id = secrets.token_hex(8)
        self._security = None if settings.key_dir is None else ServerSecurity.load(settings.key_dir)
        self._clock = clock
        self.engine_server: RoleServer[EngineEvent] = self._role_server(
            "engine", settings.engine_endpoint, engine_event_decoder()
        )
        self.auth_server: RoleServer[AuthEvent] = self._role_server(
            "auth", settings.auth_endpoint, auth_event_decoder()
        )
        self.parser_server: RoleServer[ParserEvent] = self._role_server(
            "toolparser", settings.toolparser_endpoint, parser_event_decoder()
        )
        self.metrics = Metrics()
        self.sessions = SessionTable()
        self.worker_records = WorkerRecords(clock)
        self.identities = IdentityTable(clock, settings.max_wrong_keys)
        self.replays = ReplayTable(settings.replay_memory, settings.replay_age_s, clock)
        self.quarantine = Quarantine(clock)
        self.prefixes = PrefixRouter()
        self.directory = EngineDirectory(lambda model: self.admission.pump(model))
        self.admission = Admission(
            self.directory.engines, settings.max_queue, clock, settings.overload_message
        )
        self.auth: AuthLink = AuthLink(
            self.auth_server,
            timeout_s=settings.auth_timeout_s,
            require_keys=settings.require_keys,
            records=self.worker_records,
            carries_tokens=settings.auth_endpoint.is_ipc or self._security is not None,
            take_refused=self.identities.guesses.take_refused,
            news=AuthNews(
                on_settled=lambda lease_id: self.outbox.acknowledge(lease_id),
                on_settle_refused=lambda request_id: self.outbox.refuse(request_id),
                on_ready=self._on_auth_ready,
                on_orphans_noted=lambda noted: self.engines.orphans_noted(noted),
            ),
        )
        self.engines: EngineLink = EngineLink(
            self.engine_server,
            self.directory,
            self.prefixes,
            self.auth.report_orphans,
            self.worker_records,
        )
        self.parsers = ParserLink(self.parser_server, self.worker_records)
        self._slot = DataSlot(settings.data_dir) if settings.share_data_dir else None
        data_dir = settings.data_dir if self._slot is None else self._slot.folder
        adopt = None if self._slot is not None else partial(adopt_slots, data_dir)
        self.outbox = Outbox(data_dir, self.auth.settle, settings.max_outbox, clock, adopt)
        self.toolbox = registered_toolbox(settings, os.environ)
        self.tool_servers = tool_servers(settings, os.environ, self.toolbox)
        self._body_pool = BodyPool(child_environment(os.environ))
        self.store = open_store(settings, self.instance_id)
        self._lag_due: float | None = None
        self._heap = HeapKeeper(HeapTrimmer(), LargePages())
        self._housekeeping = self._make_housekeeping()
        self.names = ModelNames(settings.aliases, settings.fallbacks, self.directory)
        self.announcements = Announcements(
            settings.models, self.directory, self.peers, settings.worker_dead_s, clock
        )
        self.requests = self._make_requests()
        self.bodies = Bodies(
            settings.max_body_bytes,
            settings.max_bodies_per_caller,
            self._body_pool,
            ParseContext(
                self.directory.models(),
                settings.tools,
                self.store is not None,
                self.names.aliases,
            ),
        )
        self.background = self._make_background()
        self.batches = self._make_batches()
        self.parts = self._make_parts()
        self.metrics.registry.register(StateCollector(self._gauges))
        self.metrics.registry.register(WorkerMetricsCollector(self.peers))

    def _make_housekeeping(self) -> Housekeeping:
        housekeeping = Housekeeping(self._clock)
        housekeeping.add("renewing leases", RENEW_INTERVAL_S, self._renew)
        housekeeping.add("resending settlements", _TICK_S, self.outbox.resend_old)
        housekeeping.add("measuring the event loop", _TICK_S, self._measure_lag)
        housekeeping.add("giving back memory", TRIM_INTERVAL_S, self._trim, is_essential=False)
        return housekeeping

    def _make_requests(self) -> RequestFactory:
        settings, metrics = self.settings, self.metrics
        pool = EnginePool(
            link=self.engines,
            directory=self.directory,
            admission=self.admission,
            prefixes=self.prefixes if settings.routing == "prefix" else None,
            quarantine=self.quarantine,
            on_routed=lambda model, outcome: metrics.routed_choices.add(1, model, outcome),
        )
        return RequestFactory(
            auth=self.auth,
            outbox=self.outbox,
            identities=self.identities,
            sessions=self.sessions,
            pool=pool,
            parsers=self.parsers,
            metrics=metrics,
            names=self.names,
            rules=RequestRules(
                timeout_s=settings.request_timeout_s,
                slice_tokens=settings.lease_slice_tokens,
                max_answer_bytes=settings.max_answer_bytes,
                thinking_budgets=settings.thinking_budget_by_effort,
                allows_templates=settings.request_chat_templates,
                models=settings.models,
                scopes={
                    path: rule.scope for path, rule in ROUTE_RULES.items() if rule.scope is not None
                },
            ),
            clock=self._clock,
        )

    def _make_background(self) -> BackgroundResponses | None:
        store = self.store
        if store is None:
            return None
        background = BackgroundResponses(
            store,
            self.requests,
            lambda frame, caller: self.bodies.parse(frame, caller, CONTINUED_RESPONSES),
            self.tool_servers,
            self.settings.max_tool_calls,
            self.settings.max_background,
            self._clock,
            traces=RequestTraces(self.settings.trace_ratio, "link"),
        )
        self._housekeeping.add(
            "making background responses", LOOK_INTERVAL_S, background.look, is_essential=False
        )
        self._housekeeping.add(
            "sweeping the store", SWEEP_INTERVAL_S, self._sweep, is_essential=False
        )
        return background

    def _make_batches(self) -> BatchService | None:
        settings = self.settings
        if not settings.max_file_bytes:
            return None
        service = BatchService(
            settings.data_dir,
            FileBounds(
                settings.max_files,
                settings.max_files_bytes,
                settings.max_file_bytes,
                settings.max_file_age_s,
            ),
            ask=Errands(lambda: self.parts.errand_app).ask,
            settle=self.outbox.put,
            num_free=IdleRoom(
                (*settings.models, *self.names.configured),
                self.directory,
                self.admission,
                self.names,
                lambda: self.auth.is_ready and not self.requests.is_draining,
                self.announcements.are_complete,
                settings.batch_share,
            ).num_free,
            max_lines=settings.max_batch_requests,
            max_line_bytes=settings.max_body_bytes,
        )
        self._housekeeping.add("running batches", LOOK_INTERVAL_S, service.look, is_essential=False)
        self._housekeeping.add(
            "sweeping files", SWEEP_INTERVAL_S, service.sweep, is_essential=False
        )
        return service

    def _make_parts(self) -> HttpParts:
        settings = self.settings
        return HttpParts(
            settings=settings,
            requests=self.requests,
            identities=self.identities,
            auth=self.auth,
            directory=self.directory,
            names=self.names,
            engines=self.engines,
            bodies=self.bodies,
            readiness=Readiness(
                settings.models,
                directory=self.directory,
                auth=self.auth,
                parsers=self.parsers,
                outbox=self.outbox,
                housekeeping=self._housekeeping,
                peers=self.peers,
                is_draining=lambda: self.requests.is_draining,
            ),
            metrics=self.metrics,
            access_log=AccessLog(is_on=settings.access_log),
            hooks=self.hooks,
            host_guard=HostGuard((settings.host, *settings.allowed_hosts, *settings.cors_hosts)),
            toolbox=self.toolbox,
            tool_servers=self.tool_servers,
            peers=self.peers,
            replays=self.replays,
            worker_records=self.worker_records,
            drain_worker=self._drain_worker,
            num_active=lambda: len(self.sessions),
            started_s=self._clock(),
            clock=self._clock,
            store=self.store,
            background=self.background,
            files=None if self.batches is None else self.batches.files,
            batches=None if self.batches is None else self.batches.store,
            batch_runner=None if self.batches is None else self.batches.runner,
        )

    def _role_server(
        self, role: Role, endpoint: Endpoint, decoder: Decoder[EventT]
    ) -> RoleServer[EventT]:
        """The socket of a role."""
        return RoleServer(
            role,
            endpoint.text,
            decoder,
            instance_id=self.instance_id,
            security=self._security,
            peer_limits=PeerLimits(
                silent_s=min(PeerLimits.silent_s, self.settings.worker_dead_s / 2),
                dead_s=self.settings.worker_dead_s,
                stall_timeout_s=self.settings.stall_timeout_s,
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
        _listen(self.engine_server, self.engines)
        _listen(self.auth_server, self.auth)
        _listen(self.parser_server, self.parsers)
        self._housekeeping.start()

    async def until_serving(self, patience_s: float) -> None:
        """Wait until a new request could be served here, for so long at most."""
        await _wait_for(lambda: self.parts.readiness.look().can_serve, patience_s)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish, and end the rest with a clear event."""
        self.requests.is_draining = True
        for server in self._servers:
            server.set_phase("draining")
        sessions = self.sessions
        if self.background is not None:
            await self.background.stop()
        if self.batches is not None:
            self.batches.runner.begin_to_stop()
        _logger.info("draining: %d requests are still running", len(sessions))
        series = self.requests.series
        if not await _wait_for(lambda: not len(sessions) and not len(series), timeout_s):
            _logger.warning("%d requests did not finish in time", len(sessions))
            self.end_running()
            await _wait_for(lambda: len(sessions) == 0, _FLUSH_PATIENCE_S)

    def end_running(self) -> None:
        """End every request that runs with a clear event."""
        self.requests.series.fail_all(ShuttingDownError())
        self.sessions.fail_all(ShuttingDownError())

    async def close(self) -> None:
        """Settle what can be settled, write down the rest, and release everything."""
        if not await _wait_for(lambda: len(self.sessions) == 0, _FLUSH_PATIENCE_S):
            # What is known of their use would be lost with this process.
            self.sessions.give_up_all()
        if self.auth.is_ready:
            await _wait_for(lambda: len(self.outbox) == 0, _FLUSH_PATIENCE_S)
        self._housekeeping.stop()
        await self.hooks.stop()
        if self.toolbox is not None:
            await self.toolbox.close()
        await self.tool_servers.close()
        if self.background is not None:
            await self.background.stop()
        if self.store is not None:
            await self.store.close()
        if self.batches is not None:
            await self.batches.runner.stop()
        await self._body_pool.close()
        for server in self._servers:
            server.say_goodbye()
        await self.outbox.close()
        if self._slot is not None:
            self._slot.close()
        await asyncio.sleep(_GOODBYE_S)
        for server in self._servers:
            server.close()

    def _drain_worker(self, peer: Peer, timeout_s: float) -> None:
        for server in self._servers:
            if server.role == peer.role:
                server.send(peer, bridge.drain(timeout_s))

    def _on_auth_ready(self) -> None:
        # First of all: an auth worker that was killed may have forgotten what was granted last.
        self._renew()
        self.outbox.resend_all()

    def _sweep(self) -> "asyncio.Future[int] | None":
        if self.store is None:
            return None
        sweeping = asyncio.get_running_loop().create_task(self.store.sweep())
        sweeping.add_done_callback(logs_failure("sweeping the store"))
        return sweeping

    def _renew(self) -> None:
        reports = self.sessions.lease_reports()
        if reports:
            self.auth.renew(reports)

    def _trim(self) -> "asyncio.Future[None]":
        looking = asyncio.get_running_loop().run_in_executor(None, self._heap.look)
        looking.add_done_callback(logs_failure("giving back memory"))
        return looking

    def _measure_lag(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._lag_due is not None:
            self.metrics.event_loop_lag_s.observe(max(0.0, now - self._lag_due))
        self._lag_due = now + _TICK_S

    def peers(self) -> Iterable[Peer]:
        """Every connected worker of any role."""
        for server in self._servers:
            yield from server.peers()

    def _gauges(
        self,
    ) -> Iterable[tuple[str, str, tuple[str, ...], dict[tuple[str, ...], float]]]:
        queues: dict[tuple[str, ...], float] = {
            (model,): self.admission.num_waiting(model) for model in self.directory.models()
        }
        info = (self.instance_id, str(os.getpid()), worker_start.build())
        yield "info", "Which gateway this is.", ("gateway", "pid", "version"), {info: 1}
        workers: dict[tuple[str, ...], float] = {}
        for peer in self.peers():
            workers[peer.role, peer.phase] = workers.get((peer.role, peer.phase), 0) + 1
        malformed: dict[tuple[str, ...], float] = {
            (server.role,): server.num_malformed for server in self._servers
        }
        yield "queue_depth", "Requests that wait for an engine.", ("model",), queues
        yield "workers", "Connected workers.", ("role", "phase"), workers
        yield "malformed_frames_total", "Malformed frames.", ("role",), malformed
        yield "outbox_depth", "Settlements not acknowledged.", (), {(): len(self.outbox)}
        guesses: dict[tuple[str, ...], float] = {(): self.identities.guesses.num_refused}
        yield "refused_guesses_total", "Keys refused unasked: their address guesses.", (), guesses
        replayed: dict[tuple[str, ...], float] = {(): self.replays.num_replayed}
        yield "replayed_answers_total", "Requests answered by their Idempotency-Key.", (), replayed
        yield "requests_in_flight", "Metered requests in progress.", (), {(): len(self.sessions)}


def _listen(server: RoleServer[EventT], link: LinkHandler[EventT]) -> None:
    loop = asyncio.get_running_loop()
    server.start(loop, on_event=link.on_event, on_peer=partial(_hand_on, link))


def _hand_on(link: LinkHandler[Any], event: PeerEvent) -> None:
    if event.kind == "ready":
        link.on_peer_ready(event.peer)
    elif event.kind == "updated":
        link.on_peer_updated(event.peer)
    elif event.kind == "lost":
        link.on_peer_lost(event.peer)


async def _wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether a condition came true in time; looked at often, at start and end."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(_STEP_S)
    return True
