"""Headers of a request by name: whatever Starlette says of them, without reading all each time; and
answers, of which HEAD gets no more than the head."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from starlette.datastructures import Headers
from starlette.responses import StreamingResponse

from gateway.http.access.guarded_request import GuardedRequest, HeaderTable, head_of
from gateway.http.routes.stored.files import FileResponse

ONCE = [(b"host", b"here"), (b"content-length", b"12"), (b"x-empty", b""), (b"x-odd", b"\xe9")]
TWICE = [*ONCE, (b"x-api-key", b"first"), (b"x-api-key", b"second")]


@pytest.mark.parametrize("raw", [ONCE, TWICE, []])
@pytest.mark.parametrize("name", ["Host", "content-length", "X-Empty", "x-odd", "X-API-Key", "no"])
def test_what_starlette_says(raw: list[tuple[bytes, bytes]], name: str) -> None:
    scope: dict[str, Any] = {"headers": raw}
    table, other = HeaderTable(scope), Headers(raw=raw)
    assert table.get(name) == other.get(name)
    assert table.get(name, "else") == other.get(name, "else")
    assert table.getlist(name) == other.getlist(name)
    assert (name in table) == (name in other)
    assert table == other
    if name in other:
        assert table[name] == other[name]
    else:
        with pytest.raises(KeyError):
            _ = table[name]


def test_a_request_makes_its_table_once() -> None:
    async def nobody(*_: Any) -> Any: ...

    request = GuardedRequest({"type": "http", "headers": TWICE}, nobody, nobody)
    assert isinstance(request.headers, HeaderTable)
    assert request.headers is request.headers
    assert request.headers.items() == Headers(raw=TWICE).items()


async def sent_by(response: Response, spec_version: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def nothing_more() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "HEAD", "asgi": {"spec_version": spec_version}}
    await head_of(response)(scope, nothing_more, send)
    return sent


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_head_waits_for_no_body(tmp_path: Path, spec_version: str) -> None:
    """That of a stream may come when a response has ended, and a file may be long."""

    async def endless() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    path = tmp_path / "a"
    path.write_bytes(b"x" * 1_000_000)
    file = path.open("rb", 0)
    for response, length in (
        (StreamingResponse(endless()), None),
        (FileResponse(file), b"1000000"),
        (Response(b"whole"), b"5"),
    ):
        start, end = await sent_by(response, spec_version)
        assert dict(start["headers"]).get(b"content-length") == length
        assert end == {"type": "http.response.body", "body": b"", "more_body": False}
    assert file.closed
