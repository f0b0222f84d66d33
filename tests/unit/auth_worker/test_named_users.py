"""End users are named by clients: how many are counted, and who makes room for a new one."""

from typing import Any

import pytest

from auth_worker.decisions.meter_table import SWEPT_A_TURN
from auth_worker.decisions.named_users import LOOKED_AT, NamedUsers
from auth_worker.principals.limit_rules import Limit, WindowKind
from auth_worker.records.limit_usage import CounterRow, DropCounters, SaveCounter
from auth_worker.records.operations import Snapshot
from protocol.errors import ErrorCode
from protocol.wire.messages import Denied, Granted, Settle
from tests.fakes.auth_parts import AuthorityBench, authority_bench, authorize, stored_key
from tests.fakes.limit_parts import limit

KEY = stored_key(may_name_end_users=True)
MANY = 4 * LOOKED_AT


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds of ten thousand names holds of fewer, which are counted sooner."""
    defaults = NamedUsers.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "max_a_template", MANY)


def bench_of(*limits: Limit, **fields: Any) -> AuthorityBench:
    return authority_bench(
        snapshot=Snapshot(keys=(KEY,), leases=(), recent=(), limits=limits, **fields)
    )


def template(window: WindowKind, amount: int = 10**6, **fields: Any) -> Limit:
    return limit("tokens", amount, window, "end_user", "key_user", **fields)


def use(bench: AuthorityBench, name: str) -> Granted | Denied:
    """One request of an end user, settled at once."""
    answer = bench.authority.authorize(authorize(end_user=name))
    assert isinstance(answer, Granted | Denied)
    if isinstance(answer, Granted):
        settle = Settle(
            lease_id=answer.lease_id, request_id="r", prompt_tokens=1, completion_tokens=1
        )
        bench.authority.settle(settle)
    return answer


def used_by_many(bench: AuthorityBench) -> None:
    for number in range(MANY):
        assert isinstance(use(bench, f"user-{number}"), Granted)


@pytest.mark.usefixtures("few_are_many")
def test_one_end_user_too_many_is_refused_and_those_who_are_counted_go_on() -> None:
    bench = bench_of(template("total", name="each"))
    used_by_many(bench)
    answer = use(bench, "one too many")
    assert isinstance(answer, Denied)
    assert answer.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert f"{MANY} of them" in answer.message
    assert "'each'" in answer.message
    assert isinstance(use(bench, "user-0"), Granted)
    assert isinstance(use(bench, ""), Granted)


@pytest.mark.usefixtures("few_are_many")
def test_whoever_is_idle_makes_room_and_starts_anew_later() -> None:
    bench = bench_of(template("minute"))
    used_by_many(bench)
    assert isinstance(use(bench, "early"), Denied)
    bench.clock.advance(62)
    assert isinstance(use(bench, "new"), Granted)
    assert isinstance(use(bench, "user-0"), Granted)


def test_an_end_user_whose_request_runs_keeps_his_place_and_his_count() -> None:
    bench = bench_of(template("minute", is_hard=False))
    lease = bench.authority.authorize(authorize(end_user="slow"))
    assert isinstance(lease, Granted)
    bench.clock.advance(62)
    for _ in range(3):
        bench.authority.expire()
    settle = Settle(lease_id=lease.lease_id, request_id="r", prompt_tokens=30, completion_tokens=40)
    bench.authority.settle(settle)
    (each,) = bench.authority.limits.of("end_user", "key_user")
    assert bench.authority.meter_of(each, "slow").total == 70


def test_a_sweep_looks_at_some_at_a_time_and_at_all_in_the_end() -> None:
    bench = bench_of(template("hour"))
    names = [f"user-{number}" for number in range(2 * SWEPT_A_TURN)]
    for name in names:
        use(bench, name)
    bench.emitted.clear()
    bench.clock.advance(3700)
    bench.authority.expire()
    let_go = [one for one in bench.emitted if isinstance(one, DropCounters)]
    assert len(let_go) == SWEPT_A_TURN
    bench.authority.expire()
    let_go = [one for one in bench.emitted if isinstance(one, DropCounters)]
    assert len(let_go) == len(names)


def test_asking_how_a_name_stands_makes_nobody_known() -> None:
    hour, month = template("hour"), template("calendar_month")
    bench = bench_of(hour, month)
    for number in range(50):
        for each in (hour, month):
            assert bench.authority.meter_of(each, f"nobody-{number}").total == 0
    assert not [one for one in bench.emitted if isinstance(one, SaveCounter)]


@pytest.mark.parametrize("rolls_over", [False, True])
def test_what_a_window_leaves_lapses_for_whoever_is_away_for_the_whole_next_one(
    rolls_over: bool,
) -> None:
    month = template("calendar_month", rolls_over=rolls_over, amount=100)
    bench = bench_of(month)
    use(bench, "ada")
    bench.clock.advance(31 * 86_400)
    bench.authority.expire()
    use(bench, "ada")
    meter = bench.authority.meter_of(month, "ada")
    assert meter.amount == (2 * month.amount - 2 if rolls_over else month.amount)
    bench.clock.advance(93 * 86_400)
    bench.authority.expire()
    assert bench.authority.meter_of(month, "ada").amount == month.amount


def test_a_window_that_is_not_followed_by_another_is_remembered() -> None:
    once = template("calendar_day", auto_renews=False)
    bench = bench_of(once)
    use(bench, "ada")
    bench.clock.advance(2 * 86_400)
    bench.authority.expire()
    assert isinstance(use(bench, "ada"), Denied)


@pytest.mark.usefixtures("few_are_many")
def test_names_of_before_a_restart_have_their_places() -> None:
    each = template("total")
    rows = tuple(
        CounterRow(number + 1, each.limit_id, f"user-{number}", 0, used=5) for number in range(MANY)
    )
    bench = bench_of(each, counters=rows)
    assert isinstance(use(bench, "new"), Denied)
    assert isinstance(use(bench, "user-1"), Granted)


def test_a_holder_has_a_bound_over_all_its_templates_and_the_server_one_over_all_holders() -> None:
    gone: set[tuple[str, str]] = set()

    def let_go(limit_id: str, end_user: str) -> bool:
        is_gone = (limit_id, end_user) in gone
        if is_gone:
            named.remove(limit_id, end_user)
        return is_gone

    named = NamedUsers(let_go, max_a_template=3, max_a_holder=4, max_names=6)
    of_a = [limit("tokens", 1, "total", "end_user", "key_a") for _ in range(2)]
    of_b = limit("tokens", 1, "total", "end_user", "key_b")

    def add(one: Limit, *names: str) -> None:
        for name in names:
            assert named.admit(one, name) is None
            named.add(one, name)

    add(of_a[0], "1", "2", "3")
    add(of_a[1], "1")
    assert named.admit(of_a[1], "2") is not None
    add(of_b, "1", "2")
    assert len(named) == 6
    assert named.admit(of_b, "3") is not None
    gone.add((of_b.limit_id, "2"))
    add(of_b, "3")
    counted = [(of_a[0], "123"), (of_a[1], "1"), (of_b, "13")]
    pairs = {(one.limit_id, name) for one, names in counted for name in names}
    assert set(named.take_turn(100)) == pairs


def test_a_turn_gives_so_many_names_and_turns_come_to_all_of_them() -> None:
    named = NamedUsers(lambda _limit_id, _end_user: False)
    templates = [limit("tokens", 1, "total", "end_user", f"key_{number}") for number in range(3)]
    for number, each in enumerate(templates):
        for name in range(1 + 3 * number):
            named.add(each, str(name))
    assert len(named) == 12
    rounds = [named.take_turn(5) for _ in range(12)]
    assert all(len(some) == 5 for some in rounds)
    given = [pair for some in rounds for pair in some]
    assert {given.count(pair) for pair in given} == {5}
    named.remove(*given[0])
    assert len(set(named.take_turn(100))) == 11
