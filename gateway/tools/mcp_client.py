"""Speaks MCP with one server: streamable HTTP of 2026-07-28, and of 2025-03-26 to 2025-11-25.

It runs in a process of its own and blocks. Whatever a server does wrong is an `McpError`.
See https://modelcontextprotocol.io/specification/2026-07-28 and ADR 52.
"""

import base64
import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.tools.mcp_http import (
    MAX_ANSWER_BYTES,
    McpError,
    McpHttp,
    Resolve,
    Server,
    event_data,
    resume_point,
)

NEWEST: Final = "2026-07-28"
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Of the handshake; the first one that a server may speak is proposed."""
MAX_PAGES: Final = 32
MAX_RESUMPTIONS: Final = 16
"""Of one stream that its server ends before it has answered."""
MAX_ROUNDS: Final = 16
"""Of a call that the server wants to be made again with what it said."""
MAX_SERVER_REQUESTS: Final = 64
"""That are answered for one question; more make it an error."""
_UNSUPPORTED_VERSION: Final = -32022
_METHOD_NOT_FOUND: Final = -32601
_META: Final = "io.modelcontextprotocol/"
_PLAIN_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_SESSION_ID: Final = re.compile(r"[!-~]{1,1024}")
_REFUSALS: Final = (401, 403, 429)
"""Answers that say nothing about the version of the protocol."""


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
        sleep: Waits for so many seconds, before a stream is resumed.
    """

    def __init__(
        self,
        server: Server,
        resolve: Resolve = socket.getaddrinfo,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = McpHttp(server, resolve)
        self._sleep = sleep
        self._num_asked = 0
        self._num_server_requests = 0
        self._version = ""
        self._has_session = False

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
        result, error = message.get("result"), message.get("error")
        supported = result.get("supportedVersions") if isinstance(result, dict) else None
        if isinstance(error, dict) and error.get("code") == _UNSUPPORTED_VERSION:
            data = error.get("data")
            supported = data.get("supported") if isinstance(data, dict) else None
            supported = supported if isinstance(supported, list) else []
        if isinstance(supported, list):
            if NEWEST not in supported:
                self._shake_hands(supported)
            return
        if answer.status >= 500:
            raise _status_error(answer.status)
        self._shake_hands(list(LEGACY))  # anything else is a server of before 2026-07-28

    def close(self) -> None:
        """End the session, where there is one; what the server says to that is of no interest."""
        if self._has_session:
            with contextlib.suppress(McpError):
                self._http.exchange("DELETE", b"", self._request_headers("", ""))
            self._has_session = False

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
        params = {"name": name, "arguments": dict(arguments)}
        for _ in range(MAX_ROUNDS):
            result = self._result("tools/call", params, extra)
            if result.get("resultType") != "input_required":
                return result
            state = result.get("requestState")
            if result.get("inputRequests") or not isinstance(state, str):
                raise McpError("the tool asks for more input in the middle, which is not served")
            params["requestState"] = state  # as it is: the server alone knows what it means
        raise McpError(f"the tool wants to be called more than {MAX_ROUNDS} times for one answer")

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
        self._version, self._has_session = str(version), bool(session_id)
        if session_id:
            self._http.keep_session(session_id)
        body = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
        status, _, _ = self._http.exchange("POST", body, self._request_headers("", ""))
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
        if answer.status == 404 and self._has_session:
            self._has_session = False
            self._http.keep_session("")
            self._shake_hands(LEGACY)  # the server has forgotten the session, and did nothing
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
        number = self._num_asked
        self._num_server_requests = 0
        status, answered, body = self._http.exchange(
            "POST", json.dumps(question).encode(), headers, lambda data: self._hear(data, number)
        )
        if not _is_stream(answered):
            return _Answer(status, answered, _response(body, number))
        message = _answer_in(body, number)
        if message is None and self._version in LEGACY:
            message = self._resumed(body, number)
        return _Answer(status, answered, message)

    def _hear(self, data: bytes, number: int) -> bool:
        """Whether an event is the answer; what the server asks in between is answered.

        Raises:
            McpError: It asks too much.
        """
        if _response(data, number) is not None:
            return True
        try:
            asked = json.loads(data)
        except (ValueError, RecursionError):
            return False
        # Since 2026-07-28 servers ask nothing on streams.
        is_request = isinstance(asked, dict) and isinstance(asked.get("method"), str)
        if not is_request or asked.get("id") is None or self._version not in LEGACY:
            return False
        self._num_server_requests += 1
        if self._num_server_requests > MAX_SERVER_REQUESTS:
            raise McpError(f"the server asks more than {MAX_SERVER_REQUESTS} times for one answer")
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": asked["id"]}
        if asked["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": _METHOD_NOT_FOUND, "message": "Method not found"}
        body = json.dumps(answer).encode()
        self._http.exchange("POST", body, self._request_headers("", ""))
        return False

    def _resumed(self, body: bytes, number: int) -> dict[str, Any] | None:
        """The answer out of the rest of a stream that ended before it; None where it isn't there.

        Servers of 2025-11-25 end streams of long calls on purpose.
        """
        last_id, retry_s = resume_point(body)
        for _ in range(MAX_RESUMPTIONS):
            if not last_id:
                return None
            self._sleep(retry_s)
            headers = self._request_headers("", "")
            headers["Accept"] = "text/event-stream"
            headers["Last-Event-ID"] = last_id
            status, answered, body = self._http.exchange(
                "GET", b"", headers, lambda data: self._hear(data, number)
            )
            if status != 200 or not _is_stream(answered):
                return None
            message = _answer_in(body, number)
            if message is not None:
                return message
            last_id, retry_s = resume_point(body, last_id, retry_s)
        return None

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
        return headers


def _is_stream(headers: Mapping[str, str]) -> bool:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "text/event-stream"


def _answer_in(body: bytes, number: int) -> dict[str, Any] | None:
    """The JSON-RPC response among the events of a stream."""
    found = (_response(data, number) for data in event_data(body))
    return next((one for one in found if one is not None), None)


def _response(text: bytes, number: int) -> dict[str, Any] | None:
    """The JSON-RPC response to a question; None where a text is something else."""
    try:
        value = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    is_response = isinstance(value, dict) and ("result" in value or "error" in value)
    if not is_response or value.get("jsonrpc") != "2.0":
        return None
    # An error may come without the id of its question, where the server didn't read so far.
    if value.get("id") != number and not (value.get("id") is None and "error" in value):
        return None
    return dict(value)


def _integer(text: str) -> int | float:
    """A number as it is; one that is too long for Python is infinite, and spoils what it is in."""
    try:
        return int(text)
    except ValueError:
        return float(text)


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
