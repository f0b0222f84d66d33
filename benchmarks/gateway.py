"""What the gateway costs: requests, token events, memory and start, beside what it can't be below.

    python -m benchmarks.gateway                          # about four minutes; `make bench-gateway`
    python -m benchmarks.gateway --only json-64 --profile # where the time of a gateway goes
    python -m benchmarks.gateway --only json-64 --pin --gateways 2     # sharing a port

A whole Penstock (gateway, auth worker with a real key, scripted engine without pauses, parser)
takes turns with a FastAPI server of a pydantic body, raw ASGI under the same uvicorn, and bare
ZeroMQ round trips of the same sizes. All answer the same bytes, all are processes of this machine,
and the client is one too. Figures are medians over the rounds; ratios are made within each round,
so that what else the machine does weighs on both sides.
"""

import argparse
import json
import os
import pstats
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gateway_peers.processes import (
    BURSTS,
    MODEL,
    MODELS,
    Cores,
    Orders,
    Processes,
    Server,
    get,
    make_template,
    start_load,
    start_peer,
    start_penstock,
    start_zmq,
)
from benchmarks.gateway_peers.zmq_round_trips import NUM_TOKENS

PEERS = ("fastapi", "raw")
_STREAM_TOKENS = 256
_ENDLESS = 30_000
"""Tokens of a stream that outlasts its phase: the client leaves at the end."""
_HELD = (256, 1024)
_WARMUP_S = 0.5
_ZMQ_REQUESTS = {1: 1000, 64: 4000}
_PROFILE_ROWS = 40

Report = dict[str, Any]
Results = dict[str, dict[str, list[Report]]]
"""Phase → side → a report a round."""


@dataclass(frozen=True)
class Phase:
    """One kind of load.

    Attributes:
        num_tokens: Of each answer.
        model: Whose engine answers; the peers have no engines and take part without a pace.
    """

    name: str
    num_clients: int
    num_tokens: int
    is_stream: bool
    model: str = MODEL

    def fields(self) -> dict[str, object]:
        """Of the request."""
        if self.is_stream:
            stream = {"ignore_eos": True, "stream": True}
            return {"model": self.model, "max_tokens": self.num_tokens, **stream}
        return {"max_tokens": self.num_tokens}


PHASES = (
    Phase("json-1", 1, NUM_TOKENS, is_stream=False),
    Phase("json-64", 64, NUM_TOKENS, is_stream=False),
    Phase("stream-64", 64, _STREAM_TOKENS, is_stream=True),
    Phase("stream-256", 256, _STREAM_TOKENS, is_stream=True),
    Phase("short-64", 64, NUM_TOKENS, is_stream=True),
    Phase("burst-64", 64, _ENDLESS, is_stream=True, model="burst-64"),
    Phase("burst-256", 256, _ENDLESS, is_stream=True, model="burst-256"),
    Phase("calm-64", 64, _ENDLESS, is_stream=True, model="calm-64"),
    Phase("calm-256", 256, _ENDLESS, is_stream=True, model="calm-256"),
)
NAMES = (*(phase.name for phase in PHASES), "memory", "start")


def load(client: Orders, server: Server, phase: Phase, seconds: float) -> Report:
    """One phase against one server; the report names the processes that it tells of."""
    pids = server.pids_for(phase.model)
    report = client.give(
        do="load",
        port=server.port,
        request=server.request(**phase.fields()),
        clients=phase.num_clients,
        seconds=seconds,
        warmup_s=_WARMUP_S,
        is_stream=phase.is_stream,
        leaves=phase.num_tokens == _ENDLESS,
        pids=list(pids.values()),
    )
    # Several gateways are one in the figures.
    return {**report, "processes": [name.partition("-")[0] for name in pids]}


