"""A Unix-socket relay between a worker and its gateway, which a test can cut and mend."""

import asyncio
import contextlib
from pathlib import Path

_CHUNK_BYTES = 1 << 16


class Relay:
    """Listens at one path, connects each caller through to another.

    Args:
        listen: Where the worker dials.
        target: Where the gateway listens.
    """

    def __init__(self, listen: Path, target: Path) -> None:
        self._listen = listen
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, str(self._listen))

    def cut(self) -> None:
        """End every connection, and every new one until `mend`."""
        self._is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def close(self) -> None:
        """Stop listening and end what is open."""
        self.cut()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        except OSError:  # the gateway is not there at the moment
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            pipes = (_pipe(reader, far_writer), _pipe(far_reader, writer))
            tasks = [asyncio.ensure_future(pipe) for pipe in pipes]
            # Either end of a connection is the end of both.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._writers -= {writer, far_writer}
            writer.transport.abort()
            far_writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
