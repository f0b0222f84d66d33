"""How much later a token leaves because it passes a parser process.

    python -m benchmarks.parser_hop [--steps 150] [--interval-ms 10] [--streams 1 64 256]

A gateway's own link to the parsers (`ParserLink`) in this process, under uvloop as in a gateway,
`python -m toolparser_worker` in another, one ipc socket between. Each step, as an engine does,
every stream gets four characters at once; the latency of a stream's token is the time from there
until its events are back. In turn with it, in the same rounds and at the same pace, what no parser
could go below: bare round trips of as many bytes over ZeroMQ (six wake-ups) and over Unix sockets
(two), see `benchmarks.round_trips`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import uvloop

from benchmarks import round_trips
from gateway.errors import GatewayError
from gateway.workers.parsers import ParserLink
from protocol.runtime.child_environment import without_settings
from protocol.wire.codec import parser_event_decoder
from protocol.wire.messages import OpenParse, ParsedDelta, ParserEvent
from protocol.wire.peers import Peer, PeerEvent
from protocol.wire.role_server import RoleServer

START = '<tool_call>\n{"name": "write", "arguments": {"text": "'
PIECE = "abc "
TOOLS = [{"type": "function", "function": {"name": "write", "parameters": {"type": "object"}}}]
_WARM_UP_STEPS = 50
_BYTES_ASKED, _BYTES_ANSWERED = 65, 100
"""Of a stream's token on the wire, each way; and about 25 once."""


class Step:
    """One step of an engine: when its tokens were sent, and how many are back.

    Attributes:
        latencies_s: Of all tokens so far, seconds.
    """

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self._sent_at = 0.0
        self._num_missing = 0
        self._is_over: asyncio.Future[None] | None = None

    def begin(self, num_tokens: int) -> asyncio.Future[None]:
        """Tokens are about to be sent; done when all are back."""
        self._num_missing = num_tokens
        self._is_over = asyncio.get_running_loop().create_future()
        self._sent_at = time.perf_counter()
        return self._is_over

    def on_token(self) -> None:
        """One token's events are back."""
        self.latencies_s.append(time.perf_counter() - self._sent_at)
        self._num_missing -= 1
        if not self._num_missing and self._is_over is not None:
            self._is_over.set_result(None)


class Stream:
    """One request's text at the parser (`ParseSink`)."""

    attempt = 1

    def __init__(self, number: int, step: Step) -> None:
        self.request_id = f"request-{number}"
        self.num_chars = 0
        self._step = step

    def on_parsed(self, parsed: ParsedDelta) -> None:
        """The token's events are here."""
        self._step.on_token()

    def on_parse_failure(self, error: GatewayError) -> None:
        """A benchmark has nothing to go on with."""
        raise error


@asynccontextmanager
async def parser_process() -> AsyncIterator[tuple[ParserLink, psutil.Process]]:
    """A gateway's link to a parser, and the parser's process."""
    with tempfile.TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/parser"
        is_ready = asyncio.Event()

        def on_peer(event: PeerEvent) -> None:
            if event.kind == "ready":
                link.on_peer_ready(event.peer)
                is_ready.set()

        def on_event(peer: Peer, event: ParserEvent) -> None:
            link.on_event(peer, event)

        server: RoleServer[ParserEvent] = RoleServer(
            "toolparser",
            endpoint,
            parser_event_decoder(),
            instance_id="benchmark",
        )
        link = ParserLink(server)
        server.start(asyncio.get_running_loop(), on_event=on_event, on_peer=on_peer)
        environ = without_settings(os.environ) | {
            "PENSTOCK_TOOLPARSER_ENDPOINT": endpoint,
            "PENSTOCK_LOG_LEVEL": "error",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        process = subprocess.Popen(  # noqa: ASYNC220  # once, before anything is measured
            [sys.executable, "-m", "toolparser_worker"], env=environ
        )
        try:
            await is_ready.wait()
            yield link, psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()
            server.close()


async def measure(
    link: ParserLink, num_streams: int, num_steps: int, interval_s: float
) -> list[float]:
    """The latencies of all tokens, seconds, sorted."""
    step = Step()
    streams = [Stream(number, step) for number in range(num_streams)]
    parsers = {}
    for stream in streams:
        opening = OpenParse(
            request_id=stream.request_id,
            attempt=1,
            tool_format="hermes",
            reasoning_format="think",
            tools_json=json.dumps(TOOLS),
        )
        parsers[stream.request_id], _ = await link.open(opening, stream)
    for number in range(-1, num_steps + _WARM_UP_STEPS):
        due = time.perf_counter() + interval_s
        if number == _WARM_UP_STEPS:
            step.latencies_s.clear()
        piece = START if number < 0 else PIECE
        all_back = step.begin(num_streams)
        for stream in streams:
            stream.num_chars += len(piece)
            parser = parsers[stream.request_id]
            link.feed(parser, stream.request_id, 0, 1, piece, (stream.num_chars,))
        await all_back
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    for stream in streams:
        link.close(parsers[stream.request_id], stream.request_id, 1)
    return sorted(step.latencies_s)


async def run(streams: Sequence[int], num_rounds: int, num_steps: int, interval_s: float) -> None:
    """Prints the table: medians of all rounds."""
    print("| streams | p50 ms | p99 ms | bare ZeroMQ p50 | Unix sockets p50 |", end="")
    print(" CPU µs a token: link | parser |\n|---|---|---|---|---|---|---|")
    async with parser_process() as (link, process):
        for num_streams in streams:
            asked, answered = 25 + _BYTES_ASKED * num_streams, 25 + _BYTES_ANSWERED * num_streams
            num_tokens = num_streams * (num_steps + _WARM_UP_STEPS)
            rounds: list[list[float]] = []
            for _ in range(num_rounds):
                row = []
                for measure_floor in (round_trips.zeromq, round_trips.sockets):
                    # In a thread, so that the parser goes on hearing our heartbeats.
                    floor = await asyncio.to_thread(
                        measure_floor, asked, answered, num_steps, interval_s
                    )
                    row.append(statistics.median(floor) * 1e3)
                before = time.process_time(), sum(process.cpu_times()[:2])
                found = await measure(link, num_streams, num_steps, interval_s)
                after = time.process_time(), sum(process.cpu_times()[:2])
                row += [(b - a) / num_tokens * 1e6 for a, b in zip(before, after, strict=True)]
                rounds.append([found[int(len(found) * share)] * 1e3 for share in (0.5, 0.99)] + row)
            p50, p99, bare, pair, own, parser = (
                statistics.median(column) for column in zip(*rounds, strict=True)
            )
            print(f"| {num_streams} | {p50:.3f} | {p99:.3f} | {bare:.3f} | {pair:.3f} |", end="")
            print(f" {own:.1f} | {parser:.1f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Times the hop through a parser process.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--interval-ms", type=float, default=10.0, help="between two steps")
    parser.add_argument("--rounds", type=int, default=3, help="the median of each figure is shown")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    options = parser.parse_args(arguments)
    with contextlib.suppress(KeyboardInterrupt):
        interval_s = options.interval_ms / 1e3
        uvloop.run(run(options.streams, options.rounds, options.steps, interval_s))


if __name__ == "__main__":
    main()
