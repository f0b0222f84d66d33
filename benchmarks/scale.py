"""How the server scales: tokens/s and latencies with more scripted engines, gateways, and CURVE.

    python -m benchmarks.scale

Real gateways, a real auth worker and scripted engines (`penstock fake-engine`) on this machine, and
a client that only counts. Each engine offers `--rate` tokens/s for each of `--streams` streams; the
share of that offer that arrives is the figure, beside the CPU that each kind of process took for a
thousand tokens: on few cores that is what a further core would buy.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import psutil

from protocol.runtime.child_environment import without_settings
from protocol.wire.keygen import generate_keys

Wire = Literal["ipc", "tcp", "curve"]
_BODY = {
    "model": "fake",
    "messages": [{"role": "user", "content": "Say something."}],
    "stream": True,
    "ignore_eos": True,
}
_WORD = b'"content":" '
"""In every event with a word, and in no other."""
_ROLES = ("ENGINE", "AUTH", "TOOLPARSER")


@dataclass(frozen=True)
class Setup:
    """One server."""

    num_engines: int
    num_gateways: int
    wire: Wire = "ipc"


@dataclass(frozen=True)
class Figures:
    """What one setup did.

    Attributes:
        offered: Tokens/s that the engines could give.
        delivered: Tokens/s that arrived.
        ttft_s, itl_s: Median and 99th percentile, seconds.
        cpu_ms: Kind of process → CPU milliseconds for a thousand tokens.
    """

    setup: Setup
    offered: float
    delivered: float
    ttft_s: tuple[float, float]
    itl_s: tuple[float, float]
    cpu_ms: Mapping[str, float]


class Streams:
    """Counts the events of many streams with as little work as possible."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.first_s: list[float] = []
        self.gaps_s: list[float] = []

    async def run(self, port: int, max_tokens: int) -> None:
        """One stream from request to end.

        Raises:
            RuntimeError: The gateway answered with anything but 200.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({**_BODY, "max_tokens": max_tokens}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        started = previous = time.perf_counter()
        writer.write(head.encode() + body)
        status = await reader.readline()
        if not status.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{status!r} {await reader.read(500)!r}")
        is_first, rest = True, b""
        while chunk := await reader.read(1 << 16):
            chunk = rest + chunk
            count = chunk.count(_WORD)
            rest = chunk[1 - len(_WORD) :]
            now = time.perf_counter()
            if is_first and count:
                self.first_s.append(now - started)
            elif count:
                self.gaps_s.append(now - previous)
            is_first = is_first and not count
            if count:
                previous = now
                self.num_tokens += count
        writer.close()


@contextmanager
def running_server(
    setup: Setup, rate: float, streams: int
) -> Iterator[tuple[list[int], dict[str, list[int]]]]:
    """Start the processes; gives the gateways' ports and the pids by kind."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        keys = directory / "keys"
        if setup.wire == "curve":
            generate_keys(keys)
        base = {
            **without_settings(os.environ),
            "PENSTOCK_LOG_LEVEL": "error",
            **({"PENSTOCK_KEY_DIR": str(keys)} if setup.wire == "curve" else {}),
        }
        addresses = [_addresses(directory / f"g{n}", setup.wire) for n in range(setup.num_gateways)]
        dial = {
            f"PENSTOCK_{role}_ENDPOINT": ",".join(one[role] for one in addresses) for role in _ROLES
        }
        pids: dict[str, list[int]] = {}

        def start(kind: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env={**base, **environment}
            )
            stack.callback(_end, process)
            pids.setdefault(kind, []).append(process.pid)

        for number, address in enumerate(addresses):
            data = directory / f"g{number}"
            own = {f"PENSTOCK_{role}_ENDPOINT": address[role] for role in _ROLES}
            start(
                "gateway",
                ["gateway"],
                {
                    **own,
                    "PENSTOCK_PORT": "0",
                    "PENSTOCK_PORT_FILE": str(data / "port"),
                    "PENSTOCK_DATA_DIR": str(data),
                    "PENSTOCK_MODELS": "fake",
                },
            )
        auth = {"PENSTOCK_DATA_DIR": str(directory), "PENSTOCK_ALLOW_ANONYMOUS": "true"}
        start("auth", ["auth_worker"], {**dial, **auth})
        start("parser", ["toolparser_worker"], dial)
        options = ["--tokens-per-s", str(rate), "--max-num-seqs", str(streams)]
        for _ in range(setup.num_engines):
            start("engine", ["penstock", "fake-engine", "--log-level", "error", *options], dial)
        yield (
            [_wait_ready(directory / f"g{n}" / "port", setup) for n in range(len(addresses))],
            pids,
        )


def _addresses(directory: Path, wire: Wire) -> dict[str, str]:
    directory.mkdir(mode=0o700)
    if wire == "ipc":
        return {role: f"ipc://{directory}/{role.lower()}" for role in _ROLES}
    return {role: f"tcp://127.0.0.1:{_free_port()}" for role in _ROLES}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_ready(port_file: Path, setup: Setup, timeout_s: float = 60.0) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, httpx.TransportError):
            port = int(port_file.read_text())
            url = f"http://127.0.0.1:{port}"
            text = httpx.get(f"{url}/metrics", trust_env=False).text
            ready = httpx.get(f"{url}/health", trust_env=False).status_code == 200
            if ready and f'workers{{phase="ready",role="engine"}} {setup.num_engines}.0' in text:
                return port
        time.sleep(0.05)
    raise RuntimeError(f"{setup} was not ready in {timeout_s:.0f} s")


async def measure(setup: Setup, args: argparse.Namespace) -> Figures:
    """Fill every engine with streams and count what arrives."""
    with running_server(setup, args.rate, args.streams) as (ports, pids):
        max_tokens = int(args.rate * args.seconds)
        counted = Streams()
        num_streams = args.streams * setup.num_engines
        warm = [Streams().run(port, 8) for port in ports for _ in range(4)]
        await asyncio.gather(*warm)
        before, started = _cpu_s(pids), time.perf_counter()
        await asyncio.gather(
            *(counted.run(ports[n % len(ports)], max_tokens) for n in range(num_streams))
        )
        seconds = time.perf_counter() - started
        after = _cpu_s(pids)
    if counted.num_tokens != num_streams * max_tokens:
        raise RuntimeError(f"{counted.num_tokens} tokens came, not {num_streams * max_tokens}")
    thousands = counted.num_tokens / 1000
    return Figures(
        setup=setup,
        offered=args.rate * num_streams,
        delivered=counted.num_tokens / seconds,
        ttft_s=_spread(counted.first_s),
        itl_s=_spread(counted.gaps_s),
        cpu_ms={kind: 1000 * (after[kind] - before[kind]) / thousands for kind in pids},
    )


def _cpu_s(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {
        kind: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in group)
        for kind, group in pids.items()
    }


def _spread(values: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def table(all_figures: Sequence[Figures]) -> str:
    """The figures as Markdown."""
    alone = all_figures[0].delivered / all_figures[0].setup.num_engines
    lines = [
        "| engines | gateways | wire | offered tok/s | delivered tok/s | of the sum of one alone "
        "| TTFT p50/p99 ms | ITL p50/p99 ms | CPU ms a 1000 tokens: gateway, engine, auth |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in all_figures:
        setup = one.setup
        spreads = [f"{1000 * a:.1f} / {1000 * b:.1f}" for a, b in (one.ttft_s, one.itl_s)]
        cpu = ", ".join(f"{one.cpu_ms[kind]:.0f}" for kind in ("gateway", "engine", "auth"))
        lines.append(
            f"| {setup.num_engines} | {setup.num_gateways} | {setup.wire} | {one.offered:.0f} "
            f"| {one.delivered:.0f} | {100 * one.delivered / (alone * setup.num_engines):.0f} % "
            f"| {' | '.join(spreads)} | {cpu} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every setup and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--gateways", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rate", type=float, default=25.0, help="tokens/s of a stream")
    parser.add_argument("--streams", type=int, default=32, help="of an engine")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each stream")
    args = parser.parse_args()
    setups = [Setup(e, g) for g in args.gateways for e in args.engines]
    setups += [Setup(args.engines[0], 1, wire) for wire in ("tcp", "curve")]
    all_figures = []
    for setup in setups:
        all_figures.append(asyncio.run(measure(setup, args)))
        print(f"{setup}: {all_figures[-1].delivered:.0f} tok/s", file=sys.stderr, flush=True)
    print(table(all_figures))


if __name__ == "__main__":
    main()
