"""What a worker brings to its loop: a handler, what it announces, what it counts, and its times."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from protocol.wire.messages.base import Message
from protocol.wire.messages.control import AuthOffer, Credits, EngineOffer, Load, ParserOffer, Phase
from protocol.wire.stall_watch import STALL_S

CommandT_contra = TypeVar("CommandT_contra", contravariant=True)
Offer = EngineOffer | AuthOffer | ParserOffer


class MetricSource(Protocol):
    """What a worker counts; `protocol.runtime.metrics.MetricRegistry` is one."""

    def message(self) -> Message:
        """All values now, as one message."""
        ...


class WorkerHandler(Protocol[CommandT_contra]):
    """What a worker does; called in the I/O thread, so each call returns within a millisecond."""

    def on_command(self, gateway_id: str, command: CommandT_contra) -> None:
        """A gateway wants something; answers go through `Worker.send` with the same gateway id."""

    def on_gateway_lost(self, gateway_id: str) -> None:
        """A gateway is gone: abort all it wanted. If it comes back, it starts from nothing."""

    def on_drain(self, timeout_s: float) -> None:
        """Take no new work; finish what runs, or end it with a clear event within the timeout."""

    def num_unfinished(self) -> int:
        """How many requests still run or wait; a drain ends when there are none."""

    def load(self) -> Load:
        """How busy the worker is."""

    def credits(self, gateway_id: str) -> Credits | None:
        """What this gateway may have unfinished here; None where there are no credits."""

    def progress_counter(self) -> int:
        """A number that grows with each step of work."""


@dataclass(frozen=True)
class WorkerSettings:
    """Times of the worker loop, seconds.

    Attributes:
        heartbeat_interval_s: Between two heartbeats to each gateway.
        gateway_silence_s: A gateway silent for so long is lost.
        ready_interval_s: Ready is repeated so often until the gateway's first heartbeat.
        drain_timeout_s: How long running work may go on after SIGTERM.
        outlast_gateways_s: After SIGTERM, stay in service for so long at most while a connected
            gateway drains, and drain after it; 0.0 drains at once. Gateways that get SIGTERM
            within the next `STOP_LOOK_S` count, so that all may be stopped together.
        resolve_interval_s: Between two look-ups of gateway host names.
        refused_redial_s: Pause before asking a gateway again that refused us.
        exit_grace_s: After a signal and the end of the drain, the main thread has so long to
            reach `Worker.wait`, then the process ends without it.
        handle_signals: Take over SIGTERM and SIGINT when started from the main thread.
        metrics_interval_s: Between two reports of the worker's metrics to each gateway.
        hang_grace_s: Told by a gateway that it hangs, the worker ends if it has made no progress so
            much later, for its supervisor to start it again; None never ends it.
        stall_s: A worker whose I/O thread stands still for so long ends likewise.
    """

    heartbeat_interval_s: float = 1.0
    gateway_silence_s: float = 15.0
    ready_interval_s: float = 3.0
    drain_timeout_s: float = 30.0
    outlast_gateways_s: float = 0.0
    resolve_interval_s: float = 5.0
    refused_redial_s: float = 30.0
    exit_grace_s: float = 2.0
    handle_signals: bool = True
    metrics_interval_s: float = 5.0
    hang_grace_s: float | None = None
    stall_s: float = STALL_S


@dataclass
class Announcement:
    """What a worker says of itself; replaced field by field, read by the I/O thread.

    Attributes:
        stands_by: It could serve and offers nothing, because another worker does.
    """

    phase: Phase = "starting"
    fraction: float = -1.0
    detail: str = ""
    engine: EngineOffer | None = None
    auth: AuthOffer | None = None
    parser: ParserOffer | None = None
    stands_by: bool = False
