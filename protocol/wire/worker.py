"""The worker's side of the wire for other threads: start, send, announce, wait."""

import asyncio
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from protocol.errors import ConfigurationError, EncodeError
from protocol.version import OLDEST_VERSION, ProtocolVersion
from protocol.wire.codec import Decoder, encode_value
from protocol.wire.endpoints import Endpoint, Resolver, resolve_endpoints, resolve_host
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import AuthOffer, EngineOffer, ParserOffer, Phase, Role
from protocol.wire.readiness import ReadyFile
from protocol.wire.stall_watch import StallWatch
from protocol.wire.transport import TransportLimits
from protocol.wire.worker_handler import (
    Announcement,
    MetricSource,
    Offer,
    WorkerHandler,
    WorkerSettings,
)
from protocol.wire.worker_loop import EXIT_CLEAN, EXIT_FAILED, WorkerLoop
from protocol.wire.worker_signals import SignalPipe

__all__ = ["Worker", "WorkerHandler", "WorkerSettings"]

CommandT = TypeVar("CommandT")
_logger = logging.getLogger("penstock.worker")


class Worker(Generic[CommandT]):
    """Connects a handler to every gateway, from an I/O thread of its own.

    The thread neither compiles nor computes, so heartbeats go on while the main thread is busy.
    Every public method may be called from any thread. It is long because it is the whole façade of
    a process: start, send, drain, signals and end.

    Args:
        role: What this worker is.
        decoder: Of the commands of that role.
        handler: Does the work; its methods are called in the I/O thread.
        endpoints: What to dial; host names among them are looked up again and again.
        security: CURVE keys for tcp; a Unix socket is guarded by its file mode.
        settings: Times of the loop.
        build: Version and fingerprint of the code, for people.
        limits: Bounds of the sockets.
        instance_id: Random when None.
        resolve: Looks up host names.
        metrics: What the worker counts, reported to every gateway; None reports nothing.
        ready_file: There while the worker is ready and a gateway gives it work, for health checks;
            None writes none.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: A `ready_file` of an earlier life can't be removed.
    """

    def __init__(
        self,
        *,
        role: Role,
        decoder: Decoder[CommandT],
        handler: WorkerHandler[CommandT],
        endpoints: Sequence[Endpoint],
        security: ClientSecurity | None = None,
        settings: WorkerSettings | None = None,
        build: str = "",
        limits: TransportLimits | None = None,
        instance_id: str | None = None,
        resolve: Resolver = resolve_host,
        metrics: MetricSource | None = None,
        ready_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instance_id = instance_id or f"{role}-{secrets.token_hex(8)}"
        self._settings = settings or WorkerSettings()
        self._endpoints = tuple(endpoints)
        self._resolve = resolve
        self._announcement = Announcement()
        self._io = WorkerLoop(
            role=role,
            instance_id=self.instance_id,
            build=build,
            decoder=decoder,
            handler=handler,
            announcement=self._announcement,
            security=security,
            settings=self._settings,
            limits=limits or TransportLimits(),
            flush_outbox=self._send_outbox,
            on_finished=self._on_finished,
            metrics=metrics,
            ready_file=None if ready_file is None else ReadyFile(ready_file),
            clock=clock,
        )
        self._loop = _new_event_loop()
        self._thread = threading.Thread(target=self._run, name="worker-io", daemon=True)
        self._stall_watch = StallWatch(
            lambda: self._io.last_tick, stall_s=self._settings.stall_s, exit_code=EXIT_FAILED
        )
        self._outbox: queue.SimpleQueue[tuple[str, Message]] = queue.SimpleQueue()
        self._is_outbox_planned = False
        self._signals: SignalPipe | None = None
        self._received_signals: set[int] = set()
        self._finished = threading.Event()
        self._resolver_stop = threading.Event()
        self._exit_code = EXIT_CLEAN
        self._hard_exit: threading.Timer | None = None

    def start(self) -> None:
        """Start the I/O thread; it dials, announces phase `starting`, and beats from now on."""
        if self._settings.handle_signals and SignalPipe.is_possible():
            self._signals = SignalPipe()
            self._signals.install()
        self._thread.start()
        self._stall_watch.start(self._thread)

    def send(self, gateway_id: str, message: Message) -> None:
        """Send a gateway a message, in order; dropped silently when that gateway is gone."""
        self._outbox.put((gateway_id, message))
        # At worst one wake-up too many: the flag is cleared before the queue is read.
        if not self._is_outbox_planned:
            self._is_outbox_planned = True
            self.call_soon(self._send_outbox)

    def flush(self) -> None:
        """Let what was sent leave now; called in the I/O thread, by a handler with more to do."""
        self._send_outbox()

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Run a function in the I/O thread; nothing happens once the worker has finished."""
        try:
            if threading.get_ident() == self._thread.ident:
                self._loop.call_soon(function, *args)  # which needs no signal to wake it
            else:
                self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            _logger.debug("the worker has finished already")

    def set_phase(self, phase: Phase, fraction: float = -1.0, detail: str = "") -> None:
        """Say what the worker is doing; a new phase goes out at once, the rest with the next beat.

        Args:
            phase: What it does; `ready` is said by `announce`.
            fraction: Of the phase, 0 to 1; negative when unknown.
            detail: What the phase is about, for people.
        """
        detail = detail.encode("utf-8", "replace").decode()  # a path may hold what is no UTF-8
        is_new = phase != self._announcement.phase
        self._announcement.phase = phase
        self._announcement.fraction = fraction
        self._announcement.detail = detail
        if is_new:
            self.call_soon(self._io.beat)

    def stand_by(self, detail: str) -> None:
        """Say that it could serve, while another worker does: ready, but with no offer.

        Gateways give it no work; its ready file is there while one of them knows it.
        """
        self._announcement.stands_by = True
        self.set_phase("ready", detail=detail)

    def announce(self, offer: Offer) -> None:
        """Say what the worker serves, to every gateway now and later; the phase is `ready`.

        Raises:
            ConfigurationError: It has a text that can't be sent, such as a model's name or label.
        """
        try:
            encode_value(offer)
        except EncodeError as error:
            raise ConfigurationError(f"What this worker offers can't be told: {error}") from error
        if isinstance(offer, EngineOffer):
            self._announcement.engine = offer
        elif isinstance(offer, AuthOffer):
            self._announcement.auth = offer
        elif isinstance(offer, ParserOffer):
            self._announcement.parser = offer
        self._announcement.stands_by = False
        self._announcement.phase = "ready"
        self._announcement.fraction = -1.0
        self._announcement.detail = ""
        self.call_soon(self._io.announce)

    def gateway_ids(self) -> tuple[str, ...]:
        """The gateways that are here now."""
        return tuple(self._io.gateway_versions)

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        """What a gateway speaks; the oldest version when it is not there."""
        return self._io.gateway_versions.get(gateway_id, OLDEST_VERSION)

    def command_age_s(self) -> float:
        """In `on_command` only: how long at most the command may have waited unread, seconds.

        0.0 unless the I/O thread did not run for at least two heartbeats.
        """
        return self._io.command_age_s()

    def drain(self, timeout_s: float | None = None) -> None:
        """Begin to drain, as SIGTERM does."""
        limit = self._settings.drain_timeout_s if timeout_s is None else timeout_s
        self.call_soon(self._io.begin_drain, limit)

    @property
    def is_finished(self) -> bool:
        """Whether the drain is over, or a gateway refused us, or `stop` was called."""
        return self._finished.is_set()

    def wait(self) -> int:
        """Block until the worker has finished: drained after a signal, refused, or stopped.

        Returns:
            The exit code: 0 clean, 1 refused or failed, 128 + signal number when it was told twice.
        """
        self._finished.wait()
        self._leave()
        return self._exit_code

    def stop(self, reason: str = "", exit_code: int = EXIT_CLEAN) -> None:
        """Say goodbye with a reason and finish at once; blocks for the sockets' linger time."""
        if self._thread.is_alive():
            self.call_soon(self._io.finish, reason, exit_code)
            self._finished.wait()
        self._leave()

    def _leave(self) -> None:
        if self._hard_exit is not None:
            self._hard_exit.cancel()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        if self._signals is not None and SignalPipe.is_possible():
            self._signals.restore()
            self._signals = None

    def _run(self) -> None:
        loop = self._loop
        try:
            if self._signals is not None:
                self._signals.attach(loop, self._on_signal)
            self._io.begin(loop)
            if any(endpoint.needs_resolving for endpoint in self._endpoints):
                threading.Thread(target=self._resolve_forever, name="resolver", daemon=True).start()
            else:
                self._io.set_addresses(resolve_endpoints(self._endpoints, self._resolve) or ())
            loop.run_forever()
        except BaseException:
            _logger.exception("the I/O thread failed")
            self._exit_code = EXIT_FAILED  # whatever becomes of the goodbyes
            self._io.finish("the worker failed", EXIT_FAILED)
        finally:
            if self._signals is not None:
                self._signals.detach(loop)
            self._stall_watch.stop()
            loop.close()
            self._io.close()
            self._finished.set()

    def _resolve_forever(self) -> None:
        # A thread of its own, because a name server may take many seconds to answer.
        while not self._resolver_stop.is_set():
            try:
                addresses = resolve_endpoints(self._endpoints, self._resolve)
            except Exception:
                # Such as a name that no name server could have: keep what is there, ask again.
                _logger.exception("the names of the gateways could not be looked up")
                addresses = None
            if addresses is not None:
                self.call_soon(self._io.set_addresses, addresses)
            self._resolver_stop.wait(self._settings.resolve_interval_s)

    def _send_outbox(self) -> None:
        self._is_outbox_planned = False
        if self._outbox.empty():
            return
        while not self._outbox.empty():
            self._io.send(*self._outbox.get_nowait())
        self._io.flush()

    def _on_signal(self, number: int) -> None:
        # Ctrl-C reaches the whole process group and the supervisor's SIGTERM follows it, so only
        # the same signal again asks for the end at once.
        if number in self._received_signals:
            self._plan_hard_exit(128 + number)
            self._io.finish("told twice to stop", 128 + number)
            return
        self._received_signals.add(number)
        self._io.begin_stop()

    def _on_finished(self, exit_code: int) -> None:
        self._exit_code = exit_code
        self._resolver_stop.set()
        self._stall_watch.stop()
        if self._received_signals:
            self._plan_hard_exit(exit_code)
        self._loop.call_soon(self._loop.stop)

    def _plan_hard_exit(self, exit_code: int) -> None:
        """The main thread may sit in a compiler: end the process if it doesn't come to `wait`."""
        if self._hard_exit is None:
            self._hard_exit = threading.Timer(
                self._settings.exit_grace_s, os._exit, args=(exit_code,)
            )
            self._hard_exit.daemon = True
            self._hard_exit.start()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # macOS, best effort
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
