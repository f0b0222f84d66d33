"""Runs a scripted engine as a process, in a worker's I/O thread: it computes next to nothing."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from penstock.fake_engine.engine import FakeEngine, FakeEngineSettings
from protocol.runtime.allocator import return_large_blocks, trim_in_background
from protocol.runtime.lifetime import exit_with_parent
from protocol.runtime.shared_settings import KEY_DIR
from protocol.wire import codec, worker_start
from protocol.wire.messages import Credits, EngineCommand, Heartbeat, Load
from protocol.wire.worker import Worker, WorkerSettings

_log = logging.getLogger("penstock.fake_engine")


class _AlarmClock:
    """Calls a function once at a time that may be moved; a thread that sleeps in between.

    Args:
        ring: What is called, in that thread.
        clock: Monotonic seconds.
    """

    def __init__(self, ring: Callable[[], None], clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._due: float | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="pace", daemon=True).start()

    def set(self, due: float) -> None:
        """Ring at `due` instead of any time set before."""
        with self._changed:
            self._due = due
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._due is None or self._due > self._clock():
                    self._changed.wait(None if self._due is None else self._due - self._clock())
                self._due = None
            self._ring()


class _Handler:
    """Hands commands to the engine and sees to its steps; all in the worker's I/O thread."""

    def __init__(self, settings: FakeEngineSettings) -> None:
        self.worker: Worker[EngineCommand] | None = None
        self._alarm = _AlarmClock(lambda: self._soon(self._look), time.monotonic)
        self._is_step_planned = False
        self.engine = FakeEngine(
            settings,
            lambda gateway_id, message: self._worker.send(gateway_id, message),
            clock=time.monotonic,
            num_gateways=lambda: len(self._worker.gateway_ids()),
        )

    @property
    def _worker(self) -> Worker[EngineCommand]:
        assert self.worker is not None, "set before anything comes"  # noqa: S101
        return self.worker

    def on_command(self, gateway_id: str, command: EngineCommand) -> None:
        if not isinstance(command, Heartbeat):
            self.engine.handle(gateway_id, command)
            self._look()

    def on_gateway_lost(self, gateway_id: str) -> None:
        self.engine.forget_gateway(gateway_id)
        self._look()

    def on_drain(self, timeout_s: float) -> None: ...

    def num_unfinished(self) -> int:
        return self.engine.num_unfinished

    def load(self) -> Load:
        return self.engine.load()

    def credits(self, gateway_id: str) -> Credits | None:
        return self.engine.credits()

    def progress_counter(self) -> int:
        return self.engine.num_steps

    def _look(self) -> None:
        """Plan the next step: after what has arrived meanwhile, so that a burst shares a step."""
        if self._is_step_planned:
            return
        wait_s = self.engine.wait_s()
        if wait_s is not None and wait_s > 0:
            self._alarm.set(time.monotonic() + wait_s)
        elif wait_s is not None:
            self._is_step_planned = True
            self._soon(self._step)

    def _step(self) -> None:
        self._is_step_planned = False
        self.engine.step()
        self._look()

    def _soon(self, function: Callable[[], None]) -> None:
        self._worker.call_soon(function)


def run(settings: FakeEngineSettings, environ: Mapping[str, str]) -> int:
    """Serve until a signal.

    Args:
        settings: How the engine behaves.
        environ: Names the gateways (`PENSTOCK_ENGINE_ENDPOINT`) and the keys, as for any engine.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: An endpoint or a key is wrong.
    """
    endpoints, security = worker_start.dialled(environ, "engine", KEY_DIR.read(environ))
    exit_with_parent(environ)
    return_large_blocks()
    trim_in_background()
    handler = _Handler(settings)
    worker: Worker[EngineCommand] = Worker(
        role="engine",
        decoder=codec.engine_command_decoder(),
        handler=handler,
        endpoints=endpoints,
        security=security,
        settings=WorkerSettings(),
        build="scripted",
    )
    handler.worker = worker
    worker.start()
    worker.announce(handler.engine.offer)
    _log.info("a scripted engine serves %s", settings.model)
    return worker.wait()
