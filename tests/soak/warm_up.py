"""Requests before memory is measured, until every process has served enough of its own."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

_LEAST_OF_EACH: Final = 1_000
"""Requests that a process serves before its memory is measured, unless it needs more."""
ROUND: Final = 200
"""Requests between two looks at who has served how many."""
_MOST_TIMES: Final = 10
"""Times as many requests as would do if all processes shared them alike are the most."""
_COUNTERS: Final = {
    "engine": "penstock_engine_requests_total",
    "toolparser": "penstock_parser_streams_total",
}
"""Role → what its workers count. Of gateway and auth there is one: it serves every request."""

_KV_BLOCKS: Final = "penstock_engine_kv_blocks"


@dataclass(frozen=True)
class Look:
    """What the gateway's `/metrics` say.

    Attributes:
        served: Role and instance of a worker → requests that it has served since it was started.
        kv_blocks: Of the engine that has most. A block is touched when a request first uses it, and
            the one that was used longest ago is used next: so many requests have touched them all.
    """

    served: Mapping[tuple[str, str], float]
    kv_blocks: int = 0

    def needs(self, role: str) -> int:
        """Requests after which the memory of a process is what it needs for any number of them."""
        return max(_LEAST_OF_EACH, self.kv_blocks) if role == "engine" else _LEAST_OF_EACH


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


def read(metrics: str) -> Look:
    """Who has served how many, by the text of `/metrics`."""
    served: dict[tuple[str, str], float] = {}
    kv_blocks = 0
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            role = sample.labels.get("role", "")
            if sample.name == _COUNTERS.get(role):
                worker = (role, sample.labels["instance"])
                served[worker] = served.get(worker, 0.0) + sample.value
            elif sample.name == _KV_BLOCKS:
                kv_blocks = max(kv_blocks, int(sample.value))
    return Look(served, kv_blocks)


async def warm_up(
    ask: Callable[[int], Awaitable[int]],
    look: Callable[[], Awaitable[Look]],
    processes: Mapping[str, int],
    at_least: int,
) -> WarmUp:
    """Ask until each process has served as many of these requests as it needs.

    Reports of workers are some seconds old, so a little more is asked than it takes.

    Args:
        ask: Sends so many requests, and says how many did not end well.
        look: Who has served how many.
        processes: Role → how many processes of it there are.
        at_least: Requests in all.
    """
    before = await look()
    most = at_least + _MOST_TIMES * sum(
        number * before.needs(role) for role, number in processes.items()
    )
    num_requests = num_failed = 0
    while True:
        num_failed += await ask(ROUND)
        num_requests += ROUND
        cold = _cold(before.served, await look(), processes)
        if (num_requests >= at_least and not cold) or num_requests >= most:
            return WarmUp(num_requests, num_failed, cold)


def _cold(
    before: Mapping[tuple[str, str], float], now: Look, processes: Mapping[str, int]
) -> dict[str, int]:
    """Role → how many of its processes have not served as many since as they need."""
    missing = dict(processes)
    for (role, instance), count in now.served.items():
        if role in missing and count - before.get((role, instance), 0.0) >= now.needs(role):
            missing[role] -= 1
    return {role: number for role, number in missing.items() if number > 0}
