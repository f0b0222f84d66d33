"""Where the use of a limit leads at its pace so far."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from auth_worker.administration.reports import Reports
from auth_worker.principals.keys import ANONYMOUS_KEY_ID
from auth_worker.principals.limit_rules import WindowKind
from auth_worker.principals.projections import DAY_S, project
from protocol.wire.messages import (
    Actor,
    LimitSettings,
    MakeResource,
    ReadStanding,
    ResourcesFound,
    UpdateResource,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import START_S
from tests.fakes.limit_bench import bench_of
from tests.fakes.limit_parts import limit

BEGAN_S = 1_750_000_000.0
MONTH_S = 30 * DAY_S


def test_a_third_of_a_month_that_spent_half_is_empty_after_two_thirds() -> None:
    projection = project(
        10_000_000,
        20_000_000,
        began_s=BEGAN_S,
        ends_s=BEGAN_S + MONTH_S,
        now_s=BEGAN_S + MONTH_S / 3,
    )
    assert projection.daily_burn == 1_000_000
    assert projection.projected == 30_000_000
    assert projection.days_left == pytest.approx(10.0)


def test_what_lasts_beyond_the_window_has_no_end_in_it() -> None:
    projection = project(
        1_000_000, 20_000_000, began_s=BEGAN_S, ends_s=BEGAN_S + MONTH_S, now_s=BEGAN_S + DAY_S
    )
    assert (projection.daily_burn, projection.projected) == (1_000_000, 30_000_000)
    assert projection.days_left == pytest.approx(19.0)
    slower = project(
        500_000, 20_000_000, began_s=BEGAN_S, ends_s=BEGAN_S + MONTH_S, now_s=BEGAN_S + DAY_S
    )
    assert (slower.projected, slower.days_left) == (15_000_000, None)


def test_a_window_without_an_end_has_no_projection_but_days_that_are_left() -> None:
    projection = project(
        2_000_000, 20_000_000, began_s=BEGAN_S, ends_s=None, now_s=BEGAN_S + 2 * DAY_S
    )
    assert (projection.daily_burn, projection.projected) == (1_000_000, None)
    assert projection.days_left == pytest.approx(18.0)


def test_the_first_minutes_are_taken_for_an_hour() -> None:
    projection = project(1000, 10**9, began_s=BEGAN_S, ends_s=None, now_s=BEGAN_S + 60)
    assert projection.daily_burn == 24_000


@pytest.mark.parametrize(
    ("used", "amount", "days_left"), [(0, 5, None), (5, 5, 0.0), (6, 5, 0.0), (0, 0, 0.0)]
)
def test_nothing_used_lasts_and_nothing_left_is_zero_days(
    used: int, amount: int, days_left: float | None
) -> None:
    projection = project(used, amount, began_s=BEGAN_S, ends_s=None, now_s=BEGAN_S + DAY_S)
    assert projection.days_left == days_left


@pytest.mark.parametrize(
    ("window", "age_s", "daily_burn"),
    [
        ("minute", 9 * DAY_S, 100 * 1440),
        ("minute", 60.0, 100 * 1440),
        ("hour", 9 * DAY_S, 100 * 24),
        ("day", 9 * DAY_S, 100),
        ("day", DAY_S / 2, 200),
        ("day", 60.0, 100 * 24),
    ],
)
def test_the_pace_of_a_window_that_slides_is_that_of_its_span_or_of_its_life_so_far(
    window: WindowKind, age_s: float, daily_burn: int
) -> None:
    budget = limit("money", 10**6, window, "house", counts_since=int(START_S - age_s))
    bench = bench_of(budget)
    meter = bench.authority.meter_of(budget)
    meter.settle(bench.clock.monotonic, 0, 100)
    wanted = ReadStanding(request_id="r", reader=Actor(key_id=ANONYMOUS_KEY_ID))
    told = Reports(bench.authority, bench.clock).told(wanted, None)
    (standing,) = told.limits
    assert (standing.used, standing.daily_burn) == (100, daily_burn)


def test_a_limit_whose_window_was_changed_is_projected_from_then_on(tmp_path: Path) -> None:
    bench = AuthHandlerBench(tmp_path)
    actor = Actor(key_id="key_admin")
    monthly = LimitSettings(
        name="b", holder="house", measure="money", amount=10**6, window="calendar_month"
    )
    bench.ask(MakeResource(request_id="r", actor=actor, kind="budget", settings=monthly))
    (made,) = bench.write()
    assert isinstance(made, ResourcesFound)
    budget_id = made.resources[0].resource_id

    def update(**values: Any) -> None:
        command = UpdateResource(
            request_id="r",
            actor=actor,
            kind="budget",
            resource_id=budget_id,
            fields=tuple(values),
            settings=structs.replace(monthly, **values),
        )
        assert bench.ask(command) is None
        assert isinstance(bench.write()[0], ResourcesFound)

    bench.clock.advance(20 * DAY_S)
    update(window="total")
    changed_at = int(bench.clock.wall)
    bench.clock.advance(2 * DAY_S)
    update(amount=10**7, window="total")  # as it is already
    budget = bench.authority.limits.get(budget_id)
    assert budget is not None
    bench.authority.meter_of(budget).settle(bench.clock.monotonic, 0, 100)
    wanted = ReadStanding(request_id="r", reader=Actor(key_id=ANONYMOUS_KEY_ID))
    (standing,) = Reports(bench.authority, bench.clock).told(wanted, None).limits
    assert (standing.used, standing.daily_burn) == (100, 50)
    (stored,) = bench.store.load(recent_since_ms=0).limits
    assert (stored.counts_since, budget.counts_since) == (changed_at, changed_at)
    assert made.resources[0].created_at == int(START_S)
    bench.store.close()
