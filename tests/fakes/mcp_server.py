"""An MCP server as a process of its own, good or bad by the path that it is asked under.

`python -m tests.fakes.mcp_server` prints its port. Paths are `/VERSION/FORM/BEHAVIOUR`: `modern`
(2026-07-28) or `legacy` (the handshake, with a session), `json` or `sse`, and what it does wrong.
What it was asked is at `GET /asked`.
"""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx

ADD: dict[str, Any] = {
    "name": "add",
    "description": "Adds two numbers.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "x-mcp-header": "First"},
            "b": {"type": "integer"},
        },
        "required": ["a", "b"],
    },
    "annotations": {"readOnlyHint": True},
}
FAIL = {"name": "fail", "inputSchema": {"type": "object"}}
SECRET = {"name": "secret", "inputSchema": {"type": "object"}}
WRONG = {"name": "wrong", "inputSchema": {"type": "object", "x-mcp-header": "No"}}
_TOO_LONG = "a number of 5000 digits"
"""Stands for itself: Python writes none."""
ODD = [
    {"name": f"odd{number}", "inputSchema": {"type": "object", "default": {"n": value}}}
    for number, value in enumerate((math.inf, math.nan, 10**400, _TOO_LONG))
]
KEYS = {
    "name": "keys",
    "inputSchema": {
        "type": "object",
        "properties": {"caf\udce9": {}, "of token-of-the-client": {}},
    },
}
TOOLS = [ADD, FAIL, SECRET, WRONG, {"name": 7}, "none", {"name": "no_schema"}]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]] = []
    forever: ClassVar[threading.Event] = threading.Event()

    def log_message(self, *_args: Any) -> None: ...

    def do_GET(self) -> None:
        body = json.dumps(self.asked).encode()
        self._send(200, "application/json", body)

    def do_DELETE(self) -> None:
        self._note("DELETE", {})
        self._send(200, "application/json", b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        question = json.loads(body)
        self._note(question["method"], question)
        _, version, form, behaviour = (*self.path.split("?")[0].split("/"), "", "")[:4]
        method = question["method"]
        if behaviour == "hangs" or (behaviour == "hangs_later" and method == "tools/call"):
            self.forever.wait()
        if behaviour == "circles":
            self._send(308, "text/plain", b"", {"Location": self.path})
            return
        if behaviour == "redirects" or (behaviour == "moves" and method.startswith("tools/")):
            target = self.path.split("?", 1)[1]
            self._send(307, "text/plain", b"", {"Location": target})
            return
        if behaviour.isdecimal():
            self._send(int(behaviour), "text/plain", b"no")
            return
        if behaviour == "garbage":
            self._send(200, "application/json", b"[1, 2")
            return
        if behaviour == "no_http":
            self.wfile.write(b"\x00\x1b[2J\x9bnonsense\r\n\r\n")
            self.close_connection = True
            return
        if behaviour == "dies":
            self.close_connection = True
            return
        if version == "legacy" and not self._is_legacy(method):
            return
        if version == "modern" and method == "initialize":
            self._answer(form, question, error={"code": -32601, "message": "no handshake"})
            return
        if behaviour == "another_id" and method.startswith("tools/"):
            question["id"] = 99
        self._serve(form, behaviour, question)

    def _is_legacy(self, method: str) -> bool:
        """A server of 2025-06-18 wants a session for everything but its beginning."""
        if method == "initialize":
            return True
        if self.headers.get("Mcp-Session-Id") != "session-1":
            self._send(400, "application/json", b'{"detail": "Missing session"}')
            return False
        return True

    def _serve(self, form: str, behaviour: str, question: dict[str, Any]) -> None:
        method, params = question["method"], question.get("params", {})
        if method == "notifications/initialized":
            self._send(202, "text/plain", b"")
        elif method == "initialize":
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
            extra = {"Mcp-Session-Id": "session-1"}
            self._answer(form, question, result=result, extra=extra)
        elif method == "server/discover":
            self._answer(form, question, result={"supportedVersions": ["2026-07-28"]})
        elif method == "tools/list":
            self._answer(form, question, result=self._list(behaviour, params))
        elif method == "tools/call":
            self._call(form, behaviour, question, params)
        else:
            self._answer(form, question, error={"code": -32601, "message": "Method not found"})

    def _list(self, behaviour: str, params: dict[str, Any]) -> dict[str, Any]:
        if behaviour == "cyclic":
            return {"tools": [], "nextCursor": "again"}
        if behaviour == "endless":
            number = int(params.get("cursor", "0"))
            return {"tools": [], "nextCursor": str(number + 1)}
        if behaviour == "many":
            return {"tools": [{**ADD, "name": f"add{number}"} for number in range(1000)]}
        if behaviour == "huge":
            return {"tools": [{**ADD, "description": "x" * 10_000_000}]}
        if behaviour == "odd_schemas":
            return {"tools": [*ODD, KEYS, ADD]}
        if behaviour == "no_list":
            return {"tools": {"add": ADD}}
        if behaviour == "pages" and "cursor" not in params:
            return {"tools": [], "nextCursor": "2"}
        return {"tools": TOOLS}

    def _call(
        self, form: str, behaviour: str, question: dict[str, Any], params: dict[str, Any]
    ) -> None:
        name, arguments = params["name"], params["arguments"]
        if behaviour == "long_answers":
            text = "x" * 100_000
        elif behaviour == "half_characters":
            text = "a\ud800b"
        elif name == "add":
            text = str(arguments["a"] + arguments["b"])
        elif name == "secret":
            text = f"you sent {self.headers.get('Authorization')}"
        elif name == "fail":
            content = [{"type": "text", "text": "it broke"}]
            self._answer(form, question, result={"content": content, "isError": True})
            return
        else:
            error = {"code": -32602, "message": f"Unknown tool: {name}"}
            self._answer(form, question, error=error)
            return
        result = {"resultType": "complete", "content": [{"type": "text", "text": text}]}
        self._answer(form, question, result=result)

    def _answer(
        self,
        form: str,
        question: dict[str, Any],
        *,
        extra: dict[str, str] | None = None,
        **told: Any,
    ) -> None:
        message = {"jsonrpc": "2.0", "id": question["id"], **told}
        text = json.dumps(message).replace(f'"{_TOO_LONG}"', "9" * 5000)
        if form != "sse":
            self._send(200, "application/json", text.encode(), extra)
            return
        progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
        lines = f": hello\r\n\r\ndata: {json.dumps(progress)}\r\n\r\n"
        lines += f"event: message\r\nid: 1\r\ndata: {text}\r\n\r\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(lines.encode())
        self.wfile.flush()
        # The stream stays open, as that of a server that forgets to end it does.
        self.close_connection = True
        if question["id"] != 99:
            self.connection.settimeout(20)
            with suppress(OSError):
                self.rfile.read(1)

    def _send(
        self, status: int, kind: str, body: bytes, extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _note(self, method: str, question: dict[str, Any]) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append(
            {"path": self.path, "method": method, "headers": headers, "question": question}
        )


class FakeMcpServer:
    """The process, as a test sees it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, path: str = "/modern/json") -> str:
        """Of one behaviour."""
        return f"http://127.0.0.1:{self.port}{path}"

    def asked(self, method: str = "") -> list[dict[str, Any]]:
        """What it was asked so far; of one method where one is named."""
        found: list[dict[str, Any]] = httpx.get(self.url("/asked"), trust_env=False).json()
        return [one for one in found if not method or one["method"] == method]


@contextmanager
def mcp_server() -> Iterator[FakeMcpServer]:
    """Start the process, and end it."""
    command = [sys.executable, "-m", "tests.fakes.mcp_server"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True)
    try:
        assert process.stdout is not None
        yield FakeMcpServer(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
