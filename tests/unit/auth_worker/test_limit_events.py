"""What limits tell before and when they are used up: each thing once in a window."""

import hashlib

import pytest

from auth_worker.principals.limit_rules import SLIDING_S, WindowKind
from auth_worker.records.limit_usage import DropCounters, SaveCounter
from auth_worker.records.operations import AppendAudit
from tests.fakes.auth_parts import AuthorityBench
from tests.fakes.limit_bench import bench_of, denied, granted, settle
from tests.fakes.limit_parts import limit


def test_a_budget_warns_from_its_thresholds_on_and_tells_of_each_once() -> None:
    bench = bench_of(limit("money", 1000, "calendar_month", thresholds=(50, 75)))
    for percent in (0, 0, 50, 75):
        lease = granted(bench, completion_tokens=120)
        assert [warning.percent for warning in lease.warnings] == ([percent] if percent else [])
        settle(bench, lease, completion_tokens=120)
    assert [percent for _, percent, _ in told_by(bench)] == [50, 75, 100]


def told_by(bench: AuthorityBench) -> list[tuple[str, object, object]]:
    return [
        (one.entry.action, one.entry.detail["percent"], one.entry.detail["used"])
        for one in bench.emitted
        if isinstance(one, AppendAudit) and one.entry.action != "request_refused"
    ]


@pytest.mark.parametrize("kind", ["minute", "hour", "day"])
def test_a_sliding_budget_tells_of_each_threshold_once_and_again_after_a_window(
    kind: WindowKind,
) -> None:
    bench = bench_of(limit("money", 1000, kind, thresholds=(40, 80)))
    span_s = SLIDING_S[kind]

    def spend(number: int) -> None:
        for _ in range(number):
            settle(bench, granted(bench))

    spend(5)
    for _ in range(3):
        denied(bench)
    assert told_by(bench) == [
        ("budget_warned", 40, 570),
        ("budget_warned", 80, 950),
        ("budget_exceeded", 80, 950),
    ]
    bench.clock.advance(span_s * 1.1)
    spend(2)
    assert len(told_by(bench)) == 3
    spend(1)
    assert told_by(bench)[3:] == [("budget_warned", 40, 570)]


def test_use_that_wavers_about_a_threshold_tells_of_it_once_in_a_window() -> None:
    bench = bench_of(limit("requests", 10, "minute", thresholds=(60,)))
    for _ in range(20):
        bench.clock.advance(11.0)  # when it has left, five count; with the next one six
        settle(bench, granted(bench))
    assert [action for action, _, _ in told_by(bench)] == ["limit_warned"] * 3


def test_a_rate_without_thresholds_tells_of_nothing() -> None:
    bench = bench_of(limit("requests", 1, "minute"))
    settle(bench, granted(bench))
    denied(bench)
    assert told_by(bench) == []


def test_the_slice_of_an_end_users_sliding_budget_goes_when_nothing_counts_in_it_any_more() -> None:
    bench = bench_of(limit("money", 1000, "minute", "end_user", "team_1"))
    settle(bench, granted(bench, end_user="ada"), end_user="ada")
    slices = {one.row.counter_id for one in bench.emitted if isinstance(one, SaveCounter)}
    bench.clock.advance(62.0)
    bench.authority.expire()
    dropped = [one.counter_ids for one in bench.emitted if isinstance(one, DropCounters)]
    assert dropped == [tuple(slices)]
    granted(bench, end_user="ada")


def test_what_is_told_of_an_end_users_count_says_whose_it_is_by_a_digest() -> None:
    bench = bench_of(limit("money", 200, "day", "end_user", "team_1", thresholds=(50,)))
    for name in ("ada@example.com", "bob"):
        settle(bench, granted(bench, end_user=name), end_user=name)
    entries = [one.entry for one in bench.emitted if isinstance(one, AppendAudit)]
    assert [entry.detail["end_user_sha256"] for entry in entries] == [
        hashlib.sha256(name).hexdigest() for name in (b"ada@example.com", b"bob")
    ]
    assert "example.com" not in str(entries)


def test_thresholds_and_the_first_refusal_of_a_window_go_on_record_once() -> None:
    bench = bench_of(
        limit("money", 400, "calendar_month", "team", "team_1", limit_id="bud_1", thresholds=(40,)),
        limit("tokens", 1000, "total", limit_id="lim_1", thresholds=(5,)),
    )
    settle(bench, granted(bench))
    settle(bench, granted(bench))
    for _ in range(20):
        denied(bench)
    entries = [
        (one.entry.action, one.entry.subject, one.entry.detail["percent"], one.entry.detail["used"])
        for one in bench.emitted
        if isinstance(one, AppendAudit) and one.entry.action != "request_refused"
    ]
    assert entries == [
        ("limit_warned", "lim_1", 5, 100),
        ("budget_warned", "bud_1", 40, 190),
        ("budget_exceeded", "bud_1", 40, 380),
    ]
    assert "search" not in str(bench.emitted)


def test_what_only_runs_or_is_too_large_is_not_on_record_as_exceeded() -> None:
    bench = bench_of(limit("money", 200, "total"))
    granted(bench)
    denied(bench)
    denied(bench, completion_tokens=1000)
    actions = [one.entry.action for one in bench.emitted if isinstance(one, AppendAudit)]
    assert set(actions) == {"request_refused"}
