"""What was used and what is left: the sums, and who may read about whom."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Connection

from auth_worker.errors import ReportUnavailableError, StoreUnavailableError
from auth_worker.principals.keys import ANONYMOUS_KEY_ID
from auth_worker.records.operations import Flush, ReadUsageRows, Result, UsagePage
from auth_worker.serving.handler import EXPIRED_A_TURN
from auth_worker.serving.ledger_desk import MAX_WAITING, TIMEOUT_S, LedgerDesk
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.usage_table import read_minutes
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Actor,
    AuditPage,
    Failure,
    FindKeys,
    Granted,
    KeySettings,
    KeysFound,
    LimitSettings,
    Message,
    PriceSettings,
    ReadAudit,
    ReadStanding,
    ReadUsage,
    Settle,
    Standing,
    TeamSettings,
    UpdateKey,
    UsageBucket,
    UsageFound,
    UsageRow,
    UserSettings,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import START_S, FakeClock, authorize, booking, stored_key
from tests.fakes.executors import WhenTold
from tests.unit.auth_worker.test_resources import (
    ADMIN,
    asked,
    change,
    found,
    key_belongs,
    make,
    member,
)

HOUR_MS = 3_600_000
NOW = int(START_S)
HOUR_S = NOW // 3600 * 3600
USER = Actor(key_id="key_user")
ALL_TIME = {"since_s": 0, "until_s": 2 * 10**8}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def fill(store: SqlStore) -> None:
    """Five bookings over three days, of two keys and models."""

    def used(lease: str, hours: int, **fields: Any) -> None:
        store.apply([booking(lease, settled_at_ms=hours * HOUR_MS + 5, **fields)])

    used("a", 24, key_id="k1", model="m1", cost_micros=10, user_id="u1", team_id="t1")
    used("b", 24, key_id="k1", model="m1", cost_micros=20, user_id="u1", team_id="t1")
    used("c", 25, key_id="k1", model="m2", cost_micros=1, endpoint="/v1/embeddings")
    used("d", 49, key_id="k2", model="m1", user_id="u1", end_user="e1")
    used("e", 80, key_id="k2", model="m1", outcome="unused")


def read(store: SqlStore, **wanted: Any) -> list[UsageRow]:
    asked_for = ReadUsageRows(**{"since_s": 0, "until_s": 10**9, "limit": 100, **wanted})
    if asked_for.bucket == "minute":
        with store.database.reading(timeout_s=60.0) as connection:
            return list(read_minutes(connection, asked_for).rows)
    (page,) = store.apply([asked_for])
    assert isinstance(page, UsagePage)
    return list(page.rows)


def test_bookings_are_summed_by_time_and_by_what_is_asked_for(store: SqlStore) -> None:
    fill(store)
    (total,) = read(store)
    assert (total.num_requests, total.prompt_tokens, total.completion_tokens) == (4, 40, 80)
    assert (total.cached_tokens, total.reasoning_tokens, total.cost_micros) == (16, 20, 31)
    by_hour = read(store, bucket="hour")
    assert [(row.begins_at // 3600, row.num_requests) for row in by_hour] == [
        (24, 2),
        (25, 1),
        (49, 1),
    ]
    by_day = read(store, bucket="day", group_by=("model", "key"))
    assert [(row.begins_at, row.model, row.key_id, row.cost_micros) for row in by_day] == [
        (86_400, "m1", "k1", 30),
        (86_400, "m2", "k1", 1),
        (172_800, "m1", "k2", 0),
    ]
    by_minute = read(store, since_s=24 * 3600 + 30, until_s=25 * 3600 + 1, bucket="minute")
    assert [(row.begins_at, row.num_requests, row.cost_micros) for row in by_minute] == [
        (24 * 3600, 2, 30),
        (25 * 3600, 1, 1),
    ]
    of_one = read(store, bucket="minute", group_by=("model", "user"), key_id="k2")
    assert [(row.begins_at, row.model, row.user_id) for row in of_one] == [(49 * 3600, "m1", "u1")]
    by_whom = read(store, group_by=("user", "team", "end_user", "endpoint"))
    assert {(row.user_id, row.team_id, row.end_user, row.endpoint) for row in by_whom} == {
        ("u1", "t1", "", ""),
        ("", "", "", "/v1/embeddings"),
        ("u1", "", "e1", ""),
    }


@pytest.mark.parametrize(
    ("wanted", "num_requests"),
    [
        ({"key_id": "k1"}, 3),
        ({"user_id": "u1"}, 3),
        ({"team_id": "t1"}, 2),
        ({"end_user": "e1"}, 1),
        ({"model": "m2"}, 1),
        ({"since_s": 25 * 3600}, 2),
        ({"since_s": 25 * 3600 + 1}, 2),
        ({"until_s": 25 * 3600}, 2),
        ({"until_s": 25 * 3600 + 1}, 3),
        ({"key_id": "k1", "model": "m1", "since_s": 25 * 3600}, 0),
    ],
)
def test_only_what_fits_is_summed(
    store: SqlStore, wanted: dict[str, Any], num_requests: int
) -> None:
    fill(store)
    assert sum(row.num_requests for row in read(store, **wanted)) == num_requests


def test_rows_come_in_pages(store: SqlStore) -> None:
    fill(store)
    pages = [read(store, bucket="hour", skip=skip, limit=2) for skip in (0, 2)]
    assert [[row.begins_at // 3600 for row in page] for page in pages] == [[24, 25], [49]]


def test_minutes_are_read_beside_the_commits(tmp_path: Path) -> None:
    thread = WhenTold()
    bench = AuthHandlerBench(tmp_path, reports_thread=thread)
    with closing(bench.store):
        by_minute = ReadUsage(
            request_id="minutes",
            reader=USER,
            since_s=NOW - 60,
            until_s=NOW + 60,
            bucket="minute",
        )
        assert bench.ask(by_minute) is None
        assert bench.write() == []
        assert (bench.handler.num_unfinished(), bench.committer.num_unanswered) == (1, 0)
        spend(bench, 1, 5, 6)  # is settled while the question waits
        bench.sent.clear()
        thread.run()
        ((_, answer),) = bench.sent
        assert isinstance(answer, UsageFound)
        assert [(row.begins_at, row.completion_tokens) for row in answer.rows] == [
            (NOW // 60 * 60, 6)
        ]
        assert bench.handler.num_unfinished() == 0


def test_minutes_that_take_too_long_or_wait_in_numbers_are_refused(tmp_path: Path) -> None:
    thread, answers = WhenTold(), list[Result]()
    minutes = ReadUsageRows(0, 60, 10, bucket="minute")

    def reading(*, timeout_s: float | None = None) -> AbstractContextManager[Connection]:
        assert timeout_s == TIMEOUT_S
        raise StoreUnavailableError("postgresql://secret.example: canceling statement")

    lists = WhenTold()
    desk = LedgerDesk(reading, thread, lists, lambda function, *args: function(*args), FakeClock())
    for _ in range(MAX_WAITING + 1):
        desk.read(minutes, answers.append)
    (refused,) = answers
    assert isinstance(refused, ReportUnavailableError)
    thread.run()
    assert len(answers) == MAX_WAITING + 1
    late = answers[-1]
    assert isinstance(late, ReportUnavailableError)
    assert "less time" in late.message
    assert "secret" not in late.message
    desk.read(minutes, answers.append)
    assert (len(thread.jobs), len(lists.jobs)) == (1, 0)


def test_lists_do_not_wait_for_reports(tmp_path: Path) -> None:
    reports = WhenTold()
    bench = AuthHandlerBench(tmp_path, reports_thread=reports)
    with closing(bench.store):
        usage = ReadUsage(request_id="r", reader=USER, since_s=NOW - 60, until_s=NOW + 60)
        for _ in range(MAX_WAITING):
            assert bench.ask(usage) is None
        assert bench.write() == []
        assert len(reports.jobs) == MAX_WAITING
        for command, kind in (
            (FindKeys(request_id="r", actor=Actor(key_id="key_admin")), KeysFound),
            (ReadAudit(request_id="r", reader=ADMIN, limit=10), AuditPage),
        ):
            assert bench.ask(command) is None
            (answer,) = bench.write()
            assert isinstance(answer, kind)


@pytest.mark.parametrize("bucket", ["", "hour", "minute"])
def test_a_report_tells_of_every_lease_that_is_due(tmp_path: Path, bucket: UsageBucket) -> None:
    """However many turns it takes to charge them, and with their charges committed."""
    soon = list[Callable[[], object]]()
    bench = AuthHandlerBench(tmp_path)
    bench.handler._call_soon = lambda function, *args: soon.append(partial(function, *args))
    bench.committer._max_backlog = 10 * EXPIRED_A_TURN
    with closing(bench.store):
        for _ in range(EXPIRED_A_TURN + 3):
            assert isinstance(bench.ask(authorize()), Granted)
        bench.clock.advance(601)
        now = int(bench.clock.wall)
        usage = ReadUsage(
            request_id="r", reader=USER, since_s=now - 60, until_s=now + 60, bucket=bucket
        )
        assert bench.ask(usage) is None
        answers = list(bench.write())
        while soon:
            soon.pop(0)()
            answers += bench.write()
        (answer,) = answers
        assert isinstance(answer, UsageFound)
        assert sum(row.num_requests for row in answer.rows) == EXPIRED_A_TURN + 3


def test_a_statement_that_takes_too_long_is_ended(store: SqlStore) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT -i FROM n) SELECT sum(i) FROM n"
    with (
        pytest.raises(StoreUnavailableError),
        store.database.reading(timeout_s=0.05) as connection,
    ):
        connection.exec_driver_sql(endless).all()
    assert store.apply([Flush()]) == [None]


def usage(bench: AuthHandlerBench, reader: Actor, **wanted: Any) -> Message:
    command = ReadUsage(
        request_id="r",
        reader=reader,
        **{"since_s": NOW - 86_400, "until_s": NOW + 86_400, **wanted},
    )
    return asked(bench, command)


def standing(bench: AuthHandlerBench, reader: Actor, **wanted: Any) -> Message:
    return asked(bench, ReadStanding(request_id="r", reader=reader, **wanted))


def spend(bench: AuthHandlerBench, lease: int, prompt: int, completion: int) -> None:
    granted = bench.ask(authorize(request_id=f"req-{lease}"))
    if granted is None:
        (granted,) = bench.write()
    assert isinstance(granted, Granted), granted
    asked(
        bench,
        Settle(
            lease_id=granted.lease_id,
            request_id=f"req-{lease}",
            prompt_tokens=prompt,
            completion_tokens=completion,
        ),
    )


def team_with_a_budget(bench: AuthHandlerBench) -> tuple[str, str, str]:
    """A team of $20 a month, whose member has the test's user key."""
    user = found(make(bench, "user", UserSettings(name="Ada"))).resource_id
    team = found(make(bench, "team", TeamSettings(name="search"))).resource_id
    found(member(bench, team, user, "member"))
    key_belongs(bench, user_id=user, team_id=team)
    found(make(bench, "price", PriceSettings(models="*", prompt=10**9, completion=10**11)))
    budget = LimitSettings(
        name="monthly",
        holder="team",
        holder_id=team,
        measure="money",
        amount=20_000_000,
        window="calendar_month",
        thresholds=(5, 80),
    )
    return user, team, found(make(bench, "budget", budget)).resource_id


