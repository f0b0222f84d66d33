"""Speaks MCP with one server: streamable HTTP of 2026-07-28, and of 2025-03-26 to 2025-11-25.

It runs in a process of its own and blocks. Every answer is bounded, addresses are checked before
anything is sent, redirects lead to listed servers only, and whatever a server does wrong is an
`McpError`. See https://modelcontextprotocol.io/specification/2026-07-28 and ADR 52.
"""

import base64
import contextlib
import http.client
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from protocol.runtime.addresses import is_internal, unwrapped

NEWEST: Final = "2026-07-28"
LEGACY: Final = ("2025-06-18", "2025-11-25", "2025-03-26")
"""Of the handshake; the first one is proposed."""
MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_PAGES: Final = 32
MAX_REDIRECTS: Final = 3
MAX_ADDRESSES: Final = 16
SOCKET_TIMEOUT_S: Final = 600.0
"""Between two reads; the process as a whole is killed much earlier."""
_UNSUPPORTED_VERSION: Final = -32022
_META: Final = "io.modelcontextprotocol/"
_PLAIN_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_SESSION_ID: Final = re.compile(r"[!-~]{1,1024}")
_REFUSALS: Final = (401, 403, 429)
"""Answers that say nothing about the version of the protocol."""

Resolve = Callable[..., Sequence[tuple[Any, ...]]]
"""As `socket.getaddrinfo`."""


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
        listed: URLs of all servers that the operator lists; redirects may lead there.
        networks: Internal networks that names may lead to.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


@dataclass(slots=True)
class _Answer:
    """What a server answered.

    Attributes:
        message: A JSON-RPC response; None where the body holds none.
    """

    status: int
    headers: Mapping[str, str]
    message: dict[str, Any] | None


