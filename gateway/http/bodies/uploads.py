"""Uploads on their way to the disk: bounded in bytes, in time, and in number of one caller."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fastapi import Request

from gateway.batches.files import disk_error
from gateway.errors import (
    ClientDisconnectedError,
    InvalidRequestError,
    RequestTooLargeError,
)
from gateway.http.bodies.multipart import MAX_FIELD_BYTES, FormReader

STALL_S: Final = 60.0
"""So long nothing may come."""
UPLOAD_TIMEOUT_S: Final = 3600.0
_FLUSH_BYTES: Final = 2**20


class _Sink:
    """Gathers the file's bytes and writes them beside the loop, a megabyte at a time."""

    def __init__(
        self, path: Path, max_bytes: int, on_written: Callable[[bytes], None] | None
    ) -> None:
        self._max_bytes = max_bytes
        self._on_written = on_written
        self._gathered = bytearray()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self.num_bytes = 0

    def take(self, data: bytes) -> None:
        """More bytes.

        Raises:
            RequestTooLargeError: The file is over its limit.
        """
        self.num_bytes += len(data)
        if self.num_bytes > self._max_bytes:
            raise RequestTooLargeError(f"The file is over the limit of {self._max_bytes} bytes.")
        self._gathered += data

    async def flush(self, *, is_last: bool = False) -> None:
        """Write what has come, if it is much."""
        if len(self._gathered) >= _FLUSH_BYTES or is_last:
            data, self._gathered = bytes(self._gathered), bytearray()
            await asyncio.to_thread(self._write, data, is_last=is_last)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _write(self, data: bytes, *, is_last: bool) -> None:
        self._file.write(data)
        if self._on_written is not None:
            self._on_written(data)
        if is_last:
            self._file.flush()
            os.fsync(self._file.fileno())


async def receive_form(
    request: Request,
    path: Path,
    max_bytes: int,
    on_written: Callable[[bytes], None] | None = None,
) -> FormReader:
    """Read a form whose field `file` goes to a path that isn't there yet.

    Args:
        request: With the form.
        path: Of the file.
        max_bytes: Of the file.
        on_written: Called beside the loop with the file's bytes, in order.

    Raises:
        InvalidRequestError: It is no such form, or doesn't come to its end in time.
        RequestTooLargeError: The file is over its limit.
        ClientDisconnectedError: The client left.
        GatewayError: The disk is full.
    """
    request.scope["state"]["has_read_body"] = False
    try:
        sink = _Sink(path, max_bytes, on_written)
        try:
            reader = FormReader(request.headers.get("content-type", ""), "file", sink.take)
            async with asyncio.timeout(UPLOAD_TIMEOUT_S):
                await _read(request, reader, sink, max_bytes + 2 * MAX_FIELD_BYTES)
            reader.finish()
            await sink.flush(is_last=True)
        finally:
            sink.close()
    except TimeoutError:
        raise InvalidRequestError(
            f"The form did not go on for {STALL_S:g} seconds, or took over {UPLOAD_TIMEOUT_S:g}."
        ) from None
    except OSError as error:
        raise disk_error(error) from error
    request.scope["state"]["has_read_body"] = True
    return reader


async def _read(request: Request, reader: FormReader, sink: _Sink, max_bytes: int) -> None:
    num_bytes, has_more = 0, True
    while has_more:
        async with asyncio.timeout(STALL_S):
            message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnectedError("The client disconnected.")
        body = message.get("body", b"")
        num_bytes += len(body)
        if num_bytes > max_bytes:
            raise RequestTooLargeError(f"The form is over the limit of {max_bytes} bytes.")
        reader.feed(body)
        await sink.flush()
        has_more = message.get("more_body", False)
