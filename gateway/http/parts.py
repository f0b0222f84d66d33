"""What routes work with, wired together once; carried by the app."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from gateway.batches.files import FileStore
from gateway.batches.runner import BatchRunner
from gateway.batches.store import BatchStore
from gateway.config import GatewaySettings
from gateway.hooks.runner import HookRunner
from gateway.http.background.background_responses import BackgroundResponses
from gateway.http.bodies.reading import Bodies
from gateway.http.entry.host_guard import HostGuard
from gateway.http.readiness import Readiness
from gateway.request.callers.identity import IdentityTable
from gateway.request.factory import RequestFactory
from gateway.request.idempotency.replays import ReplayTable
from gateway.request.jobs.model_names import ModelNames
from gateway.storage.store import Store
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.worker_records import WorkerRecords
from gateway.tools.tool_servers import ToolServers
from gateway.tools.toolbox import ToolBox
from gateway.workers.auth import AuthLink
from gateway.workers.engine_directory import EngineDirectory
from gateway.workers.engines import EngineLink
from protocol.wire.peers import Peer


@dataclass(slots=True)
class HttpParts:
    """The parts of the gateway as HTTP sees it.

    Attributes:
        requests: Makes requests of every kind.
        identities: Who callers were a moment ago.
        auth: For keys, and for routes that use nothing else.
        directory: The engines and what they serve.
        names: Of models.
        engines: For recordings of what an engine does.
        bodies: Reads request bodies within their bounds.
        readiness: What this gateway can do.
        access_log: A line for every request.
        host_guard: Tells requests of foreign web pages.
        hooks: Code of other packages that sees requests.
        toolbox: Runs the tools of this server; None when there are none, or tools are off.
        tool_servers: Whose tools responses may use.
        peers: Every connected worker of any role.
        files: Files of tenants; None where they are switched off.
        batches: Batches of tenants, likewise.
        batch_runner: Works on them.
        errand_app: The routes for requests that no client waits for, once they are there.
        replays: Answers to requests with an `Idempotency-Key`.
        worker_records: How each worker has done lately.
        drain_worker: Lets a worker finish within so many seconds, and end.
        num_active: Requests under way.
        started_s: When this gateway was made, on `clock`.
        clock: Monotonic seconds.
        store: Keeps responses; None where nothing is stored.
        background: Makes those that outlive their requests; None without a store.
        wall_clock: Unix seconds.
    """

    settings: GatewaySettings
    requests: RequestFactory
    identities: IdentityTable
    auth: AuthLink
    directory: EngineDirectory
    names: ModelNames
    engines: EngineLink
    bodies: Bodies
    readiness: Readiness
    metrics: Metrics
    access_log: AccessLog
    host_guard: HostGuard
    hooks: HookRunner
    toolbox: ToolBox | None
    tool_servers: ToolServers
    peers: Callable[[], Iterable[Peer]]
    replays: ReplayTable
    worker_records: WorkerRecords
    drain_worker: Callable[[Peer, float], None]
    num_active: Callable[[], int]
    started_s: float
    files: FileStore | None = None
    batches: BatchStore | None = None
    batch_runner: BatchRunner | None = None
    errand_app: ASGIApp | None = None
    clock: Callable[[], float] = time.monotonic
    store: Store | None = None
    background: BackgroundResponses | None = None
    wall_clock: Callable[[], float] = time.time


class Api(FastAPI):
    """The application, which carries the parts of the gateway to its routes.

    Attributes:
        parts: Set once, before the first request.
    """

    parts: HttpParts


def parts_of(request: Request) -> HttpParts:
    """The parts of the gateway, which the app carries; asked for ten times a request."""
    api: Api = request.scope["app"]
    return api.parts
