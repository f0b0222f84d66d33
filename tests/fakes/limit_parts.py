"""Limits, prices and meters for tests, with defaults that say little."""

from collections.abc import Iterable
from itertools import count
from typing import Any

from auth_worker.decisions.meters import Meter, ParallelMeter, SlidingMeter
from auth_worker.decisions.plans import Plan
from auth_worker.principals.limit_rules import Holder, Limit, Measure, Window, WindowKind
from auth_worker.principals.prices import Price

_numbers = count(1)
HOUSE_PRICE = Price(
    "price_all",
    version=1,
    models="*",
    valid_from_ms=0,
    prompt=1_000_000,
    cached_prompt=500_000,
    completion=2_000_000,
    reasoning=2_000_000,
    embedding=100_000,
)
"""A prompt token costs one micro-unit, a completion token two, a cached token half of one."""


def limit(
    measure: Measure,
    amount: int,
    window: WindowKind | Window = "minute",
    holder: Holder = "key",
    holder_id: str = "key_user",
    **fields: Any,
) -> Limit:
    return Limit(
        fields.pop("limit_id", f"{'bud' if measure == 'money' else 'lim'}_{next(_numbers)}"),
        fields.pop("name", "a limit"),
        holder,
        "" if holder == "house" else holder_id,
        measure,
        amount,
        window if isinstance(window, Window) else Window(window),
        **fields,
    )


def meter(measure: Measure, amount: int, window: WindowKind = "minute") -> SlidingMeter:
    return SlidingMeter(limit(measure, amount, window), "", amount)


def parallel(amount: int) -> ParallelMeter:
    return ParallelMeter(limit("parallel", amount), "", amount)


def plan(*meters: Meter) -> Plan:
    return Plan(meters, float("-inf"), float("inf"))


def held_by(meters: Iterable[Meter]) -> list[int]:
    return [one.held for one in meters]
