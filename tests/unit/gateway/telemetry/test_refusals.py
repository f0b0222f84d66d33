"""Lines of what never becomes a request: bounded, however many there are."""

import asyncio
import logging
from typing import Any

import pytest

from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.refusals import MAX_LINES, WINDOW_S, Refusals
from tests.fakes.virtual_time import VirtualTimeLoop

LOOP = VirtualTimeLoop


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="penstock.access")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in log.records]


def tell(refusals: Refusals, times: int, status: int = 431, error_code: str = "large") -> list[str]:
    now = asyncio.get_running_loop().time()
    return [refusals.tell("192.0.2.1", status, error_code, now) for _ in range(times)]


async def test_a_flood_has_some_lines_and_one_that_says_how_many_more(
    log: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    refusals = Refusals(AccessLog(is_on=True), metrics)
    ids = tell(refusals, MAX_LINES + 1000)
    assert len(set(ids)) == len(ids)
    assert [one["request_id"] for one in lines(log)] == ids[:MAX_LINES]
    await asyncio.sleep(WINDOW_S)
    assert len(lines(log)) == MAX_LINES + 1
    assert lines(log)[-1]["left_out"] == 1000
    assert (lines(log)[-1]["status"], lines(log)[-1]["error_code"]) == (431, "large")
    assert b'status="431"} 1020.0' in metrics.render()


async def test_a_flood_of_one_kind_hides_no_other(log: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(AccessLog(is_on=True), Metrics())
    tell(refusals, MAX_LINES + 1)
    tell(refusals, 1, 503, "overloaded")
    assert lines(log)[-1]["error_code"] == "overloaded"


async def test_the_next_minute_has_lines_again_and_a_quiet_one_has_none(
    log: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals(AccessLog(is_on=True), Metrics())
    tell(refusals, MAX_LINES)
    await asyncio.sleep(WINDOW_S)
    assert len(lines(log)) == MAX_LINES
    tell(refusals, 1)
    assert len(lines(log)) == MAX_LINES + 1
    await asyncio.sleep(3 * WINDOW_S)
    assert len(lines(log)) == MAX_LINES + 1


async def test_without_an_access_log_they_are_counted_all_the_same(
    log: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    tell(Refusals(AccessLog(is_on=False), metrics), 3)
    assert not log.records
    assert b'status="431"} 3.0' in metrics.render()
