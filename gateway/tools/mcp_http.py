"""HTTP with MCP servers: bounded answers, checked addresses, redirects to listed servers only."""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from protocol.runtime.addresses import is_internal, unwrapped

MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_REDIRECTS: Final = 3
MAX_ADDRESSES: Final = 16
DEFAULT_RETRY_S: Final = 1.0
"""Before a stream is resumed whose server doesn't say when."""
SOCKET_TIMEOUT_S: Final = 600.0
"""Between two reads; the process as a whole is killed much earlier."""
CONNECT_TIMEOUT_S: Final = 3.0
"""What an address gets before the next one of its name is tried."""

Resolve = Callable[..., Sequence[tuple[Any, ...]]]
"""As `socket.getaddrinfo`."""
IsLast = Callable[[bytes], bool]


class McpError(Exception):
    """What went wrong with a server, for whoever asked for its tools.

    Attributes:
        type: `http_error` or `mcp_protocol_error`, as OpenAI's `mcp_call` items name them.
        code: Of HTTP or JSON-RPC.
    """

    def __init__(self, message: str, *, kind: str = "mcp_protocol_error", code: int = -32603):
        super().__init__(message[:2000])
        self.type = kind
        self.code = code

    def as_json(self) -> dict[str, Any]:
        """As an item shows it."""
        return {"type": self.type, "code": self.code, "message": str(self)}


@dataclass(frozen=True, slots=True)
class Server:
    """One server, and with what it is asked.

    Attributes:
        url: As the operator lists it.
        headers: Of the client, for this server alone.
        listed: URLs of all servers that the operator lists; redirects to another origin may lead
            to these alone.
        networks: Internal networks that names may lead to.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


class McpHttp:
    """Sends requests to one server.

    Args:
        server: Which.
        resolve: Asks the name service.
    """

    def __init__(self, server: Server, resolve: Resolve = socket.getaddrinfo) -> None:
        self._server = server
        self._resolve = resolve
        self._answered = _origin(server.url)
        self._session: tuple[tuple[str, str, int], str] | None = None

    def keep_session(self, session_id: str) -> None:
        """From now on send a session's id to whoever answered last, and to nobody else.

        An empty one is none.
        """
        self._session = (self._answered, session_id) if session_id else None

    def exchange(
        self,
        verb: str,
        body: bytes,
        headers: Mapping[str, str],
        is_last: IsLast = lambda _: False,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request with its redirects: status, headers by lower-case names, and body.

        Args:
            verb: Of HTTP.
            body: Sent.
            headers: Beside those of the client.
            is_last: Whether the data of an event of a stream is the last that is wanted.

        Raises:
            McpError: It can't be sent, or the answer is none that is taken.
        """
        url, sent = self._server.url, {**self._server.headers, **headers}
        for _ in range(MAX_REDIRECTS + 1):
            told = dict(sent)
            if self._session is not None and self._session[0] == _origin(url):
                told["Mcp-Session-Id"] = self._session[1]
            try:
                status, answered, found = self._once(urlsplit(url), verb, body, told, is_last)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = _printable(str(error)[:200]) or type(error).__name__
                raise McpError(
                    f"the server can't be reached, or ended in the middle ({reason})",
                    kind="http_error",
                    code=502,
                ) from error
            if status not in (301, 302, 303, 307, 308):
                self._answered = _origin(url)
                return status, answered, found
            if status not in (307, 308):
                raise McpError(
                    f"the server redirects with {status}, which would turn a POST into a GET",
                    kind="http_error",
                    code=status,
                )
            there = urljoin(url, answered.get("location", ""))
            self._check_redirect(url, there, status)
            if _origin(there) != _origin(url):
                sent = dict(headers)  # what the client gave is for the first server alone
            url = there
        raise McpError("the server redirects without end", kind="http_error", code=508)

    def _check_redirect(self, url: str, there: str, status: int) -> None:
        # Other paths of a server's own origin are its own affair; what else another origin serves
        # was never meant to be reached from here.
        listed = {_target(one) for one in (self._server.url, *self._server.listed)}
        if _origin(there) != _origin(url) and _target(there) not in listed:
            raise McpError(
                "the server redirects to where PENSTOCK_MCP_SERVERS lists no server",
                kind="http_error",
                code=status,
            )

    def _once(
        self,
        url: SplitResult,
        verb: str,
        body: bytes,
        headers: Mapping[str, str],
        is_last: IsLast,
    ) -> tuple[int, dict[str, str], bytes]:
        is_tls, host = url.scheme == "https", url.hostname or ""
        port = url.port or (443 if is_tls else 80)
        addresses = self._addresses(host, port)
        connection = _Connection(host, port, addresses, is_tls=is_tls)
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        try:
            connection.request(verb, path, body or None, dict(headers))
            answer = connection.getresponse()
            answered = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answered, _body(answer, answered, is_last)
        finally:
            connection.close()

    def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, which may all be connected to.

        Raises:
            McpError: The host is unknown, or leads inside without being listed.
        """
        try:
            return [str(ipaddress.ip_address(host))]  # written out in a URL that is listed
        except ValueError:
            pass
        try:
            found = self._resolve(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise McpError(f"the host {host} is not known", kind="http_error", code=502) from error
        addresses = [str(one[4][0]).partition("%")[0] for one in found[:MAX_ADDRESSES]]
        networks = [ipaddress.ip_network(one) for one in self._server.networks]
        for text in addresses:
            address = unwrapped(ipaddress.ip_address(text))
            is_listed = host == "localhost" or any(address in one for one in networks)
            if is_internal(address) and not is_listed:
                raise McpError(
                    f"{host} leads to {address}, which is no public address; list it in"
                    " PENSTOCK_INTERNAL_TARGETS if that is meant",
                    kind="http_error",
                    code=502,
                )
        if not addresses:
            raise McpError(f"the host {host} has no address", kind="http_error", code=502)
        return addresses


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever its name says by now."""

    def __init__(self, host: str, port: int, addresses: Sequence[str], *, is_tls: bool) -> None:
        super().__init__(host, port, timeout=SOCKET_TIMEOUT_S)
        self.default_port = 443 if is_tls else 80  # what `Host` leaves out
        self._addresses = addresses
        self._is_tls = is_tls

    def connect(self) -> None:
        """Connect to the first address that takes it; certificates are checked against the name."""
        self.sock = self._connected()
        if self._is_tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    def _connected(self) -> socket.socket:
        *others, last = self._addresses
        for address in others:
            # Often a server listens on one of two, as `localhost` is `::1` and `127.0.0.1`.
            with contextlib.suppress(OSError):
                found = socket.create_connection((address, self.port), CONNECT_TIMEOUT_S)
                found.settimeout(self.timeout)
                return found
        return socket.create_connection((last, self.port), self.timeout)


