"""HTTP servers that answer a template: FastAPI with a pydantic body, and raw ASGI; no engine.

    python -m benchmarks.gateway_peers.servers fastapi --template FILE --port-file FILE

The template holds what a gateway answered: `answer`, a whole JSON body, and for each kind of stream
its pieces, one a token. A request says which it wants: `stream` or not, and by its `max_tokens`
which stream; with `user` "hold" only the first piece comes. Each piece waits for its turn of the
event loop, as events do that come one step after the other. They end with their standard input.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_HOLD = "hold"
_PATH = "/v1/chat/completions"


class Template:
    """The bytes to answer with.

    Args:
        path: Of a JSON file: `{"answer": str, "streams": {max_tokens: [str, ...]}}`.
    """

    def __init__(self, path: Path) -> None:
        value = json.loads(path.read_text(encoding="utf-8"))
        self.answer: bytes = value["answer"].encode()
        self._streams = {
            int(tokens): [piece.encode() for piece in pieces]
            for tokens, pieces in value["streams"].items()
        }

    async def pieces(self, max_tokens: int | None, *, holds: bool) -> AsyncIterator[bytes]:
        """The pieces of one stream, each in a turn of its own; the first alone if it `holds`."""
        for piece in self._streams[max_tokens or 0]:
            yield piece
            if holds:
                await asyncio.Event().wait()
            await asyncio.sleep(0)


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class StreamOptions(BaseModel):
    """What a stream tells beside text."""

    include_usage: bool = False


class ChatBody(BaseModel):
    """A body of the shape of OpenAI's chat completions, its everyday fields."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None


def fastapi_app(template: Template) -> ASGIApp:
    """The route as a FastAPI tutorial writes it."""
    app = FastAPI()

    @app.post(_PATH)
    async def chat(body: ChatBody) -> Response:
        if not body.stream:
            return Response(template.answer, media_type="application/json")
        pieces = template.pieces(body.max_tokens, holds=body.user == _HOLD)
        return StreamingResponse(pieces, media_type="text/event-stream")

    return app


def raw_app(template: Template) -> ASGIApp:
    """The same without any framework: the body parsed, nothing checked."""
    length = str(len(template.answer)).encode()
    plain = [(b"content-type", b"application/json"), (b"content-length", length)]
    events = [(b"content-type", b"text/event-stream; charset=utf-8")]

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        received, message = [], await receive()
        while message["type"] == "http.request":
            received.append(message["body"])
            if not message.get("more_body", False):
                break
            message = await receive()
        body = orjson.loads(b"".join(received))
        is_stream = body.get("stream")
        headers = events if is_stream else plain
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if is_stream:
            holds = body.get("user") == _HOLD
            async for piece in template.pieces(body.get("max_tokens"), holds=False):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                while holds:
                    holds = (await receive())["type"] != "http.disconnect"
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": template.answer})

    return app


APPS = {"fastapi": fastapi_app, "raw": raw_app}


def end_with_stdin() -> None:
    """SIGTERM to this process once whoever started it closes its standard input, or dies."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class _Server(uvicorn.Server):
    """Writes its port once it answers."""

    port_file: Path
    port: int

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        fresh = self.port_file.with_suffix(".new")
        fresh.write_text(str(self.port), encoding="ascii")
        fresh.replace(self.port_file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=tuple(APPS))
    parser.add_argument("--template", type=Path, required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    args = parser.parse_args(arguments)
    end_with_stdin()
    # With the protocol named, Nagle's algorithm is off for the connections, as at the gateway.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(2048)
        server = _Server(
            uvicorn.Config(
                APPS[args.kind](Template(args.template)),
                http="httptools",
                loop="uvloop",
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        server.port_file, server.port = args.port_file, sock.getsockname()[1]
        server.run(sockets=[sock])


if __name__ == "__main__":
    main()
