"""Runs one gateway: the application and its HTTP server from start to drain."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.application import Application
from gateway.config import GatewaySettings
from gateway.http.server import HttpServer, remove_socket, socket_mark, write_port_file
from protocol.runtime import collector

_logger = logging.getLogger("penstock.gateway")

_SHARING_PATIENCE_S = 5.0
"""Then a gateway says itself what it lacks."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(
    settings: GatewaySettings,
    sock: socket.socket,
    *further: socket.socket,
    on_drained: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; the same signal again ends at once.

    Args:
        settings: Of this process.
        sock: Listening; one of a shared port only bound, it listens once this gateway can serve.
        further: Listening, for metrics.
        on_drained: Called when nothing is waited for any more that a client asked for.

    Raises:
        ConfigurationError: An endpoint, a folder, a key file or the port can't be used.
    """
    loop = asyncio.get_running_loop()
    own_socket = None if settings.uds is None else socket_mark(settings.uds)
    application = Application(settings)
    await application.hooks.start()
    application.start()
    server = HttpServer(application.parts)
    stop, at_once = asyncio.Event(), asyncio.Event()
    received: set[int] = set()

    def on_signal(number: int) -> None:
        # Ctrl-C reaches the whole process group and the supervisor's SIGTERM follows it, so only
        # the same signal again means that somebody wants it to end now.
        (at_once if number in received else stop).set()
        received.add(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        if settings.share_port:
            # Until then the other gateways of the port are a better choice.
            patience = loop.create_task(application.until_serving(_SHARING_PATIENCE_S))
            await _first(patience, stop.wait())
        serving = loop.create_task(server.serve(sockets=[sock, *further]))
        await _first(serving, server.has_started.wait())
        if serving.done():
            await serving  # it could not listen
        # A Unix socket has no port.
        port = 0 if settings.uds is not None else sock.getsockname()[1]
        if settings.port_file is not None:
            write_port_file(settings.port_file, port)
        collector.settle()
        where = f"{settings.host} port {port}" if settings.uds is None else str(settings.uds)
        _logger.info("serving HTTP on %s", where)
        await _first(serving, stop.wait())
        if settings.share_port:
            # The other gateways of the port serve whoever comes now.
            await server.stop_listening()
        drain = loop.create_task(application.drain(settings.drain_timeout_s))
        await _first(drain, at_once.wait())
        drain.cancel()
        application.end_running()
        on_drained()
        server.should_exit = True
        await serving
    finally:
        if settings.uds is not None:
            remove_socket(settings.uds, own_socket)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        await application.close()


async def _first(task: "asyncio.Task[Any]", signal_wait: Coroutine[Any, Any, Any]) -> None:
    """Wait for a task or a signal, whichever comes first; the task goes on."""
    waiting = asyncio.ensure_future(signal_wait)
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
