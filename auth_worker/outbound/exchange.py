"""One HTTP exchange with a checked address: bounded in time and size, no redirects, no proxies."""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from auth_worker.errors import OutboundError
from auth_worker.outbound.targets import Target, TargetGuard, target_of

USER_AGENT = "penstock"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes


class Exchanger:
    """Sends one request to a URL and reads its answer; safe to use from several threads.

    The host is resolved once and the connection goes to an address that was checked, so a name that
    changes its mind leads nowhere. A redirect is an answer like any other. The whole exchange,
    however slowly the name service or the other side answers, ends at its deadline.

    Args:
        guard: What may be reached.
        tls: How certificates are verified; the system's authorities by default.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        guard: TargetGuard,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guard = guard
        self._tls = tls
        self._clock = clock

    def exchange(
        self,
        method: str,
        url: str,
        *,
        timeout_s: float,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One request and its whole answer.

        Raises:
            OutboundError: It may not be reached, doesn't answer in time, or says too much.
        """
        target = target_of(url)
        end_s = self._clock() + timeout_s
        try:
            addresses = self._guard.addresses(target, self._left_s(end_s))
            with self._connected(target, addresses, end_s) as sock:
                return self._ask(method, target, sock, end_s, max_bytes, headers or {}, body)
        except TimeoutError as error:
            raise OutboundError(f"{target.host} did not answer within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise OutboundError(f"{target.host}: {error or type(error).__name__}") from error

    def _connected(self, target: Target, addresses: list[str], end_s: float) -> socket.socket:
        error: OSError | None = None
        for address in addresses:
            try:
                sock = socket.create_connection((address, target.port), self._left_s(end_s))
            except TimeoutError:
                raise
            except OSError as failed:
                error = failed
                continue
            if not target.is_tls:
                return sock
            try:
                tls = self._tls or ssl.create_default_context()
                sock.settimeout(self._left_s(end_s))
                return tls.wrap_socket(sock, server_hostname=target.host)
            except BaseException:
                sock.close()
                raise
        raise error or OSError("no address")

    def _ask(
        self,
        method: str,
        target: Target,
        sock: socket.socket,
        end_s: float,
        max_bytes: int,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> Answer:
        connection = http.client.HTTPConnection(target.host, target.port)
        sock.settimeout(self._left_s(end_s))
        connection.sock = _Bounded(sock, lambda: self._left_s(end_s))
        connection.putrequest(method, target.path, skip_host=True, skip_accept_encoding=True)
        sent = {
            "Host": target.host_header,
            "User-Agent": USER_AGENT,
            "Connection": "close",
            **headers,
        }
        if body is not None:
            sent["Content-Length"] = str(len(body))
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        with connection.getresponse() as response:
            content = response.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise OutboundError(f"{target.host} answers with over {max_bytes} bytes")
            return Answer(response.status, content)

    def _left_s(self, end_s: float) -> float:
        left_s = end_s - self._clock()
        if left_s <= 0:
            raise TimeoutError
        return left_s


class _Bounded:
    """A socket as `http.client` uses one, whose every read ends at the deadline."""

    def __init__(self, sock: socket.socket, left_s: Callable[[], float]) -> None:
        self._sock = sock
        self._left_s = left_s

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._left_s())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._left_s))

    def close(self) -> None:
        """The socket is closed by who opened it."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, left_s: Callable[[], float]) -> None:
        super().__init__()
        self._sock = sock
        self._left_s = left_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._left_s())
        return self._sock.recv_into(buffer)