def test_what_was_spent_is_told_with_its_pace(bench: AuthHandlerBench) -> None:
    _, team, budget = team_with_a_budget(bench)
    bench.clock.advance(2 * 3600)
    spend(bench, 1, 0, 20)  # of $0.10 each
    told = standing(bench, USER)
    assert isinstance(told, Standing)
    (one,) = told.limits
    assert (one.limit_id, one.settings.holder_id, one.amount) == (budget, team, 20_000_000)
    assert (one.used, one.reserved, one.passed) == (2_000_000, 0, (5,))
    assert one.daily_burn == 24_000_000
    assert one.ends_at is not None
    assert one.begins_at is not None
    assert one.begins_at <= NOW < one.ends_at
    assert one.days_left == pytest.approx(18 / 24)
    assert one.projected is not None
    assert one.projected > one.amount
    assert told.key is not None
    assert (told.key.key_id, told.key.total_cost_micros) == ("key_user", 2_000_000)
    assert "usage.read" in told.scopes
    assert "admin.keys" not in told.scopes
    rows = usage(bench, USER, bucket="day", group_by=("model", "team"))
    assert isinstance(rows, UsageFound)
    (row,) = rows.rows
    assert (row.model, row.team_id, row.cost_micros, row.num_requests) == (
        "demo",
        team,
        2_000_000,
        1,
    )


