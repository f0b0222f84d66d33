"""The load client: raw sockets, requests rendered beforehand, and as little parsing as possible.

    python -m benchmarks.gateway_peers.load      # a JSON order a line in, a JSON report a line out

It ends when its standard input does. An order is one of

- `{"do": "load", "port", "request", "clients", "seconds", "warmup_s", "is_stream", "leaves",
  "pids", "mark"}`: each client sends the request again as soon as its answer has ended; after the
  warm-up, `seconds` are measured: answers, latencies, events, and the CPU time of this process and
  of each of `pids`; then what runs is waited for, or left. `mark` is what every event with a word
  holds, and no other; a chat's if it is left out;
- `{"do": "hold", "port", "request", "clients"}`: opens streams beside those that are held already
  and reports once each has had an event;
- `{"do": "release"}`: closes what is held.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import psutil
import uvloop

_CHAT_MARK = '"content":" '
_MARK = b"data: "
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = b"content-length: "
_DRAIN_S = 20.0
_HOLD_S = 60.0


@dataclass
class Counts:
    """What has been seen since the last reset; times in seconds.

    Attributes:
        num_events: Those with text; an event of several tokens is one.
        num_words: Of the text, each a token of the scripted engine.
    """

    num_answers: int = 0
    num_events: int = 0
    num_words: int = 0
    latencies_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)

    def reset(self) -> None:
        """Begin again; requests under way count when they end."""
        self.num_answers = self.num_events = self.num_words = 0
        self.latencies_s.clear()
        self.first_s.clear()


class Connection(asyncio.Protocol):
    """One keep-alive connection that repeats a request until `stop`.

    Args:
        request: Head and body.
        counts: Shared by all connections.
        is_stream: Whether answers are chunked event streams.
        mark: In every event with a word, and in no other; not shorter than the last chunk.
    """

    def __init__(
        self, request: bytes, counts: Counts, *, is_stream: bool, mark: str = _CHAT_MARK
    ) -> None:
        self._request = request
        self._counts = counts
        self._is_stream = is_stream
        self._mark = mark.encode()
        self._buffer = b""
        self._in_body = False
        self._sent_at = 0.0
        self._stops = False
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.first_event: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: the first request leaves."""
        # uvloop's transport has the methods, but not the base class.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """More of an answer."""
        if self._is_stream:
            self._on_stream(data)
        else:
            self._on_json(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed, or `close` did."""
        if not self.ended.done():
            if self._stops:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(RuntimeError(f"the server closed: {exc!r}"))

    def stop(self) -> None:
        """Send no further request."""
        self._stops = True

    def close(self) -> None:
        """Leave at once."""
        self._stops = True
        if self._transport is not None:
            self._transport.close()

    def _send(self) -> None:
        assert self._transport is not None
        self._buffer, self._in_body = b"", False
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def _check_head(self, head: bytes) -> None:
        if head.startswith(b"HTTP/1.1 200") or self.ended.done():
            return
        self.ended.set_exception(RuntimeError(head[:1500].decode("latin-1")))
        self.close()

    def _on_json(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return
        self._check_head(data)
        begin = data.find(_LENGTH, 0, end) + len(_LENGTH)
        if len(data) < end + 4 + int(data[begin : data.index(b"\r", begin)]):
            self._buffer = data
            return
        self._answered()

    def _on_stream(self, data: bytes) -> None:
        if not self._in_body:
            data = self._buffer + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            self._check_head(data)
            self._in_body, self._buffer, data = True, b"", data[end + 4 :]
        # Marks may be cut anywhere, so the last bytes are looked at again with what follows.
        tail = self._buffer
        joined = tail + data
        num_events = joined.count(self._mark) - tail.count(self._mark)
        self._counts.num_events += num_events
        # A word begins with a space, and so does the rest of each event; JSON has no others here.
        num_marks = joined.count(_MARK) - tail.count(_MARK)
        self._counts.num_words += data.count(b" ") - num_marks
        self._buffer = joined[-len(self._mark) :]
        if num_events and self._sent_at:
            self._counts.first_s.append(time.perf_counter() - self._sent_at)
            self._sent_at = 0.0
            if not self.first_event.done():
                self.first_event.set_result(None)
        if self._buffer.endswith(_LAST_CHUNK):
            self._answered()

    def _answered(self) -> None:
        counts = self._counts
        counts.num_answers += 1
        if not self._is_stream:
            counts.latencies_s.append(time.perf_counter() - self._sent_at)
        if not self._stops:
            self._send()
        elif self._transport is not None:
            self._transport.close()


class Client:
    """Does one order after the other."""

    def __init__(self) -> None:
        self._held: list[Connection] = []

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order; its report.

        Raises:
            RuntimeError: The server answered with anything but 200, or closed.
        """
        if order["do"] == "load":
            return await self._load(order)
        if order["do"] == "hold":
            return await self._hold(order)
        for connection in self._held:
            connection.close()
        await asyncio.gather(*(connection.ended for connection in self._held))
        self._held.clear()
        return {}

    async def _load(self, order: dict[str, Any]) -> dict[str, Any]:
        counts = Counts()
        pids: list[int] = order["pids"]
        connections = await _open(order, counts, is_stream=order["is_stream"])
        all_ended = asyncio.gather(*(connection.ended for connection in connections))
        if order["leaves"]:  # streams without end: their starts are not part of what is measured
            all_begun = asyncio.gather(*(connection.first_event for connection in connections))
            await asyncio.wait(
                [all_ended, all_begun], timeout=_HOLD_S, return_when=asyncio.FIRST_COMPLETED
            )
        await asyncio.wait([all_ended], timeout=order["warmup_s"])
        counts.reset()
        cpu, own_cpu = [_cpu_s(pid) for pid in pids], time.process_time()
        started = time.perf_counter()
        await asyncio.wait([all_ended], timeout=order["seconds"])
        seconds = time.perf_counter() - started
        report = {
            "seconds": seconds,
            "cpu_s": [_cpu_s(pid) - before for pid, before in zip(pids, cpu, strict=True)],
            "client_cpu_s": time.process_time() - own_cpu,
            "answers": counts.num_answers,
            "events": counts.num_events,
            "words": counts.num_words,
            "latencies_s": sorted(counts.latencies_s),
            "first_s": sorted(counts.first_s),
            "rss_bytes": [psutil.Process(pid).memory_info().rss for pid in pids],
        }
        for connection in connections:
            if order["leaves"]:
                connection.close()
            else:
                connection.stop()
        async with asyncio.timeout(_DRAIN_S):
            await all_ended
        return report

    async def _hold(self, order: dict[str, Any]) -> dict[str, Any]:
        connections = await _open(order, Counts(), is_stream=True)
        for connection in connections:
            connection.stop()
        self._held += connections
        async with asyncio.timeout(_HOLD_S):
            for connection in connections:
                await asyncio.wait(
                    (connection.first_event, connection.ended), return_when=asyncio.FIRST_COMPLETED
                )
                if connection.ended.done():
                    connection.ended.result()
                    raise RuntimeError("a stream that was to be held has ended")
        return {"held": len(self._held)}


async def _open(order: dict[str, Any], counts: Counts, *, is_stream: bool) -> list[Connection]:
    request, mark = order["request"].encode(), order.get("mark", _CHAT_MARK)
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(order["clients"]):
        _, connection = await loop.create_connection(
            lambda: Connection(request, counts, is_stream=is_stream, mark=mark),
            "127.0.0.1",
            order["port"],
        )
        connections.append(connection)
    return connections


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def main() -> None:
    """Obey until standard input ends."""
    loop = asyncio.get_running_loop()
    client = Client()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            report = await client.obey(json.loads(line))
        except (RuntimeError, OSError, TimeoutError) as error:
            report = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
