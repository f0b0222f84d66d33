"""What an event of a Responses or Messages stream costs the gateway, beside one of a chat stream.

    python -m benchmarks.stream_shapes [--rounds 5] [--seconds 5] [--streams 64] [--pin pair]

One Penstock (gateway, auth worker with a real key, parser, an engine that speaks at a given pace)
is asked for endless streams in each shape in turn, round by round, so that what else the machine
does weighs on all. Told are medians of the rounds; ratios are made within each round. Nothing is
stored: `python -m benchmarks.stored_turns` says what that adds.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway_peers.processes import (
    CHAT,
    Cores,
    Orders,
    Processes,
    Server,
    start_load,
    start_penstock,
)

_MODEL: Final = "paced"
_ENDLESS: Final = 30_000
_WARMUP_S: Final = 1.0
_SHAPES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "chat": (
        "/v1/chat/completions",
        '"content":" ',
        {"messages": CHAT, "max_tokens": _ENDLESS, "ignore_eos": True},
    ),
    "responses": (
        "/v1/responses",
        '"delta":" ',
        {
            "instructions": CHAT[0]["content"],
            "input": CHAT[1]["content"],
            "max_output_tokens": _ENDLESS,
            "store": False,
        },
    ),
    "messages": (
        "/v1/messages",
        '"text":" ',
        {"system": CHAT[0]["content"], "messages": CHAT[1:], "max_tokens": _ENDLESS},
    ),
}
"""Path, what every event with a word holds and no other, and the body's fields."""


def measure(client: Orders, server: Server, shape: str, args: argparse.Namespace) -> float:
    """Microseconds of the gateway's CPU for an event with text."""
    path, mark, fields = _SHAPES[shape]
    report = client.give(
        do="load",
        port=server.port,
        request=server.post(path, model=_MODEL, stream=True, **fields),
        clients=args.streams,
        seconds=args.seconds,
        warmup_s=_WARMUP_S,
        is_stream=True,
        leaves=True,
        pids=[server.pids["gateway"]],
        mark=mark,
    )
    cpu_s, num_events = float(report["cpu_s"][0]), int(report["events"])
    return 1e6 * cpu_s / max(1, num_events)


def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--pace", type=float, default=50.0, help="tokens/s of each stream")
    parser.add_argument("--pin", choices=["none", "pair", "split"], default="none")
    args = parser.parse_args(arguments)
    costs: dict[str, list[float]] = {shape: [] for shape in _SHAPES}
    cores = Cores(args.pin)
    with tempfile.TemporaryDirectory(prefix="pst-") as folder, Processes(cores) as processes:
        server = start_penstock(
            processes, Path(folder) / "p", num_tokens=_ENDLESS, models={_MODEL: args.pace}
        )
        client = start_load(processes)
        for number in range(args.rounds):
            for shape in list(costs)[:: -1 if number % 2 else 1]:
                costs[shape].append(measure(client, server, shape, args))
    print(f"{args.streams} streams of {args.pace:g} tokens/s, {cores.in_words}")
    print("| shape | CPU µs an event | of a chat's |")
    print("|---|---|---|")
    for shape, found in costs.items():
        ratio = statistics.median(
            own / chat for own, chat in zip(found, costs["chat"], strict=True)
        )
        print(f"| {shape} | {statistics.median(found):.1f} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