def test_the_limits_of_a_keys_own_row_stand_there_as_well(bench: AuthHandlerBench) -> None:
    bounded = UpdateKey(
        request_id="r",
        actor=ADMIN,
        key_id="key_user",
        fields=("requests_per_minute", "max_parallel_requests"),
        settings=KeySettings(name="", requests_per_minute=5, max_parallel_requests=2),
    )
    asked(bench, bounded)
    spend(bench, 1, 1, 1)
    told = standing(bench, USER)
    assert isinstance(told, Standing)
    (one,) = told.limits
    assert (one.settings.measure, one.settings.window, one.amount, one.used) == (
        "requests",
        "minute",
        5,
        1,
    )
    assert (one.begins_at, one.ends_at, one.days_left) == (None, None, None)


@pytest.mark.parametrize(
    ("whose", "may"),
    [
        ({}, True),
        ({"key_id": "key_user"}, True),
        ({"key_id": "key_admin"}, False),
        ({"user_id": "own"}, True),
        ({"user_id": "other"}, False),
        ({"team_id": "own"}, False),
        ({"team_id": "other"}, False),
        ({"key_id": "key_user", "team_id": "other"}, False),
        ({"key_id": "key_user", "user_id": "other"}, False),
        ({"is_of_all": True}, False),
    ],
)
def test_a_key_reads_about_itself_and_its_user_and_an_admin_about_all(
    bench: AuthHandlerBench, whose: dict[str, Any], may: bool
) -> None:
    user, team, _ = team_with_a_budget(bench)
    other_user = found(make(bench, "user", UserSettings(name="Bob"))).resource_id
    other_team = found(make(bench, "team", TeamSettings(name="ads"))).resource_id
    ids = {
        "user_id": {"own": user, "other": other_user},
        "team_id": {"own": team, "other": other_team},
    }
    wanted = {name: ids.get(name, {}).get(value, value) for name, value in whose.items()}
    expected = (UsageFound,) if may else (Failure,)
    assert isinstance(usage(bench, USER, **wanted), expected)
    assert isinstance(usage(bench, ADMIN, **wanted), UsageFound)
    if "is_of_all" not in wanted:
        assert isinstance(standing(bench, USER, **wanted), Standing if may else Failure)
        assert isinstance(standing(bench, ADMIN, **wanted), Standing)


def test_the_owner_of_a_team_reads_about_it(bench: AuthHandlerBench) -> None:
    user, team, budget = team_with_a_budget(bench)
    found(member(bench, team, user, "owner"))
    assert isinstance(usage(bench, USER, team_id=team), UsageFound)
    told = standing(bench, USER, team_id=team)
    assert isinstance(told, Standing)
    assert [one.limit_id for one in told.limits] == [budget]
    assert told.key is None
    change(bench, "team", team, "suspend")
    assert isinstance(usage(bench, USER, team_id=team), Failure)


def test_who_needs_no_key_reads_about_what_is_nobodys(bench: AuthHandlerBench) -> None:
    nobody = Actor(key_id=ANONYMOUS_KEY_ID)
    assert isinstance(usage(bench, nobody), UsageFound)
    told = standing(bench, nobody)
    assert isinstance(told, Standing)
    assert told.key is None
    assert isinstance(usage(bench, nobody, is_of_all=True), Failure)


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"skip": -1}, "after"),
        ({"skip": 10**6 + 1}, "after"),
        ({"since_s": 5, "until_s": 5}, "until"),
        ({"since_s": -1}, "until"),
        ({"since_s": 0, "until_s": 10**10}, "until"),
        ({"since_s": 0, "until_s": 1441 * 60 + 1, "bucket": "minute"}, "until"),
    ],
)
def test_a_question_without_bounds_is_refused(
    bench: AuthHandlerBench, wanted: dict[str, Any], param: str
) -> None:
    answer = usage(bench, USER, **wanted)
    assert isinstance(answer, Failure)
    assert (answer.code, answer.param) == (ErrorCode.INVALID_REQUEST, param)


