"""Stands before the handler of a worker that may still stand by; closed, it lets nothing in."""

from collections.abc import Callable
from typing import Final

from auth_worker.serving.handler import AuthHandler
from protocol.errors import ErrorCode
from protocol.runtime.metrics import MetricRegistry
from protocol.wire.messages import AuthCommand, Authorize, Credits, Denied, Load, Message

RETRY_AFTER_S: Final = 2.0


class Gate:
    """The worker loop's handler and source of metrics; hands all on once it is open.

    Args:
        send: Answers a gateway.
    """

    def __init__(self, send: Callable[[str, Message], None]) -> None:
        self._send = send
        self._handler: AuthHandler | None = None
        self._registry = MetricRegistry()
        self._registry.gauge(
            "penstock_auth_active", "1 while this worker decides, 0 while it stands by.", lambda: 0
        )

    def open(self, handler: AuthHandler) -> None:
        """From now on this handler gets everything; called in the I/O thread."""
        self._handler = handler

    def message(self) -> Message:
        """What is counted now."""
        registry = self._registry if self._handler is None else self._handler.metrics.registry
        return registry.message()

    def on_command(self, gateway_id: str, command: AuthCommand) -> None:
        """Refuse what a client waits for; gateways repeat the rest to the worker that is active."""
        if self._handler is not None:
            self._handler.on_command(gateway_id, command)
        elif isinstance(command, Authorize):
            denied = Denied(
                request_id=command.request_id,
                code=ErrorCode.WORKER_UNAVAILABLE,
                message="Authorization is not available at the moment. Please try again.",
                retry_after_s=RETRY_AFTER_S,
            )
            self._send(gateway_id, denied)

    def on_gateway_lost(self, gateway_id: str) -> None:
        """Nothing of it is here before the gate opens."""
        if self._handler is not None:
            self._handler.on_gateway_lost(gateway_id)

    def on_drain(self, timeout_s: float) -> None:
        """Nothing to finish before the gate opens."""
        if self._handler is not None:
            self._handler.on_drain(timeout_s)

    def num_unfinished(self) -> int:
        """Operations that somebody waits for."""
        return 0 if self._handler is None else self._handler.num_unfinished()

    def load(self) -> Load:
        """How busy it is."""
        return Load() if self._handler is None else self._handler.load()

    def credits(self, gateway_id: str) -> Credits | None:
        """There are no credits here."""
        return None if self._handler is None else self._handler.credits(gateway_id)

    def progress_counter(self) -> int:
        """Grows with each committed group."""
        return 0 if self._handler is None else self._handler.progress_counter()
