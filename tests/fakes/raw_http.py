"""HTTP by hand: raw connections to a running gateway, and what comes back on them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.fakes.running_gateway import MESSAGES, RunningGateway

BODY = json.dumps({"model": "demo", "messages": MESSAGES}).encode()
LIVE = b"GET /live HTTP/1.1\r\nHost: localhost\r\n"


def post(
    body: bytes = BODY,
    headers: bytes = b"",
    *,
    length: int | None = None,
    path: str = "/v1/chat/completions",
) -> bytes:
    """A request with a JSON body as bytes; a chat request of one message by default."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
        + b"Content-Type: application/json\r\n"
        + headers
        + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length)
        + body
    )


class Connection:
    """A raw connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def until_closed(self, data: bytes = b"") -> bytes:
        """Send, and read all that comes until the server closes."""
        async with asyncio.timeout(60):
            self.writer.write(data)
            return await self.reader.read()


@asynccontextmanager
async def connected(
    gateway: RunningGateway, address: str = "127.0.0.1"
) -> AsyncIterator[Connection]:
    """A connection from `address` that is closed, wholly, at the end."""
    url = gateway.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port, local_addr=(address, 0))
    try:
        yield Connection(reader, writer)
    finally:
        # What the server never read would keep the socket open beyond the test.
        if writer.transport.get_write_buffer_size():
            writer.transport.abort()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def answers(data: bytes) -> list[tuple[int, bytes]]:
    """Status and rest of each answer on a connection."""
    parts = data.split(b"HTTP/1.1 ")[1:]
    return [(int(part[:3]), part) for part in parts]


def error_code(answer: bytes) -> str:
    error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    code: str = error["code"]
    return code