def _printable(text: str) -> str:
    """A reason that may quote what a server sent, without its control characters."""
    return "".join(one if one.isprintable() else " " for one in text).strip()


def _origin(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ("", "", 0)
    return parts.scheme, parts.hostname or "", port


def _target(url: str) -> tuple[tuple[str, str, int], str, str]:
    """What of a URL decides who answers and with what."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _origin(url), "", ""
    return _origin(url), parts.path or "/", parts.query


def _body(answer: http.client.HTTPResponse, headers: Mapping[str, str], is_last: IsLast) -> bytes:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise McpError("the server's answer is compressed, which was not asked for")
    if headers.get("content-type", "").lower().startswith("text/event-stream"):
        return b"".join(_lines_to_the_last(answer, is_last))
    body = answer.read(MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise McpError(f"the server's answer has more than {MAX_ANSWER_BYTES} bytes")
    return body


def _lines_to_the_last(answer: http.client.HTTPResponse, is_last: IsLast) -> Iterator[bytes]:
    """The lines of a stream up to the last event that is wanted; a stream may stay open."""
    total, data, has_id = 0, b"", False
    while line := _line(answer, is_resumable=has_id):
        total += len(line)
        has_id = has_id or line.startswith(b"id:")
        if total > MAX_ANSWER_BYTES:
            raise McpError(f"the server's answer has more than {MAX_ANSWER_BYTES} bytes")
        yield line
        if line.startswith(b"data:"):
            data += line
        elif not line.strip():
            if any(is_last(one) for one in event_data(data + b"\n")):
                return
            data = b""


def _line(answer: http.client.HTTPResponse, *, is_resumable: bool) -> bytes:
    """The next line of a stream; a stream that can be resumed may break like one that ends."""
    try:
        return answer.readline(MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException):
        if is_resumable:
            return b""
        raise


def resume_point(
    body: bytes, last_id: str = "", retry_s: float = DEFAULT_RETRY_S
) -> tuple[str, float]:
    """From where a stream goes on, and after how many seconds it may be asked for.

    Args:
        body: What was read of the stream.
        last_id: Where it went on the last time.
        retry_s: What it said the last time.
    """
    for line in body.splitlines():
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"id" and re.fullmatch(r"[ -~]{0,1024}", text):
            last_id = text.strip()
        elif name == b"retry" and re.fullmatch(r"[0-9]{1,9}", text):
            retry_s = int(text) / 1000
    return last_id, retry_s


def event_data(body: bytes) -> list[bytes]:
    """The data of server-sent events."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in (*body.splitlines(), b""):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            events.append(b"\n".join(data))
            data = []
    return events
