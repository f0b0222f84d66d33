"""The HTTP server: binds the port itself and runs uvicorn without its signal handlers."""

import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn

from gateway.config import GatewaySettings
from gateway.http.app import build_app
from gateway.http.connections.arrival import Arrivals
from gateway.http.connections.certificate import ServerCertificate
from gateway.http.connections.http_protocol import BoundedHttpProtocol
from gateway.http.connections.limits import (
    ConnectionLimits,
    default_max_connections,
    raise_descriptor_limit,
)
from gateway.http.parts import HttpParts
from gateway.telemetry.refusals import Refusals
from protocol.errors import ConfigurationError

_BACKLOG = 2048
_GRACE_S = 5
_UNREAD_TIMEOUT_MS = 300_000
"""A connection whose client takes nothing for so long is closed by the kernel, buffers and all."""


def bind_socket(
    host: str, port: int, *, is_shared: bool = False, setting: str = "PENSTOCK_PORT"
) -> socket.socket:
    """A listening socket.

    Args:
        host: Of this machine.
        port: 0 for a free one.
        is_shared: Other gateways listen there as well; this one doesn't yet, so that connections
            go to those that serve.
        setting: What says the port, for messages.

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
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        if not is_shared:
            sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port} (PENSTOCK_HOST, {setting}): {error.strerror}."
        ) from error
    return sock


def bind_unix_socket(path: Path) -> socket.socket:
    """A listening Unix socket for this user and its group; one that nobody listens on is replaced.

    Raises:
        ConfigurationError: Somebody listens there, or the path can't be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o660)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"Cannot listen on {path} (PENSTOCK_UDS): {error.strerror or error}."
        ) from error
    return sock


SocketMark = tuple[int, int, int]
"""Device, inode and time of creation: a number of an inode may be given again at once."""


def socket_mark(path: Path) -> SocketMark | None:
    """What tells the socket that lies at a path from one that is put there later; None if none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def remove_socket(path: Path, mark: SocketMark | None) -> None:
    """Remove a socket unless another one lies there by now, of a successor that has started."""
    if mark is not None and socket_mark(path) == mark:
        path.unlink(missing_ok=True)


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


def _limits(settings: GatewaySettings) -> ConnectionLimits:
    """The bounds of connections, from the settings and from what the system lets us have."""
    in_all = settings.max_connections or default_max_connections(raise_descriptor_limit())
    by_address = settings.max_connections_per_address or max(1, in_all // 2)
    return ConnectionLimits(in_all, by_address, settings.trusted_proxies)


def _protocol(settings: GatewaySettings, refusals: Refusals) -> Callable[..., asyncio.Protocol]:
    """Makes the protocol of a new connection; without uvicorn's TLS, which has no bounds."""
    tls = None
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        tls = ServerCertificate(settings.tls_cert_file, settings.tls_key_file).context
    limits = _limits(settings)
    http = partial(BoundedHttpProtocol, limits=limits, refusals=refusals)
    return Arrivals(limits, tls, http, refusals)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, because draining is ours.

    Args:
        parts: What the routes work with.

    Attributes:
        has_started: Set once HTTP is answered.
    """

    def __init__(self, parts: HttpParts) -> None:
        refusals = Refusals(parts.access_log, parts.metrics)
        super().__init__(
            uvicorn.Config(
                build_app(parts),
                http=cast("Any", _protocol(parts.settings, refusals)),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                # Whose `X-Forwarded-For` is believed; nobody's unless it is configured.
                proxy_headers=bool(parts.settings.trusted_proxies),
                forwarded_allow_ips=",".join(parts.settings.trusted_proxies),
                timeout_keep_alive=cast("Any", parts.settings.keep_alive_s),
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._address = f"{parts.settings.host}:{parts.settings.port}"
        self._metrics_port = parts.settings.metrics_port
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer.

        Raises:
            ConfigurationError: Somebody else listens on the port, which was bound as a shared one.
        """
        try:
            for sock in sockets or ():
                sock.listen(_BACKLOG)  # not left to uvloop, which only logs that it can't
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {self._address} (PENSTOCK_HOST, PENSTOCK_PORT): "
                f"{error.strerror}."
            ) from error
        await super().startup(sockets)
        self.has_started.set()

    async def stop_listening(self) -> None:
        """Take no further connection but for metrics; those that came go on."""
        closing = [server for server in self.servers if not self._is_for_metrics(server)]
        # The kernel resets what waits in the queue of a listener that is closed.
        waiting = select.poll()
        for server in closing:
            for sock in server.sockets:
                waiting.register(sock, select.POLLIN)
        for _ in range(_BACKLOG):
            has_more = bool(waiting.poll(0))
            await asyncio.sleep(0)  # the loop accepts at least one, and sets up the last ones
            if not has_more:
                break
        for server in closing:
            server.close()

    def _is_for_metrics(self, server: asyncio.Server) -> bool:
        """Whether a listener is this gateway's own one: while it drains its figures are wanted."""
        addresses = (sock.getsockname() for sock in server.sockets)
        port = self._metrics_port
        return bool(port) and any(isinstance(a, tuple) and a[1] == port for a in addresses)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield
