"""Real processes for one run: started by module name, pinned if wanted, all ended at its end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from protocol.runtime.child_environment import without_settings

Pinning = Literal["none", "pair", "split"]
START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_LOOK_S = 0.01
_ROLES = ("ENGINE", "AUTH", "TOOLPARSER")
_ADMIN_KEY = f"psk-{'benchmark' * 5}"
MODEL = "fake"
MODELS = {MODEL: 0.0, "slow": 0.5, "calm-64": 200.0, "calm-256": 50.0}
"""Name → tokens/s of a stream, 0 without pauses; the calm ones give 12,800 tokens/s in all."""
BURSTS = {"burst-64": 64, "burst-256": 256}
"""Name → streams that share what is offered."""
_MAX_NUM_SEQS = "1024"
CHAT = [
    {"role": "system", "content": "You are a terse and helpful assistant."},
    {"role": "user", "content": "Say something about rivers, in a few words."},
]


class Cores:
    """Where processes run.

    Args:
        pinning: `pair`: all on the same two cores; `split`: the server under load on the first of
            them and everything else on the second; `none`: wherever the kernel likes.

    Attributes:
        in_words: What was done, for the report.
    """

    def __init__(self, pinning: Pinning) -> None:
        self._server: set[int] = set()
        self._others: set[int] = set()
        self.in_words = "not pinned"
        if pinning == "none":
            return
        if not hasattr(os, "sched_setaffinity"):
            self.in_words = "not pinned: this system can't"
            return
        cores = sorted(os.sched_getaffinity(0))[:2]
        if len(cores) < 2:
            self.in_words = "not pinned: there is only one core"
            return
        self._server = set(cores) if pinning == "pair" else {cores[0]}
        self._others = set(cores) if pinning == "pair" else {cores[1]}
        if pinning == "pair":
            self.in_words = f"all processes pinned to cores {cores[0]} and {cores[1]}"
        else:
            self.in_words = f"servers pinned to core {cores[0]}, all else to core {cores[1]}"

    def pin(self, pid: int, *, is_server: bool) -> None:
        """Put a process where it belongs; its threads follow, for they begin later."""
        cores = self._server if is_server else self._others
        if cores:
            os.sched_setaffinity(pid, cores)


class Processes:
    """Everything that runs; leaving the block ends all of it, whatever has happened."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._stack = ExitStack()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        is_server: bool = False,
        reports: bool = False,
    ) -> "subprocess.Popen[str]":
        """Start `python -m command`, with a pipe to it, and one back if it reports."""
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**without_settings(os.environ), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if reports else subprocess.DEVNULL,
            text=True,
        )
        self._stack.callback(_end, process)
        self._cores.pin(process.pid, is_server=is_server)
        return process


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Orders:
    """A process that takes JSON orders and reports, a line each.

    Args:
        process: From `Processes.start`.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def report(self) -> dict[str, Any]:
        """The next report.

        Raises:
            RuntimeError: The process says that something failed, or ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        report: dict[str, Any] = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in report:
            raise RuntimeError(report["error"])
        return report

    def give(self, **order: object) -> dict[str, Any]:
        """One order and its report; errors as of `report`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.report()


@dataclass(frozen=True)
class Server:
    """A server under load.

    Attributes:
        pids: Kind of process → pid; the first takes the requests. Further ones of its kind have a
            number behind it: `gateway-1`.
        key: To send; empty where none is asked for.
        start_s: From the first process's start until requests are answered.
    """

    name: str
    port: int
    pids: Mapping[str, int]
    key: str
    start_s: float

    def pids_for(self, model: str) -> dict[str, int]:
        """The pids without those of other models' engines; the model's own is called engine."""
        return {
            "engine" if name == f"engine {model}" else name: pid
            for name, pid in self.pids.items()
            if not name.startswith("engine ") or name == f"engine {model}"
        }

    def request(self, **fields: object) -> str:
        """A chat request, head and body."""
        chat: dict[str, object] = {"model": MODEL, "messages": CHAT, "temperature": 0.7}
        return self.post("/v1/chat/completions", **{**chat, **fields})

    def post(self, path: str, **fields: object) -> str:
        """A request, head and body."""
        body = json.dumps(fields)
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"User-Agent: benchmark\r\nAccept: */*\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )


def start_penstock(
    processes: Processes,
    directory: Path,
    *,
    num_tokens: int,
    models: Mapping[str, float],
    gateway: Sequence[str] = ("gateway",),
    num_gateways: int = 1,
) -> Server:
    """Gateways, auth worker, parser, and a scripted engine for each model.

    Args:
        processes: Ends them.
        directory: For sockets and data; made here.
        num_tokens: Of an answer that ends by itself.
        models: Name → tokens/s of a stream; the first one's engine is told of in the figures.
        gateway: The module that runs a gateway, and its options.
        num_gateways: Several share a port, as those of `penstock serve --gateways` do.
    """
    directory.mkdir(mode=0o700)
    suffixes = ["", *(f"-{number}" for number in range(1, num_gateways))]
    base = {
        "PENSTOCK_LOG_LEVEL": "error",
        "PENSTOCK_PARENT_PID": str(os.getpid()),
        "PENSTOCK_DATA_DIR": str(directory),
        "PENSTOCK_REQUIRE_KEYS": "true",
        "PENSTOCK_MODELS": ",".join(models),
    }
    started = time.perf_counter()
    pids = {}
    with _port_settings(num_gateways) as port_settings:
        for suffix in suffixes:
            own = {**base, **port_settings, **_endpoints(directory, [suffix])}
            own["PENSTOCK_PORT_FILE"] = str(directory / f"port{suffix}")
            pids[f"gateway{suffix}"] = processes.start(gateway, own, is_server=True).pid
        base |= _endpoints(directory, suffixes)
        _start_workers(processes, base, num_tokens, models, pids)
        # A gateway writes its file once it listens.
        ports = [_wait_for_port(directory / f"port{suffix}", "/health") for suffix in suffixes]
    start_s = time.perf_counter() - started
    made = _post(ports[0], "/v1/admin/keys", {"name": "benchmark"}, _ADMIN_KEY)
    return Server("penstock", ports[0], pids, json.loads(made)["key"], start_s)


def _start_workers(
    processes: Processes,
    base: Mapping[str, str],
    num_tokens: int,
    models: Mapping[str, float],
    pids: dict[str, int],
) -> None:
    auth = processes.start(("auth_worker",), {**base, "PENSTOCK_ADMIN_KEY": _ADMIN_KEY})
    pids["auth"] = auth.pid
    for name, rate in models.items():
        options = ("--model", name, "--tokens-per-s", str(rate), "--max-num-seqs", _MAX_NUM_SEQS)
        engine = processes.start(
            ("penstock", "fake-engine", *options, "--output-tokens", str(num_tokens)), base
        )
        pids[f"engine {name}"] = engine.pid
    processes.start(("toolparser_worker",), base)


def _endpoints(directory: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """Where gateways listen for workers, and where those dial."""
    return {
        f"PENSTOCK_{role}_ENDPOINT": ",".join(
            f"ipc://{directory}/{role.lower()}{suffix}" for suffix in suffixes
        )
        for role in _ROLES
    }


@contextlib.contextmanager
def _port_settings(num_gateways: int) -> Iterator[dict[str, str]]:
    """A free port for one gateway, or for several, kept free for them until the block ends."""
    if num_gateways == 1:
        yield {"PENSTOCK_PORT": "0"}
        return
    with socket.socket() as keeper:  # which doesn't listen, so that no connection goes to it
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind(("127.0.0.1", 0))
        yield {
            "PENSTOCK_PORT": str(keeper.getsockname()[1]),
            "PENSTOCK_SHARE_PORT": "true",
            "PENSTOCK_SHARE_DATA_DIR": "true",
        }


def start_peer(processes: Processes, kind: str, directory: Path, template: Path) -> Server:
    """One of `benchmarks.gateway_peers.servers`; it takes no notice of keys."""
    port_file = directory / f"{kind}.port"
    port_file.unlink(missing_ok=True)
    started = time.perf_counter()
    process = processes.start(
        (
            "benchmarks.gateway_peers.servers",
            kind,
            *("--template", str(template), "--port-file", str(port_file)),
        ),
        is_server=True,
    )
    port = _wait_for_port(port_file, None)
    start_s = time.perf_counter() - started
    return Server(kind, port, {"server": process.pid}, _ADMIN_KEY, start_s)


def start_load(processes: Processes) -> Orders:
    """The load client."""
    return Orders(processes.start(("benchmarks.gateway_peers.load",), reports=True))


def start_zmq(processes: Processes, directory: Path) -> tuple[Orders, list[int]]:
    """Bare round trips; the asking process and the pids of both ends."""
    module, endpoint = "benchmarks.gateway_peers.zmq_round_trips", f"ipc://{directory}/bare"
    asking = processes.start((module, "ask", "--endpoint", endpoint), is_server=True, reports=True)
    answering = processes.start((module, "answer", "--endpoint", endpoint))
    orders = Orders(asking)
    orders.report()
    return orders, [asking.pid, answering.pid]


def make_template(server: Server, path: Path, stream_tokens: Sequence[int]) -> None:
    """Write down what a gateway answers, for the peers to answer the same bytes."""

    def ask(**fields: object) -> str:
        _, _, body = server.request(**fields).partition("\r\n\r\n")
        return _post(server.port, "/v1/chat/completions", json.loads(body), server.key)

    text = ask(max_tokens=2, ignore_eos=True, stream=True)
    events = [f"{event}\n\n" for event in text.split("\n\n") if event]
    # A gateway that is faster or slower puts more or fewer tokens into one event; here it is one.
    head, tail = events[0], "".join(events[-2:])
    token = re.sub(r'"content":" \w+[^"]*"', '"content":" word"', events[1])
    streams = {n: [head + token, *[token] * (n - 1), tail] for n in stream_tokens}
    path.write_text(
        json.dumps({"answer": ask(max_tokens=16), "streams": streams}), encoding="utf-8"
    )


def _wait_for_port(port_file: Path, ready_path: str | None) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, urllib.error.URLError):
            port = int(port_file.read_text(encoding="ascii"))
            if ready_path is None or get(port, ready_path):
                return port
        time.sleep(_LOOK_S)
    raise RuntimeError(f"nothing answered within {START_TIMEOUT_S:.0f} s ({port_file})")


def _open(request: urllib.request.Request) -> str:
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with no_proxy.open(request, timeout=30.0) as response:
        text: str = response.read().decode()
        return text


def get(port: int, path: str, key: str = "") -> str:
    """The body of a page of this machine; an error of urllib for anything but 200."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return _open(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers))


def _post(port: int, path: str, body: object, key: str) -> str:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    data = json.dumps(body).encode()
    return _open(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers))