def rates(args: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of a stream, by model."""
    return {**MODELS, **{name: args.offer / streams for name, streams in BURSTS.items()}}


def measure_rounds(
    args: argparse.Namespace, phases: Sequence[Phase], processes: Processes, directory: Path
) -> Results:
    """Every phase against every side, in turn, `args.rounds` times."""
    penstock = start_penstock(
        processes,
        directory / "p",
        num_tokens=NUM_TOKENS,
        models=rates(args),
        num_gateways=args.gateways,
    )
    template = directory / "template.json"
    make_template(penstock, template, (NUM_TOKENS, _STREAM_TOKENS))
    peers = [start_peer(processes, kind, directory, template) for kind in PEERS]
    client = start_load(processes)
    bare, bare_pids = start_zmq(processes, directory)
    results: Results = {phase.name: {} for phase in phases}
    for number in range(args.rounds):
        # Every other round the other way round, so that a drift of the machine favours nobody.
        servers = [penstock, *peers][:: -1 if number % 2 else 1]
        for phase in phases:
            for server in servers:
                if server is not penstock and phase.model != MODEL:
                    continue
                report = load(client, server, phase, args.seconds)
                results[phase.name].setdefault(server.name, []).append(report)
                _tell(f"round {number + 1}, {phase.name}, {server.name}")
            if not phase.is_stream:
                num_requests = _ZMQ_REQUESTS[phase.num_clients]
                report = bare.give(
                    num_requests=num_requests, num_at_a_time=phase.num_clients, pids=bare_pids
                )
                report |= {"processes": ["ask", "answer"], "answers": num_requests}
                results[phase.name].setdefault("zmq", []).append(report)
    return results


def measure_memory(cores: Cores, directory: Path, template: Path) -> dict[str, Report]:
    """Resident memory of fresh servers with open streams that wait, and with streams at work."""
    figures = {}
    for kind in ("penstock", *PEERS):
        with Processes(cores) as processes:
            if kind == "penstock":
                server = start_penstock(
                    processes, directory / "m", num_tokens=NUM_TOKENS, models=MODELS
                )
            else:
                server = start_peer(processes, kind, directory, template)
            client = start_load(processes)
            process = psutil.Process(next(iter(server.pids.values())))
            load(client, server, PHASES[0], 1.0)
            load(client, server, PHASES[2], 1.0)
            rss = [process.memory_info().rss]
            hold = {"model": "slow", "max_tokens": _STREAM_TOKENS, "stream": True}
            if kind != "penstock":
                hold["user"] = "hold"
            request = server.request(**hold)
            for number, held in enumerate(_HELD):
                more = held - (_HELD[number - 1] if number else 0)
                client.give(do="hold", port=server.port, request=request, clients=more)
                rss.append(process.memory_info().rss)
            client.give(do="release")
            busy = load(client, server, PHASES[3], 3.0)["rss_bytes"][0]
            figures[kind] = {
                "rss_bytes": rss[0],
                "idle_stream_bytes": [
                    (rss[1] - rss[0]) / _HELD[0],
                    (rss[2] - rss[1]) / (_HELD[1] - _HELD[0]),
                ],
                "busy_stream_bytes": (busy - rss[0]) / PHASES[3].num_clients,
            }
            _tell(f"memory, {kind}")
    return figures


def measure_starts(cores: Cores, rounds: int, directory: Path, template: Path) -> Report:
    """Seconds from the first process's start to an answer, of everything that takes part."""
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        with Processes(cores) as processes:
            server = start_penstock(
                processes, directory / f"s{number}", num_tokens=NUM_TOKENS, models={MODEL: 0.0}
            )
            seconds.setdefault("penstock", []).append(server.start_s)
        for kind in PEERS:
            with Processes(cores) as processes:
                server = start_peer(processes, kind, directory, template)
                seconds.setdefault(kind, []).append(server.start_s)
    return seconds


# What the reports say.

_median = statistics.median


def _percentile(values: Sequence[float], percent: int) -> float:
    return values[min(len(values) - 1, len(values) * percent // 100)] if values else float("nan")


def best_ratio(
    sides: Mapping[str, list[Report]], figure: Callable[[Report], float], peer: str
) -> float:
    """The least of the gateway's figures over the least of a peer's: what a calm moment gives."""
    return min(map(figure, sides["penstock"])) / min(map(figure, sides[peer]))


def p50_ms(report: Report) -> float:
    """Median time of an answer."""
    return 1000 * _percentile(report["latencies_s"], 50)


def p99_ms(report: Report) -> float:
    """99th percentile of the time of an answer."""
    return 1000 * _percentile(report["latencies_s"], 99)


def answers_per_s(report: Report) -> float:
    """Whole answers a second."""
    return float(report["answers"] / report["seconds"])


def tokens_per_s(report: Report) -> float:
    """Tokens of streams a second."""
    return float(report["words"] / report["seconds"])


def events_per_s(report: Report) -> float:
    """Events with text a second."""
    return float(report["events"] / report["seconds"])


def cpu_us(report: Report, unit: str) -> dict[str, float]:
    """Process → microseconds of CPU for an answer or a token; the client is one of them."""
    num_units = max(1, report[unit])
    spent: dict[str, float] = {}
    for name, seconds in zip(report["processes"], report["cpu_s"], strict=True):
        spent[name] = spent.get(name, 0.0) + seconds
    if "client_cpu_s" in report:
        spent["client"] = report["client_cpu_s"]
    return {name: 1e6 * seconds / num_units for name, seconds in spent.items()}


def server_cpu_us(unit: str) -> Callable[[Report], float]:
    """CPU for a unit, of the processes that take the requests."""
    return lambda report: next(iter(cpu_us(report, unit).values()))


def ratio(sides: Mapping[str, list[Report]], figure: Callable[[Report], float], peer: str) -> float:
    """The gateway's figure over a peer's, round by round; the median."""
    pairs = zip(sides["penstock"], sides[peer], strict=True)
    return _median(figure(own) / figure(other) for own, other in pairs)


def tables(results: Results) -> list[str]:
    """All phases as Markdown."""
    lines = []
    for phase in PHASES:
        sides = results.get(phase.name)
        if not sides:
            continue
        kind = f"streams of {phase.num_tokens} tokens" if phase.is_stream else "JSON answers"
        lines += ["", f"{phase.name}: {phase.num_clients} clients, {kind}", ""]
        lines += _stream_table(sides) if phase.is_stream else _json_table(sides)
    if "stream-64" in results and "stream-256" in results:
        pairs = zip(
            results["stream-64"]["penstock"], results["stream-256"]["penstock"], strict=True
        )
        share = _median(tokens_per_s(many) / tokens_per_s(few) for few, many in pairs)
        lines += ["", f"256 streams give {share:.2f} of the tokens/s of 64 streams (aim: 0.8)."]
    return lines


def _json_table(sides: Mapping[str, list[Report]]) -> list[str]:
    lines = [
        "| side | p50 ms | p99 ms | requests/s | CPU µs a request, by process |",
        "|---|---|---|---|---|",
    ]
    for side, reports in sides.items():
        p50, p99 = (_median(map(figure, reports)) for figure in (p50_ms, p99_ms))
        rate = _median(map(answers_per_s, reports))
        lines.append(
            f"| {side} | {p50:.2f} | {p99:.2f} | {rate:.0f} | {_cpu_words(reports, 'answers')} |"
        )
    for peer in (peer for peer in PEERS if peer in sides):
        lines += [
            "",
            f"Penstock over {peer}: p50 {ratio(sides, p50_ms, peer):.2f} "
            f"(best of each: {best_ratio(sides, p50_ms, peer):.2f}), "
            f"server CPU a request {ratio(sides, server_cpu_us('answers'), peer):.2f}, "
            f"requests/s {ratio(sides, answers_per_s, peer):.3f}",
        ]
    if {"fastapi", "zmq"} <= sides.keys():
        floor = sum(_median(map(p50_ms, sides[peer])) for peer in ("fastapi", "zmq"))
        lines += ["", f"FastAPI's echo and the bare messages of a request: p50 {floor:.2f} ms"]
    return lines


def _stream_table(sides: Mapping[str, list[Report]]) -> list[str]:
    lines = [
        "| side | tokens/s | events/s | first token p50 ms | CPU µs a token, by process |",
        "|---|---|---|---|---|",
    ]
    for side, reports in sides.items():
        tokens, events = (_median(map(figure, reports)) for figure in (tokens_per_s, events_per_s))
        firsts = [1000 * _percentile(r["first_s"], 50) for r in reports if r["first_s"]]
        first = f"{_median(firsts):.1f}" if firsts else "-"
        lines.append(
            f"| {side} | {tokens:.0f} | {events:.0f} | {first} | {_cpu_words(reports, 'words')} |"
        )
    for peer in (peer for peer in PEERS if peer in sides):
        lines += [
            "",
            f"Penstock over {peer}: tokens/s {ratio(sides, tokens_per_s, peer):.2f}, "
            f"server CPU a token {ratio(sides, server_cpu_us('words'), peer):.2f}",
        ]
    return lines


def _cpu_words(reports: Sequence[Report], unit: str) -> str:
    costs = [cpu_us(report, unit) for report in reports]
    digits = 0 if unit == "answers" else 1
    return ", ".join(
        f"{name} {_median(cost[name] for cost in costs):.{digits}f}" for name in costs[0]
    )


def memory_table(figures: Mapping[str, Report]) -> list[str]:
    """Memory as Markdown."""
    lines = [
        "",
        f"| side | MB without | KB a waiting stream, {_HELD[0]} | the next {_HELD[1] - _HELD[0]} "
        "| KB a working stream, 256 |",
        "|---|---|---|---|---|",
    ]
    for side, one in figures.items():
        idle = " | ".join(f"{value / 1000:.1f}" for value in one["idle_stream_bytes"])
        busy = one["busy_stream_bytes"] / 1000
        lines.append(f"| {side} | {one['rss_bytes'] / 1e6:.0f} | {idle} | {busy:.1f} |")
    return lines


# Where the time goes.


def profile(args: argparse.Namespace, cores: Cores, directory: Path) -> None:
    """One phase with the gateway under cProfile, and once more with its calls counted."""
    phase = next(phase for phase in PHASES if phase.name == (args.only or "json-64"))
    for what in ("profile", "count"):
        out = directory / f"{what}.out"
        module = ("benchmarks.gateway_peers.profiled", what, "--out", str(out))
        with Processes(cores) as processes:
            server = start_penstock(
                processes,
                directory / what,
                num_tokens=NUM_TOKENS,
                models=rates(args),
                gateway=module,
            )
            client = start_load(processes)
            load(client, server, phase, 1.0)
            before = _num_answered(server)
            os.kill(server.pids["gateway"], signal.SIGUSR1)
            report = load(client, server, phase, args.seconds)
            os.kill(server.pids["gateway"], signal.SIGUSR2)
            deadline = time.monotonic() + 10
            while not out.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            num_answers = _num_answered(server) - before
        print(f"\n{what} of {phase.name}: {num_answers} answers, {answers_per_s(report):.0f}/s")
        if what == "count":
            _print_counts(out, num_answers)
        else:
            _print_profile(out, num_answers, args.profile_file)


def _num_answered(server: Server) -> int:
    """What the gateway itself has counted, warm-up included."""
    text = get(server.port, "/metrics", server.key)
    return sum(
        round(float(line.rpartition(" ")[2]))
        for line in text.splitlines()
        if "http_requests_total{" in line and 'route="/v1/chat/completions"' in line
    )


def _print_counts(path: Path, num_answers: int) -> None:
    counts = json.loads(path.read_text(encoding="ascii"))
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count / max(1, num_answers):9.3f} a request  {name}")


def _print_profile(path: Path, num_answers: int, keep: Path | None) -> None:
    if keep is not None:
        keep.write_bytes(path.read_bytes())
    stats = pstats.Stats(str(path), stream=sys.stdout).strip_dirs()
    print(f"microseconds a request under the profiler: {1e6 * stats.total_tt / num_answers:.0f}")  # type: ignore[attr-defined]
    for order in ("tottime", "cumulative"):
        stats.sort_stats(order).print_stats(_PROFILE_ROWS)


# The command.


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for; prints it and gives the figures."""
    cores = Cores(args.pin)
    figures: dict[str, Any] = {"cores": cores.in_words}
    phases = [phase for phase in PHASES if args.only in (None, phase.name)]
    print(f"{args.rounds} rounds of {args.seconds:g} s; {os.cpu_count()} cores, {cores.in_words}")
    print(f"gateways: {args.gateways}")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        directory = Path(folder)
        if args.profile:
            profile(args, cores, directory)
            return figures
        template = directory / "template.json"
        if phases:
            with Processes(cores) as processes:
                results = measure_rounds(args, phases, processes, directory)
            figures["phases"] = results
            print("\n".join(tables(results)))
        if not template.exists():
            with Processes(cores) as processes:
                server = start_penstock(
                    processes, directory / "t", num_tokens=NUM_TOKENS, models={MODEL: 0.0}
                )
                make_template(server, template, (NUM_TOKENS, _STREAM_TOKENS))
        if args.only in (None, "memory"):
            figures["memory"] = measure_memory(cores, directory, template)
            print("\n".join(memory_table(figures["memory"])))
        if args.only in (None, "start"):
            figures["start_s"] = measure_starts(cores, args.rounds, directory, template)
            print("\nstart to ready, seconds:", end=" ")
            print(*(f"{side} {_median(all_s):.2f}" for side, all_s in figures["start_s"].items()))
    return figures


def main() -> None:
    """Parse options, measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--offer", type=float, default=80_000.0, help="tokens/s of the engine of the burst phases"
    )
    parser.add_argument("--only", choices=NAMES, help="one phase, or memory, or start")
    parser.add_argument(
        "--pin",
        nargs="?",
        const="pair",
        default="none",
        choices=("pair", "split", "none"),
        help="pair: all on the same two cores; split: the server alone on the first of them",
    )
    parser.add_argument(
        "--gateways", type=int, default=1, help="that share the port; the CPU is all of theirs"
    )
    parser.add_argument("--profile", action="store_true", help="the gateway under cProfile")
    parser.add_argument("--profile-file", type=Path, help="keep the profile's dump here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if (args.profile or args.gateways != 1) and args.only in ("memory", "start"):
        parser.error("--profile and --gateways need a phase with requests")
    if args.gateways < 1 or (args.profile and args.gateways > 1):
        parser.error("--gateways must be 1 or more, and 1 with --profile")
    # A SIGTERM shall end the children as well: the blocks above do it on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    figures = run(args)
    if args.json:
        args.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
