"""What storing a response adds to its turn: pairs of requests, stored and not, one after another.

    python -m benchmarks.stored_turns [--pairs 400] [--rounds 5] [--store URL]

A gateway with a scripted engine, so that a turn is short and the store stands out. Each round
alternates a request with `store: false` and one that is stored, then the same with
`previous_response_id` and a chain of eight turns. Told are medians of each round, and the median of
their differences; the machine may be busy, both sides of a pair alike.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fakes.running_gateway import RunningGateway, running_gateway

_BODY = {"model": "demo", "input": "What is a penstock?"}
_CHAIN = 8


async def timed(gateway: RunningGateway, **fields: Any) -> tuple[float, str]:
    """Milliseconds of one request, and the id of its response."""
    begun = time.perf_counter()
    answer = await gateway.client.post("/v1/responses", json={**_BODY, **fields})
    took_ms = (time.perf_counter() - begun) * 1000
    return took_ms, answer.json()["id"]


async def measure(store_url: str, num_pairs: int, num_rounds: int) -> None:
    """Print a row a round."""
    with tempfile.TemporaryDirectory(prefix="pst-") as directory:
        async with running_gateway(
            Path(directory), store_url=store_url, access_log=False
        ) as gateway:
            await gateway.auth()
            await gateway.engine(text=("A", " pipe", "."))
            last = ""
            for _ in range(_CHAIN):
                more = {"previous_response_id": last} if last else {}
                last = (await timed(gateway, **more))[1]
            print("| round | not stored | stored | adds | continues 8 turns, stored | adds |")
            print("|---|---|---|---|---|---|")
            added: list[tuple[float, float]] = []
            for number in range(num_rounds):
                plain, stored, continued = [], [], []
                for _ in range(num_pairs):
                    plain.append((await timed(gateway, store=False))[0])
                    stored.append((await timed(gateway))[0])
                    continued.append((await timed(gateway, previous_response_id=last))[0])
                one, two, three = map(statistics.median, (plain, stored, continued))
                added.append((two - one, three - one))
                print(
                    f"| {number + 1} | {one:.2f} ms | {two:.2f} ms | {two - one:.2f} ms"
                    f" | {three:.2f} ms | {three - one:.2f} ms |"
                )
            medians = [statistics.median(column) for column in zip(*added, strict=True)]
            print(f"\nmedian: stored adds {medians[0]:.2f} ms, continued {medians[1]:.2f} ms")


def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", default="", metavar="URL", help="as PENSTOCK_STORE_URL")
    options = parser.parse_args(arguments)
    asyncio.run(measure(options.store, options.pairs, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
