"""HTTP/1.1 by hand: whole, half, slow and wrong requests, and answers that need not be read."""

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
_STREAM_LIMIT_BYTES = 1 << 20
_NUM_ADDRESSES = 50
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Answer:
    """One answer, read to its end.

    Attributes:
        headers: Names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_fault(self) -> bool:
        """Whether the server broke: a 5xx that is neither a busy server nor one without tools."""
        is_busy = self.status == 503 and "retry-after" in self.headers
        return self.status >= 500 and self.status != 501 and not is_busy

    @property
    def text(self) -> str:
        """The beginning of the body, for reports."""
        return self.body[:200].decode("utf-8", "replace")


def source_address(number: int) -> str:
    """One of fifty addresses of strangers, none of them the one that the good client has."""
    return f"127.0.7.{1 + number % _NUM_ADDRESSES}"


def head(
    method: str,
    path: str,
    key: str | None = None,
    length: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request's head; nothing in it is checked.

    Args:
        method: Of the request line.
        path: Of the request line.
        key: For `Authorization`; None leaves it out.
        length: The declared length of the body; None declares none.
        headers: More of them; they may replace `Host` and `Content-Type`.
    """
    fields = {"Host": HOST}
    if key is not None:
        fields["Authorization"] = f"Bearer {key}"
    if length is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(length)}
    fields |= headers or {}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def post(path: str, body: Any, key: str | None = None) -> bytes:
    """A whole POST request; a body that is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, key, len(content)) + content


def made_up_key(rng: random.Random) -> str:
    """A key that looks like one of the deployment's and is none."""
    return f"psk-{rng.randbytes(24).hex()}"


class Connection:
    """One connection to the gateway.

    Args:
        reader: What comes.
        writer: What goes.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(
        cls, port: int, source: str | None = None, *, receive_buffer_bytes: int | None = None
    ) -> "Connection":
        """Connect.

        Args:
            port: Of the gateway.
            source: The address that the gateway sees; None is the usual one.
            receive_buffer_bytes: How much may come unread; None is the usual amount.

        Raises:
            OSError: The gateway takes no connection.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if receive_buffer_bytes is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            if source is not None:
                sock.bind((source, 0))
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
            limit = receive_buffer_bytes or _STREAM_LIMIT_BYTES
            reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        except BaseException:
            sock.close()
            raise
        writer.transport.set_write_buffer_limits(high=0)
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        """Send it, as fast as the other side takes it; back when the kernel has all of it.

        Raises:
            OSError: The other side has closed.
        """
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, to_head: bool = False) -> Answer:
        """Read one answer.

        Args:
            to_head: The request was HEAD, whose answers have no body.

        Raises:
            OSError: The connection broke.
            EOFError: It ended before the answer did.
            ValueError: What came is no HTTP.
        """
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, *_ = lines[0].split(" ")
        if not version.startswith("HTTP/1.") or not status.isdecimal():
            raise ValueError(f"no HTTP: {lines[0][:80]}")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if to_head or int(status) in (204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self._chunks()])
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = await self.reader.read()
        return Answer(int(status), headers, body)

    async def _until(self, mark: bytes) -> bytes:
        try:
            return await self.reader.readuntil(mark)
        except asyncio.LimitOverrunError as error:
            raise ValueError("a line of the answer is too long") from error

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            size = int((await self._until(b"\r\n")).split(b";")[0], 16)
            chunk = await self.reader.readexactly(size + 2)
            if not size:
                return
            yield chunk[:-2]

    def reset(self) -> None:
        """Leave at once and rudely: the other side gets a reset."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()

    def close(self) -> None:
        """Leave; what has not been sent yet never is."""
        self.writer.transport.abort()


@asynccontextmanager
async def connection(port: int, source: str | None = None) -> AsyncIterator[Connection]:
    """A connection that ends with the block."""
    one = await Connection.open(port, source)
    try:
        yield one
    finally:
        one.close()


async def ask(port: int, request: bytes, source: str | None = None) -> Answer:
    """Send a whole request over a connection of its own and read its answer.

    The body may be refused, and the connection closed, before all of it has gone out.

    Raises:
        OSError: The connection broke before an answer came.
        EOFError: It ended before the answer did.
        ValueError: What came is no HTTP.
    """
    async with connection(port, source) as one:
        sending = asyncio.ensure_future(one.send(request))
        try:
            return await one.answer(to_head=request.startswith(b"HEAD "))
        finally:
            sending.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await sending
