"""What MCP's conformance suite asks of a client, without the suite: a server that plays each
part."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.tools.mcp_client import MAX_ROUNDS, MAX_SERVER_REQUESTS, McpClient
from gateway.tools.mcp_http import McpError, Server, resume_point

Answer = tuple[int, dict[str, str], bytes]
Play = Callable[[str, dict[str, Any], dict[str, str]], Answer]
"""From verb, question and headers to status, headers and body."""

DONE = {"content": [{"type": "text", "text": "done"}]}
STREAM = {"Content-Type": "text/event-stream"}


def told(question: dict[str, Any], **found: Any) -> Answer:
    message = {"jsonrpc": "2.0", "id": question.get("id"), **found}
    return 200, {"Content-Type": "application/json"}, json.dumps(message).encode()


def event(message: dict[str, Any], head: str = "") -> bytes:
    return f"{head}data: {json.dumps({'jsonrpc': '2.0', **message})}\n\n".encode()


def handshake(question: dict[str, Any], session: str = "") -> Answer | None:
    """What a server of 2025-11-25 says before anything is asked of it."""
    method = question.get("method")
    if method == "server/discover":
        return told(question, error={"code": -32601, "message": "Method not found"})
    if method == "initialize":
        result = {"protocolVersion": question["params"]["protocolVersion"], "capabilities": {}}
        status, headers, body = told(question, result=result)
        return status, {**headers, **({"Mcp-Session-Id": session} if session else {})}, body
    if method == "notifications/initialized":
        return 202, {}, b""
    return None


@contextmanager
def client_of(play: Play) -> Iterator[tuple[McpClient, list[float]]]:
    """A client of a server, and the seconds that it waited."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None: ...

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            question = json.loads(self.rfile.read(length) or b"{}")
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answered, body = play(self.command, question, headers)
            self.send_response(status)
            for name, value in answered.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815  # names of the library

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    waited: list[float] = []
    url = f"http://127.0.0.1:{server.server_address[1]}/mcp"
    try:
        yield McpClient(Server(url), sleep=waited.append), waited
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def called(client: McpClient) -> Any:
    client.open()
    return client.call_tool("t", {}, {})


def test_a_server_that_answers_unknown_methods_with_nothing_gets_the_handshake() -> None:
    methods: list[str] = []

    def play(_verb: str, question: dict[str, Any], _headers: dict[str, str]) -> Answer:
        methods.append(question["method"])
        if question["method"] == "server/discover":
            return told(question, result={})
        return handshake(question) or told(question, result=DONE)

    with client_of(play) as (client, _):
        assert called(client) == DONE
    assert methods == [
        *("server/discover", "initialize", "notifications/initialized", "tools/call"),
    ]


def test_the_newest_version_of_the_handshake_is_proposed() -> None:
    proposed: list[str] = []

    def play(_verb: str, question: dict[str, Any], _headers: dict[str, str]) -> Answer:
        if question["method"] == "initialize":
            proposed.append(question["params"]["protocolVersion"])
        return handshake(question) or told(question, result=DONE)

    with client_of(play) as (client, _):
        called(client)
    assert proposed == ["2025-11-25"]


def test_a_server_that_refuses_a_version_which_it_says_to_speak_is_taken_at_its_word() -> None:
    versions: list[str] = []

    def play(_verb: str, question: dict[str, Any], headers: dict[str, str]) -> Answer:
        versions.append(headers["mcp-protocol-version"])
        if question["method"] == "server/discover":
            data = {"supported": ["2026-07-28"]}
            error = {"code": -32022, "message": "Unsupported protocol version", "data": data}
            return told(question, error=error)
        return told(question, result=DONE)

    with client_of(play) as (client, _):
        assert called(client) == DONE
    assert versions == ["2026-07-28", "2026-07-28"]


def test_a_stream_that_ends_before_its_answer_is_resumed_where_and_when_the_server_says() -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def play(verb: str, question: dict[str, Any], headers: dict[str, str]) -> Answer:
        if (begun := handshake(question, "s1")) is not None:
            return begun
        asked.append((verb, headers.get("last-event-id"), headers.get("mcp-session-id")))
        if verb == "POST":
            return 200, STREAM, b"id: e1\nretry: 250\ndata:\n\n"
        if len(asked) == 2:
            return 200, STREAM, b"id: e2\ndata:\n\n"
        # The number is that of the call: probe, handshake, call.
        return 200, STREAM, event({"id": 3, "result": DONE}, "id: e3\n")

    with client_of(play) as (client, waited):
        assert called(client) == DONE
    assert asked == [("POST", None, "s1"), ("GET", "e1", "s1"), ("GET", "e2", "s1")]
    assert waited == [0.25, 0.25]


