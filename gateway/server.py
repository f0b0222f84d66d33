"""Serves the application: binds the port itself, runs uvicorn, and drains on signals."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from gateway.app import build_app
from gateway.config import GatewaySettings
from gateway.house import House
from gateway.http_protocol import BoundedHttpProtocol
from gateway.services import Services
from protocol.errors import ConfigurationError

_logger = logging.getLogger("penstock.gateway")

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_GRACE_S = 5
_UNREAD_TIMEOUT_MS = 300_000
"""A connection whose client takes nothing for so long is closed by the kernel, buffers and all."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bind_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigurationError: The port is in use, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off for the connections; without it
    # each answer of two writes would wait 40 ms for the client's delayed acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            # Accepted connections inherit it (tcp(7)).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_TIMEOUT_MS)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port} (PENSTOCK_HOST, PENSTOCK_PORT): {error.strerror}."
        ) from error
    return sock


def write_port_file(path: Path, port: int) -> None:
    """Write the bound port, atomically, so that a reader never sees half a number.

    Raises:
        ConfigurationError: The file can't be written.
    """
    try:
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{port}\n", encoding="ascii")
        fresh.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"PENSTOCK_PORT_FILE: cannot write {path}: {error.strerror}."
        ) from error


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, because draining is ours.

    Args:
        services: What the routes work with.

    Attributes:
        has_started: Set once HTTP is answered.
    """

    def __init__(self, services: Services) -> None:
        super().__init__(
            uvicorn.Config(
                build_app(services),
                http=BoundedHttpProtocol,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self.has_started.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


async def serve(settings: GatewaySettings, sock: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then drain; the same signal again ends at once.

    Args:
        settings: Of this process.
        sock: Listening.

    Raises:
        ConfigurationError: An endpoint, a folder or a key file can't be used.
    """
    loop = asyncio.get_running_loop()
    house = House(settings)
    house.start()
    server = HttpServer(house.services)
    stop, at_once = asyncio.Event(), asyncio.Event()
    received: set[int] = set()

    def on_signal(number: int) -> None:
        # Ctrl-C reaches the whole process group and the supervisor's SIGTERM follows it, so only
        # the same signal again means that somebody lost patience.
        (at_once if number in received else stop).set()
        received.add(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        serving = loop.create_task(server.serve(sockets=[sock]))
        await _first(serving, server.has_started.wait())
        if settings.port_file is not None:
            write_port_file(settings.port_file, sock.getsockname()[1])
        _logger.info("serving HTTP on %s port %d", settings.host, sock.getsockname()[1])
        await _first(serving, stop.wait())
        drain = loop.create_task(house.drain(settings.drain_timeout_s))
        await _first(drain, at_once.wait())
        drain.cancel()
        house.end_running()
        server.should_exit = True
        await serving
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        await house.close()


async def _first(task: "asyncio.Task[None]", signal_wait: Coroutine[Any, Any, Any]) -> None:
    """Wait for a task or a signal, whichever comes first; the task goes on."""
    waiting = asyncio.ensure_future(signal_wait)
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