def test_nobody_reads_about_what_is_not_there(bench: AuthHandlerBench) -> None:
    for whose in ({"key_id": "key_9"}, {"user_id": "user_9"}, {"team_id": "team_9"}):
        answer = standing(bench, ADMIN, **whose)
        assert isinstance(answer, Failure)
        assert answer.code is ErrorCode.NOT_FOUND
    unnamed = standing(bench, USER, end_user="e1")
    assert isinstance(unnamed, Failure)
    assert unnamed.param == "end_user"


def test_a_token_acts_by_what_it_says_itself(bench: AuthHandlerBench) -> None:
    # Of one subject: what was narrowed for a program, and what its person holds for longer.
    narrow, wide = (
        replace(
            stored_key("token_ada", f"eyJ.{role}.x", role=role),
            expires_at=int(START_S) + lifetime_s,
        )
        for role, lifetime_s in (("user", 60), ("admin", 3600))
    )
    for token in (narrow, wide):
        assert bench.authority.keys.put_token(token) is None
    weak, strong = (Actor(key_id="token_ada", key_digest=one.digest) for one in (narrow, wide))
    of_all = ReadUsage(request_id="r", reader=weak, is_of_all=True, since_s=0, until_s=10**8)
    for command in (
        of_all,
        ReadStanding(request_id="r", reader=weak, key_id="key_user"),
        FindKeys(request_id="r", actor=weak),
    ):
        answer = bench.ask(command)
        assert isinstance(answer, Failure)
        assert answer.code is ErrorCode.PERMISSION_DENIED
    assert isinstance(make(bench, "user", UserSettings(name="x"), weak), Failure)
    assert bench.ask(FindKeys(request_id="r", actor=strong)) is None
    assert bench.ask(structs.replace(of_all, reader=strong)) is None
    stolen = Actor(key_id="key_admin", key_digest=narrow.digest)
    assert isinstance(bench.ask(FindKeys(request_id="r", actor=stolen)), Failure)


@pytest.mark.parametrize(
    "command",
    [
        ReadUsage(
            request_id="r",
            reader=USER,
            since_s=NOW - 60,
            until_s=NOW + 60,
            group_by=("model",),
        ),
        ReadAudit(request_id="r", reader=ADMIN, limit=10, outcome="refused"),
    ],
)
def test_what_may_be_long_is_read_beside_the_commits(tmp_path: Path, command: Any) -> None:
    thread = WhenTold()
    bench = AuthHandlerBench(tmp_path, reports_thread=thread, lists_thread=thread)
    with closing(bench.store):
        spend(bench, 0, 3, 4)
        assert bench.ask(command) is None
        assert bench.write() == []
        assert bench.handler.num_unfinished() == 1
        bench.sent.clear()
        thread.run()
        ((_, answer),) = bench.sent
        if isinstance(answer, UsageFound):
            assert [(row.model, row.completion_tokens) for row in answer.rows] == [("demo", 4)]
        else:
            assert isinstance(answer, AuditPage)
        assert bench.handler.num_unfinished() == 0