def test_a_stream_without_an_id_or_without_end_is_an_error() -> None:
    verbs: list[str] = []
    body = b""

    def play(verb: str, question: dict[str, Any], _headers: dict[str, str]) -> Answer:
        if (begun := handshake(question)) is not None:
            return begun
        verbs.append(verb)
        return 200, STREAM, body

    for one, number in ((b"data:\n\n", 1), (b"id: again\ndata:\n\n", 17)):
        body = one
        verbs.clear()
        with client_of(play) as (client, _), pytest.raises(McpError, match="no JSON-RPC response"):
            called(client)
        assert len(verbs) == number


def test_a_point_to_resume_from_is_bounded_and_plain() -> None:
    assert resume_point(b"id: a\n\nid: b\nretry: 20\n\n") == ("b", 0.02)
    assert resume_point(b"data: x\n\n", "a", 3.0) == ("a", 3.0)
    assert resume_point(b"id: a\x00b\nretry: soon\n\n") == ("", 1.0)
    assert resume_point(b"id: " + b"x" * 2000 + b"\nretry: 9999999999\n\n") == ("", 1.0)


def test_what_a_server_asks_in_between_is_answered() -> None:
    heard: list[dict[str, Any]] = []

    def play(_verb: str, question: dict[str, Any], _headers: dict[str, str]) -> Answer:
        if (begun := handshake(question)) is not None:
            return begun
        if question.get("method") != "tools/call":
            heard.append(question)
            return 202, {}, b""
        ping = event({"id": "p", "method": "ping"})
        wish = event({"id": 7, "method": "elicitation/create", "params": {}})
        note = event({"method": "notifications/progress", "params": {}})
        return 200, STREAM, note + ping + wish + event({"id": question["id"], "result": DONE})

    with client_of(play) as (client, _):
        assert called(client) == DONE
    error = {"code": -32601, "message": "Method not found"}
    assert heard == [
        {"jsonrpc": "2.0", "id": "p", "result": {}},
        {"jsonrpc": "2.0", "id": 7, "error": error},
    ]


def test_a_server_that_asks_without_end_is_an_error() -> None:
    def play(_verb: str, question: dict[str, Any], _headers: dict[str, str]) -> Answer:
        if (begun := handshake(question)) is not None:
            return begun
        return 200, STREAM, event({"id": 1, "method": "ping"}) * (MAX_SERVER_REQUESTS + 1)

    with client_of(play) as (client, _), pytest.raises(McpError, match="asks more than 64 times"):
        called(client)


def test_a_session_that_the_server_forgot_is_begun_anew_once() -> None:
    sessions = iter(["s1", "s2"])
    asked: list[str | None] = []

    def play(_verb: str, question: dict[str, Any], headers: dict[str, str]) -> Answer:
        if question.get("method") == "initialize":
            assert "mcp-session-id" not in headers
            return handshake(question, next(sessions)) or told(question)
        if (begun := handshake(question)) is not None:
            return begun
        asked.append(headers.get("mcp-session-id"))
        is_known = headers.get("mcp-session-id") in known
        return told(question, result=DONE) if is_known else (404, {}, b"")

    known = {"s2"}
    with client_of(play) as (client, _):
        assert called(client) == DONE
    assert asked == ["s1", "s2"]
    known, sessions = set(), iter(["s1", "s2"])
    with client_of(play) as (client, _), pytest.raises(McpError, match="HTTP 404"):
        called(client)


def test_a_call_is_made_again_with_what_the_server_wants_to_hear_of_it() -> None:
    states: list[Any] = []

    def play(_verb: str, question: dict[str, Any], _headers: dict[str, str]) -> Answer:
        if question["method"] == "server/discover":
            return told(question, result={"supportedVersions": ["2026-07-28"]})
        states.append((question["id"], question["params"].get("requestState")))
        if len(states) < rounds:
            again = {"resultType": "input_required", "requestState": ' {"a": 1}', **more}
            return told(question, result=again)
        return told(question, result=DONE)

    rounds, more = 2, dict[str, Any]()
    with client_of(play) as (client, _):
        assert called(client) == DONE
    assert states == [(2, None), (3, ' {"a": 1}')]
    states.clear()
    rounds = MAX_ROUNDS + 2
    with client_of(play) as (client, _), pytest.raises(McpError, match="more than 16 times"):
        called(client)
    # Nothing was declared that a server might ask for.
    states.clear()
    more = {"inputRequests": {"confirm": {"method": "elicitation/create", "params": {}}}}
    with client_of(play) as (client, _), pytest.raises(McpError, match="more input"):
        called(client)
