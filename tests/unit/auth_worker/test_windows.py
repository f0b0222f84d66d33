"""Fixed windows tile the time, whatever the clocks of a time zone do."""

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_worker.decisions.windows import Span, span_at
from auth_worker.principals.limit_rules import Limit, Window, WindowKind
from auth_worker.service import require_time_zones
from protocol.errors import ConfigurationError

KINDS: tuple[WindowKind, ...] = (
    "calendar_day",
    "calendar_week",
    "calendar_month",
    "calendar_year",
)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",  # summer time began and ended at midnight until 2019
    "America/Havana",  # and still does so
    "Australia/Lord_Howe",  # by half an hour
    "Asia/Kathmandu",
    "Pacific/Kiritimati",
)


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@given(
    kind=st.sampled_from(KINDS),
    zone=st.sampled_from(ZONES),
    moment=st.floats(at("2001-01-02"), at("2037-12-30"), allow_nan=False),
)
def test_windows_follow_each_other_without_gap_or_overlap(
    kind: WindowKind, zone: str, moment: float
) -> None:
    window = Window(kind, zone)
    span = span_at(window, moment)
    assert span.begins_s <= moment < span.ends_s
    assert span_at(window, span.begins_s) == span
    assert span_at(window, math.nextafter(span.ends_s, 0.0)) == span
    assert span_at(window, span.ends_s).begins_s == span.ends_s


@pytest.mark.parametrize(
    ("kind", "zone", "moment", "begin", "end"),
    [
        (
            "calendar_day",
            "Europe/Berlin",
            "2026-03-29T12:00",
            "2026-03-28T23:00",
            "2026-03-29T22:00",
        ),
        (
            "calendar_day",
            "Europe/Berlin",
            "2026-10-25T12:00",
            "2026-10-24T22:00",
            "2026-10-25T23:00",
        ),
        ("calendar_week", "UTC", "2026-01-01T00:00", "2025-12-29T00:00", "2026-01-05T00:00"),
        ("calendar_month", "UTC", "2024-02-29T23:59", "2024-02-01T00:00", "2024-03-01T00:00"),
        (
            "calendar_month",
            "America/New_York",
            "2026-03-01T01:00",
            "2026-02-01T05:00",
            "2026-03-01T05:00",
        ),
        (
            "calendar_year",
            "Pacific/Kiritimati",
            "2026-12-31T09:59",
            "2025-12-31T10:00",
            "2026-12-31T10:00",
        ),
        # Midnight of 4 November 2018 did not exist in São Paulo: the day began at 01:00.
        (
            "calendar_day",
            "America/Sao_Paulo",
            "2018-11-04T12:00",
            "2018-11-04T03:00",
            "2018-11-05T02:00",
        ),
        # In Havana, 00:00 to 01:00 came twice on 1 November 2026: the day began with the first.
        (
            "calendar_day",
            "America/Havana",
            "2026-11-01T12:00",
            "2026-11-01T04:00",
            "2026-11-02T05:00",
        ),
    ],
)
def test_a_calendar_window_begins_with_the_local_day(
    kind: WindowKind, zone: str, moment: str, begin: str, end: str
) -> None:
    assert span_at(Window(kind, zone), at(moment)) == Span(at(begin), at(end))


def test_a_custom_window_repeats_by_its_length_from_its_start() -> None:
    window = Window("custom", starts_at=1000, length_s=50)
    assert span_at(window, 1000.0) == Span(1000.0, 1050.0)
    assert span_at(window, 1149.5) == Span(1100.0, 1150.0)
    assert span_at(window, 999.9) == Span(-math.inf, 1000.0, is_open=False)


def test_a_custom_window_without_a_length_and_a_total_never_end() -> None:
    assert span_at(Window("custom", starts_at=1000), 5e9) == Span(1000.0, math.inf)
    assert span_at(Window("total"), 5e9) == Span(-math.inf, math.inf)


def test_a_window_that_slides_has_no_begin() -> None:
    with pytest.raises(ValueError, match="slides"):
        span_at(Window("minute"), datetime(2026, 1, 1, tzinfo=UTC).timestamp())


def test_a_time_zone_that_the_machine_does_not_have_ends_the_start_with_a_line_that_names_it() -> (
    None
):
    """A newer system may have left it out: nobody would know when its windows begin."""
    good, bad = (
        Limit(f"bud_{n}", f"b{n}", "house", "", "money", 1, Window("calendar_month", zone))
        for n, zone in enumerate(("Europe/Berlin", "Nowhere/Land"))
    )
    require_time_zones((good,))
    with pytest.raises(ConfigurationError, match=r"Nowhere/Land of 'b1' \(bud_1\)") as caught:
        require_time_zones((good, bad))
    assert "tzdata" in caught.value.message
    assert "\n" not in caught.value.message
