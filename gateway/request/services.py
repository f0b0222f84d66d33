"""What every request needs, wired together once."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.config import GatewaySettings
from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Quarantine
from gateway.ledger.outbox import Outbox
from gateway.request.sessions import SessionTable
from gateway.telemetry.metrics import Metrics
from gateway.tools.toolbox import ToolBox
from gateway.workers.auth import AuthLink
from gateway.workers.engines import EngineLink
from gateway.workers.parsers import ParserLink
from protocol.wire.peers import Peer


@dataclass(slots=True)
class Services:
    """The parts that requests work with.

    Attributes:
        toolbox: Runs the tools of this server; None when there are none, or tools are off.
        peers: Every connected worker of any role.
        clock: Monotonic seconds.
        wall_clock: Unix seconds.
        is_draining: No new requests are taken.
    """

    settings: GatewaySettings
    engines: EngineLink
    auth: AuthLink
    parsers: ParserLink
    admission: Admission
    outbox: Outbox
    quarantine: Quarantine
    sessions: SessionTable
    metrics: Metrics
    toolbox: ToolBox | None
    peers: Callable[[], Iterable[Peer]]
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    is_draining: bool = False
