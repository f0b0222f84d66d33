"""Runs a scripted engine as a process: a worker's I/O thread and a thread that steps."""

import logging
import queue
import threading
import time
from collections.abc import Mapping

from penstock.fake_engine.engine import FakeEngine, FakeEngineSettings
from protocol.runtime.lifetime import exit_with_parent
from protocol.runtime.shared_settings import KEY_DIR
from protocol.wire import codec
from protocol.wire.endpoints import dial_endpoints
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages import Credits, EngineCommand, Heartbeat, Load
from protocol.wire.worker import Worker, WorkerSettings

_log = logging.getLogger("penstock.fake_engine")
_Item = tuple[str, EngineCommand | None] | None
"""A gateway and its command; without one the gateway is lost; None ends the thread."""


class _Handler:
    """Hands commands to the stepping thread and answers the I/O thread's questions."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self.engine: FakeEngine | None = None
        self.num_gateways = 1

    def on_command(self, gateway_id: str, command: EngineCommand) -> None:
        if not isinstance(command, Heartbeat):
            self.inbox.put((gateway_id, command))

    def on_gateway_lost(self, gateway_id: str) -> None:
        self.inbox.put((gateway_id, None))

    def on_drain(self, timeout_s: float) -> None: ...

    def num_unfinished(self) -> int:
        return 0 if self.engine is None else self.engine.num_unfinished

    def load(self) -> Load:
        return Load() if self.engine is None else self.engine.load()

    def credits(self, gateway_id: str) -> Credits | None:
        return None if self.engine is None else self.engine.credits(self.num_gateways)

    def progress_counter(self) -> int:
        return 0 if self.engine is None else self.engine.num_steps


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
    key_dir = KEY_DIR.read(environ)
    security = None if key_dir is None else ClientSecurity.load(key_dir, "engine")
    endpoints = dial_endpoints(environ, "engine", secured=security is not None)
    exit_with_parent(environ)
    handler = _Handler()
    worker: Worker[EngineCommand] = Worker(
        role="engine",
        decoder=codec.engine_command_decoder(),
        handler=handler,
        endpoints=endpoints,
        security=security,
        settings=WorkerSettings(),
        build="scripted",
    )
    engine = FakeEngine(settings, worker.send, clock=time.monotonic)
    handler.engine = engine
    thread = threading.Thread(target=_step, args=(engine, handler, worker), daemon=True)
    worker.start()
    thread.start()
    worker.announce(engine.offer)
    _log.info("a scripted engine serves %s", settings.model)
    exit_code = worker.wait()
    handler.inbox.put(None)
    thread.join()
    return exit_code


def _step(engine: FakeEngine, handler: _Handler, worker: Worker[EngineCommand]) -> None:
    while True:
        try:
            item = handler.inbox.get(timeout=engine.wait_s())
        except queue.Empty:
            item = ("", None)
        if item is None:
            return
        gateway_id, command = item
        handler.num_gateways = len(worker.gateway_ids())
        if command is not None:
            engine.handle(gateway_id, command)
        elif gateway_id:
            engine.forget_gateway(gateway_id)
        engine.step()
