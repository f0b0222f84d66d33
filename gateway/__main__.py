"""`python -m gateway`: reads the settings, binds, and serves until it is told to stop."""

from protocol.runtime import collector

if __name__ == "__main__":
    collector.start()

import asyncio
import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable

from gateway.config import GatewaySettings
from gateway.http.server import bind_socket, bind_unix_socket
from gateway.service import serve
from protocol.errors import ConfigurationError
from protocol.runtime import logs, tracing
from protocol.runtime.allocator import return_large_blocks
from protocol.runtime.lifetime import exit_with_parent, remove_orphaned_run_dir
from protocol.wire import worker_start

_logger = logging.getLogger("penstock.gateway")

END_GRACE_S = 30.0
"""From the end of a drain to the end of the process, which takes ten seconds at most unless a
thread hangs: on a disk that answers nobody, say, or in code of another package."""


def main() -> int:
    """Run the gateway; the exit code is 0 after a drain, 1 or 2 when it could not start."""
    logs.setup("gateway")
    return_large_blocks()
    try:
        settings = GatewaySettings.from_env(os.environ)
        logs.setup("gateway", settings.log_level)
        tracing.setup("gateway", os.environ, build=worker_start.build())
        exit_with_parent(os.environ)
    except ConfigurationError as error:
        _logger.error("%s", error.message)
        return 2
    try:
        if settings.uds is None:
            sock = bind_socket(settings.host, settings.port, is_shared=settings.share_port)
        else:
            sock = bind_unix_socket(settings.uds)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(sock)]
            if settings.metrics_port:
                metrics = bind_socket(
                    settings.host, settings.metrics_port, setting="PENSTOCK_METRICS_PORT"
                )
                sockets.append(stack.enter_context(metrics))
            runner = stack.enter_context(asyncio.Runner(loop_factory=_loop_factory()))
            runner.run(serve(settings, *sockets, on_drained=_plan_hard_end))
    except ConfigurationError as error:
        _logger.error("%s", error.message)
        return 1
    finally:
        tracing.close()
        remove_orphaned_run_dir(os.environ)
    return 0


def _plan_hard_end() -> None:
    """Nobody waits for a thread that hangs: a supervisor starts the next gateway after the end."""

    def end() -> None:
        _logger.error("a thread of this gateway hangs; the process ends without it")
        os._exit(1)

    timer = threading.Timer(END_GRACE_S, end)
    timer.daemon = True
    timer.start()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The loop of uvloop where it is installed, asyncio's own loop elsewhere."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(
            "uvloop"
        ).new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return factory


if __name__ == "__main__":
    sys.exit(main())