class McpClient:
    """Asks one server.

    Args:
        server: Which.
        resolve: Asks the name service.
    """

    def __init__(self, server: Server, resolve: Resolve = socket.getaddrinfo) -> None:
        self._server = server
        self._resolve = resolve
        self._num_asked = 0
        self._version = ""
        self._session_id = ""

    def open(self) -> None:
        """Find out which version the server speaks, with the handshake where there is one.

        Raises:
            McpError: It speaks none of ours, or doesn't answer.
        """
        self._version = NEWEST
        answer = self._post("server/discover", {})
        message = answer.message or {}
        if answer.status in _REFUSALS:
            raise _status_error(answer.status)
        if isinstance(message.get("result"), dict):
            supported = message["result"].get("supportedVersions")
            if not isinstance(supported, list) or NEWEST in supported:
                return
            self._shake_hands(supported)
            return
        error = message.get("error")
        if isinstance(error, dict) and error.get("code") == _UNSUPPORTED_VERSION:
            data = error.get("data")
            supported = data.get("supported") if isinstance(data, dict) else None
            self._shake_hands(supported if isinstance(supported, list) else [])
            return
        if answer.status >= 500:
            raise _status_error(answer.status)
        self._shake_hands(list(LEGACY))  # anything else is a server of before 2026-07-28

    def close(self) -> None:
        """End the session, where there is one; what the server says to that is of no interest."""
        if self._session_id:
            with contextlib.suppress(McpError):
                self._exchange("DELETE", b"", self._request_headers("", ""))
            self._session_id = ""

    def list_tools(self) -> list[Any]:
        """All tools as the server describes them, page by page.

        Raises:
            McpError: The list is wrong, or has no end.
        """
        found: list[Any] = []
        cursors: set[str] = set()
        params: dict[str, Any] = {}
        num_bytes = 0
        for _ in range(MAX_PAGES):
            result = self._result("tools/list", params)
            page, cursor = result.get("tools"), result.get("nextCursor")
            if not isinstance(page, list):
                raise McpError("the server's list of tools is no list")
            num_bytes += len(json.dumps(page))
            if num_bytes > MAX_ANSWER_BYTES:
                raise McpError(f"the server's list of tools has more than {MAX_ANSWER_BYTES} bytes")
            found += page
            if cursor is None:
                return found
            if not isinstance(cursor, str) or cursor in cursors:
                raise McpError("the server's list of tools has no end: a cursor comes twice")
            cursors.add(cursor)
            params = {"cursor": cursor}
        raise McpError(f"the server's list of tools has more than {MAX_PAGES} pages")

    def call_tool(
        self, name: str, arguments: Mapping[str, Any], schema: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The result of a tool, as the server tells it.

        Args:
            name: Of the tool.
            arguments: By name.
            schema: Of the arguments, as the server listed it.

        Raises:
            McpError: The server refused, or its answer is wrong.
        """
        extra = {"Mcp-Name": _header_value(name)}
        if self._version == NEWEST:
            for header, path in mirrored_parameters(schema):
                value: Any = arguments
                for part in path:
                    value = value.get(part) if isinstance(value, dict) else None
                if isinstance(value, str | int):
                    text = str(value).lower() if isinstance(value, bool) else str(value)
                    extra[f"Mcp-Param-{header}"] = _header_value(text)
        result = self._result("tools/call", {"name": name, "arguments": dict(arguments)}, extra)
        if result.get("resultType") == "input_required":
            raise McpError("the tool asks for more input in the middle, which is not served")
        return result

    def _shake_hands(self, supported: Sequence[Any]) -> None:
        offered = [version for version in LEGACY if version in supported]
        if not offered:
            raise McpError("the server speaks no version of MCP that this one speaks")
        self._version = ""
        proposed = {
            "protocolVersion": offered[0],
            "capabilities": {},
            "clientInfo": {"name": "penstock", "version": "1"},
        }
        answer = self._asked("initialize", proposed)
        result = _result_of(answer)
        version = result.get("protocolVersion")
        if version not in LEGACY:
            raise McpError(f"the server speaks MCP {str(version)[:50]}, which this one doesn't")
        session_id = answer.headers.get("mcp-session-id", "")
        if session_id and not _SESSION_ID.fullmatch(session_id):
            raise McpError("the server's session id is none")
        self._version, self._session_id = str(version), session_id
        body = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
        status, _, _ = self._exchange("POST", body, self._request_headers("", ""))
        if status >= 400:
            raise _status_error(status)

    def _result(
        self, method: str, params: Mapping[str, Any], extra: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        return _result_of(self._asked(method, params, extra))

    def _asked(
        self, method: str, params: Mapping[str, Any], extra: Mapping[str, str] | None = None
    ) -> _Answer:
        answer = self._post(method, params, extra)
        if answer.message is None:
            if answer.status >= 400:
                raise _status_error(answer.status)
            raise McpError("the server's answer is no JSON-RPC response")
        return answer

    def _post(
        self, method: str, params: Mapping[str, Any], extra: Mapping[str, str] | None = None
    ) -> _Answer:
        self._num_asked += 1
        params = dict(params)
        if self._version == NEWEST:
            params["_meta"] = {
                _META + "protocolVersion": NEWEST,
                _META + "clientInfo": {"name": "penstock", "version": "1"},
                _META + "clientCapabilities": {},
            }
        question = {"jsonrpc": "2.0", "id": self._num_asked, "method": method, "params": params}
        name = (extra or {}).get("Mcp-Name", "")
        headers = {**self._request_headers(method, name), **(extra or {})}
        if self._version != NEWEST:
            headers.pop("Mcp-Name", None)
        status, answered, body = self._exchange("POST", json.dumps(question).encode(), headers)
        kind = answered.get("content-type", "").partition(";")[0].strip().lower()
        messages = _event_data(body) if kind == "text/event-stream" else [body]
        found = (_response(text, self._num_asked) for text in messages)
        return _Answer(status, answered, next((one for one in found if one is not None), None))

    def _request_headers(self, method: str, name: str) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Accept-Encoding": "identity",
            "User-Agent": "penstock",
        }
        if self._version:
            headers["MCP-Protocol-Version"] = self._version
        if self._version == NEWEST:
            headers["Mcp-Method"] = method
        if self._session_id:
            headers["Mcp-Session-Id"] = self._session_id
        return headers

    def _exchange(
        self, verb: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """One request with its redirects; a stream is read up to the response that it holds."""
        url, sent = self._server.url, {**self._server.headers, **headers}
        for _ in range(MAX_REDIRECTS + 1):
            try:
                status, answered, found = self._once(urlsplit(url), verb, body, sent)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = type(error).__name__ if not str(error) else str(error)[:200]
                raise McpError(
                    f"the server can't be reached, or ended in the middle ({reason})",
                    kind="http_error",
                    code=502,
                ) from error
            if status not in (301, 302, 303, 307, 308):
                return status, answered, found
            if status not in (307, 308):
                raise McpError(
                    f"the server redirects with {status}, which would turn a POST into a GET",
                    kind="http_error",
                    code=status,
                )
            there = urljoin(url, answered.get("location", ""))
            self._check_redirect(there, status)
            if _origin(there) != _origin(url):
                sent = dict(headers)  # what the client gave is for the first server alone
            url = there
        raise McpError("the server redirects without end", kind="http_error", code=508)

    def _check_redirect(self, url: str, status: int) -> None:
        allowed = {_origin(one) for one in (self._server.url, *self._server.listed)}
        if _origin(url) not in allowed:
            raise McpError(
                "the server redirects to where PENSTOCK_MCP_SERVERS lists no server",
                kind="http_error",
                code=status,
            )

    def _once(
        self, url: SplitResult, verb: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        is_tls, host = url.scheme == "https", url.hostname or ""
        port = url.port or (443 if is_tls else 80)
        address = self._address(host, port)
        connection = _Connection(host, port, address, is_tls=is_tls)
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        try:
            connection.request(verb, path, body or None, dict(headers))
            answer = connection.getresponse()
            answered = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answered, self._body(answer, answered)
        finally:
            connection.close()

    def _body(self, answer: http.client.HTTPResponse, headers: Mapping[str, str]) -> bytes:
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise McpError("the server's answer is compressed, which was not asked for")
        if headers.get("content-type", "").lower().startswith("text/event-stream"):
            return b"".join(self._lines_to_the_response(answer))
        body = answer.read(MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            raise McpError(f"the server's answer has more than {MAX_ANSWER_BYTES} bytes")
        return body

    def _lines_to_the_response(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """The lines of a stream up to the event with our response; a stream may stay open."""
        total, data = 0, b""
        while line := answer.readline(MAX_ANSWER_BYTES + 1):
            total += len(line)
            if total > MAX_ANSWER_BYTES:
                raise McpError(f"the server's answer has more than {MAX_ANSWER_BYTES} bytes")
            yield line
            if line.startswith(b"data:"):
                data += line
            elif not line.strip():
                events = _event_data(data + b"\n")
                if any(_response(one, self._num_asked) is not None for one in events):
                    return
                data = b""

    def _address(self, host: str, port: int) -> str:
        """An address of a host that may be connected to.

        Raises:
            McpError: The host is unknown, or leads inside without being listed.
        """
        try:
            return str(ipaddress.ip_address(host))  # written out in a URL that is listed
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
        return addresses[0]


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever its name says by now."""

    def __init__(self, host: str, port: int, address: str, *, is_tls: bool) -> None:
        super().__init__(host, port, timeout=SOCKET_TIMEOUT_S)
        self.default_port = 443 if is_tls else 80  # what `Host` leaves out
        self._address = address
        self._is_tls = is_tls

    def connect(self) -> None:
        """Connect to the address; certificates are checked against the name."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._is_tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def _origin(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ("", "", 0)
    return parts.scheme, parts.hostname or "", port


def _event_data(body: bytes) -> list[bytes]:
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


def _response(text: bytes, number: int) -> dict[str, Any] | None:
    """The JSON-RPC response to a question; None where a text is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_response = isinstance(value, dict) and ("result" in value or "error" in value)
    if not is_response or value.get("jsonrpc") != "2.0":
        return None
    # An error may come without the id of its question, where the server didn't read so far.
    if value.get("id") != number and not (value.get("id") is None and "error" in value):
        return None
    return dict(value)


def _result_of(answer: _Answer) -> dict[str, Any]:
    message = answer.message or {}
    error = message.get("error")
    if error is not None:
        code = error.get("code") if isinstance(error, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        raise McpError(
            said if isinstance(said, str) and said else "the server refused, and says not why",
            code=code if isinstance(code, int) and abs(code) < 2**31 else -32603,
        )
    result = message.get("result")
    if not isinstance(result, dict):
        raise McpError("the server's result is no object")
    return result


def _status_error(status: int) -> McpError:
    reason = http.client.responses.get(status, "")
    return McpError(
        f"the server answered with HTTP {status} {reason}".rstrip(), kind="http_error", code=status
    )


def _header_value(text: str) -> str:
    """A value as a header of MCP holds it."""
    is_plain = _PLAIN_VALUE.fullmatch(text) is not None
    if is_plain and not (text.startswith("=?base64?") and text.endswith("?=")):
        return text
    return f"=?base64?{base64.b64encode(text.encode('utf-8', 'surrogatepass')).decode()}?="


def mirrored_parameters(schema: Any) -> list[tuple[str, tuple[str, ...]]]:
    """The parameters that travel in headers as well (`x-mcp-header`): header name and path.

    Raises:
        ValueError: The schema says so where it may not, or of what it may not.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    waiting: list[tuple[Any, tuple[str, ...], bool]] = [(schema, (), True)]
    while waiting:
        value, path, is_reachable = waiting.pop()
        if isinstance(value, list):
            waiting += [(one, path, False) for one in value]
            continue
        if not isinstance(value, dict):
            continue
        if "x-mcp-header" in value:
            name = value["x-mcp-header"]
            is_good = isinstance(name, str) and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
            is_primitive = value.get("type") in ("integer", "string", "boolean")
            if not (is_good and is_primitive and is_reachable and path):
                raise ValueError("x-mcp-header")
            found.append((name, path))
        for key, part in value.items():
            if key == "properties" and isinstance(part, dict):
                waiting += [(one, (*path, str(own)), is_reachable) for own, one in part.items()]
            elif key not in ("const", "enum", "default", "examples"):
                waiting.append((part, path, False))
    if len({name.lower() for name, _ in found}) < len(found):
        raise ValueError("x-mcp-header")
    return sorted(found)
