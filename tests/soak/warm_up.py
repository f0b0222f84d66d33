"""Requests before memory is measured, until every process has served enough of its own."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

LEAST_OF_EACH: Final = 1_000
"""Answers that a process gives before its memory is measured: what it needs for a request of this
sort it has by then, however shortly before it was started."""
ROUND: Final = 200
"""Requests between two looks at who has served how many."""
_MOST_TIMES: Final = 10
"""Times as many requests as would do if all processes shared them alike are the most."""
_COUNTERS: Final = {
    "engine": "penstock_engine_requests_total",
    "toolparser": "penstock_parser_streams_total",
}
"""Role → what its workers count. Of gateway and auth there is one: it serves every request."""

Served = Mapping[tuple[str, str], float]
"""Role and instance of a worker → requests that it has served since it was started."""


@dataclass(frozen=True)
class WarmUp:
    """How it went.

    Attributes:
        num_requests: That were asked.
        num_failed: Of these, how many did not end well.
        cold: Role → processes that had not served enough by the last of them.
    """

    num_requests: int
    num_failed: int
    cold: Mapping[str, int]


def served(metrics: str) -> dict[tuple[str, str], float]:
    """Who has served how many, by the text of the gateway's `/metrics`."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            role = sample.labels.get("role", "")
            if sample.name == _COUNTERS.get(role):
                worker = (role, sample.labels["instance"])
                found[worker] = found.get(worker, 0.0) + sample.value
    return found


async def warm_up(
    ask: Callable[[int], Awaitable[int]],
    look: Callable[[], Awaitable[Served]],
    processes: Mapping[str, int],
    *,
    at_least: int,
    of_each: int = LEAST_OF_EACH,
) -> WarmUp:
    """Ask until each process has served so many of these requests, and all of them so many.

    Reports of workers are some seconds old, so a little more is asked than it takes.

    Args:
        ask: Sends so many requests, and says how many did not end well.
        look: Who has served how many.
        processes: Role → how many processes of it there are.
        at_least: Requests in all.
        of_each: Requests of each process.
    """
    before = await look()
    most = at_least + _MOST_TIMES * of_each * sum(processes.values())
    num_requests = num_failed = 0
    while True:
        num_failed += await ask(ROUND)
        num_requests += ROUND
        cold = _cold(before, await look(), processes, of_each)
        if (num_requests >= at_least and not cold) or num_requests >= most:
            return WarmUp(num_requests, num_failed, cold)


def _cold(
    before: Served, now: Served, processes: Mapping[str, int], of_each: int
) -> dict[str, int]:
    """Role → how many of its processes have not served so many since."""
    missing = dict(processes)
    for (role, instance), count in now.items():
        if count - before.get((role, instance), 0.0) >= of_each and role in missing:
            missing[role] -= 1
    return {role: number for role, number in missing.items() if number > 0}
