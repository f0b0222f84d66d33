"""A settlement that comes after its lease expired costs and counts as one in time would have."""

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from auth_worker.auditing.money_check import check_money
from auth_worker.principals.limit_rules import WindowKind
from auth_worker.principals.people import StoredTeam
from auth_worker.records.lease_names import LeaseName
from auth_worker.records.limit_usage import Booked, SaveCounter, amounts_of
from auth_worker.records.operations import (
    AddKey,
    AddResource,
    AuditEntry,
    BookUsage,
    ChangeResourceRow,
    Operation,
    Snapshot,
)
from auth_worker.storage.sql_store import SqlStore
from protocol.wire.messages import (
    Actor,
    Failure,
    Granted,
    LeaseReport,
    MakeResource,
    OrphanUsage,
    PriceSettings,
    Renew,
    Resource,
    ResourcesFound,
    Settle,
    StreamUsage,
    UpdateResource,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import (
    START_S,
    FakeClock,
    authority_bench,
    authorize,
    booking,
    stored_key,
)
from tests.fakes.auth_stores import rows
from tests.fakes.limit_parts import HOUSE_PRICE, limit

LEASE = "lease:000001:0000000001:token_x:demo"


def settle_of(lease_id: str) -> Settle:
    return Settle(
        lease_id=lease_id,
        request_id="req-1",
        prompt_tokens=10,
        completion_tokens=90,
        outcome="finished",
    )


def test_whoever_is_not_known_any_more_pays_all_the_same() -> None:
    authority = authority_bench(prices=(HOUSE_PRICE,)).authority
    late = authority.settle(settle_of(LEASE))
    assert isinstance(late, BookUsage)
    assert (late.price_id, late.cost_micros) == ("price_all", 190)


def test_a_corrected_row_costs_what_it_cost_at_its_grant(store: SqlStore) -> None:
    def entry(at_s: float) -> AuditEntry:
        return AuditEntry(int(at_s * 1000), "key_admin", "price_updated", "price_1")

    settings = PriceSettings(models="*", prompt=0, completion=1_000_000, valid_from=1)
    price = Resource(
        resource_id="price_1", settings=settings, created_at=1, created_by="key_admin", version=1
    )
    store.apply([AddResource("price", price, entry(1))])
    dearer = {"completion": 9_000_000, "valid_from": int(START_S) + 60}
    store.apply([ChangeResourceRow("price", "price_1", dearer, entry(START_S))])
    of_first = {"price_id": "price_1", "price_version": 1}
    expired = booking("a", outcome="expired", completion_tokens=5, cost_micros=5, **of_first)
    late = booking("a", completion_tokens=50, cost_micros=450, price_id="price_1", price_version=2)
    store.apply([expired, expired._replace(lease_id="b"), expired._replace(lease_id="c")])
    store.apply([late])
    store.apply([late._replace(lease_id="b", model="other")])
    store.apply([late._replace(lease_id="c", cost_micros=0, price_id="", price_version=0)])
    assert (
        rows(store, "SELECT cost_micros, price_version FROM ledger ORDER BY lease_id")
        == [(50, 1)] * 3
    )
    assert check_money(store.database.reading).trouble is None


def test_a_row_without_a_model_costs_what_its_lease_cost_at_its_grant(store: SqlStore) -> None:
    """It was booked without tokens, so nothing said yet that there is such a model."""
    entry = AuditEntry(int(START_S * 1000), "key_admin", "price_updated", "price_1")
    settings = PriceSettings(models="*", prompt=0, completion=1_000_000, request=3, valid_from=1)
    price = Resource(
        resource_id="price_1", settings=settings, created_at=1, created_by="key_admin", version=1
    )
    store.apply([AddResource("price", price, entry)])
    dearer = {"completion": 9_000_000, "request": 9}
    store.apply([ChangeResourceRow("price", "price_1", dearer, entry)])
    expired = booking(
        LEASE,
        model="",
        outcome="expired",
        prompt_tokens=0,
        completion_tokens=0,
        cost_micros=3,
        price_id="price_1",
        price_version=1,
    )
    store.apply([expired])
    late = {"completion_tokens": 50, "cost_micros": 459, "price_id": "price_1", "price_version": 2}
    store.apply([booking(LEASE, **late)])
    found = rows(store, "SELECT model, cost_micros, price_version FROM ledger")
    assert found == [("demo", 53, 1)]
    assert check_money(store.database.reading).trouble is None


def test_a_price_holds_from_the_moment_that_it_is_said(tmp_path: Path) -> None:
    """Not from the full second before, in which requests were let in at the price of before."""
    clock = FakeClock()
    bench = AuthHandlerBench(tmp_path, clock=clock)
    actor = Actor(key_id="key_admin")
    first = PriceSettings(models="*", prompt=0, completion=1_000_000)
    assert (
        bench.ask(MakeResource(request_id="r", actor=actor, kind="price", settings=first)) is None
    )
    (made,) = bench.write()
    assert isinstance(made, ResourcesFound)
    clock.advance(0.25)
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    clock.advance(0.5)
    dearer = UpdateResource(
        request_id="r",
        actor=actor,
        kind="price",
        resource_id=made.resources[0].resource_id,
        settings=structs.replace(first, completion=9_000_000),
        fields=("completion",),
    )
    assert bench.ask(dearer) is None
    bench.write()
    assert bench.ask(settle_of(granted.lease_id)) is None
    after = bench.ask(authorize())
    assert isinstance(after, Granted)
    assert bench.ask(settle_of(after.lease_id)) is None
    bench.write()
    costs = rows(bench.store, "SELECT price_version, cost_micros FROM ledger ORDER BY lease_id")
    assert costs == [(1, 90), (2, 810)]
    moments = rows(bench.store, "SELECT valid_from_ms FROM prices ORDER BY version")
    start_ms = int(START_S * 1000)
    assert moments == [(start_ms,), (start_ms + 750,)]
    bench.store.close()


@pytest.mark.parametrize("is_remembered", [True, False])
def test_a_request_let_in_while_a_price_is_written_costs_the_one_of_before_after_a_kill(
    tmp_path: Path, is_remembered: bool
) -> None:
    bench = AuthHandlerBench(tmp_path)
    actor = Actor(key_id="key_admin")
    first = PriceSettings(models="*", prompt=0, completion=1_000_000)
    bench.ask(MakeResource(request_id="r", actor=actor, kind="price", settings=first))
    (made,) = bench.write()
    assert isinstance(made, ResourcesFound)
    bench.clock.advance(1)
    dearer = UpdateResource(
        request_id="r",
        actor=actor,
        kind="price",
        resource_id=made.resources[0].resource_id,
        settings=structs.replace(first, completion=9_000_000),
        fields=("completion",),
    )
    assert bench.ask(dearer) is None
    bench.clock.advance(0.02)  # the disk takes its time
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    bench.write()
    snapshot = bench.store.load(recent_since_ms=0)
    assert [price.version for price in snapshot.prices] == [1, 2]
    if not is_remembered:
        snapshot = replace(snapshot, leases=())
    second = authority_bench(snapshot=snapshot, epoch=bench.store.epoch + 1, clock=bench.clock)
    for authority in (bench.authority, second.authority):
        late = authority.settle(settle_of(granted.lease_id))
        assert isinstance(late, BookUsage)
        assert (late.price_version, late.cost_micros) == (1, 90)
    after = bench.ask(authorize())
    assert isinstance(after, Granted)
    booking_of_new = bench.authority.settle(settle_of(after.lease_id))
    assert isinstance(booking_of_new, BookUsage)
    assert (booking_of_new.price_version, booking_of_new.cost_micros) == (2, 810)
    bench.store.close()


def test_a_version_that_is_refused_holds_the_moment_of_no_request_back(tmp_path: Path) -> None:
    bench = AuthHandlerBench(tmp_path)
    actor = Actor(key_id="key_admin")
    first = PriceSettings(models="*", prompt=1, completion=1)
    bench.ask(MakeResource(request_id="r", actor=actor, kind="price", settings=first))
    (made,) = bench.write()
    assert isinstance(made, ResourcesFound)
    change = UpdateResource(
        request_id="r",
        actor=actor,
        kind="price",
        resource_id=made.resources[0].resource_id,
        settings=structs.replace(first, prompt=2, completion=2, valid_from=int(START_S) + 60),
        fields=("prompt", "completion", "valid_from"),
    )
    bench.ask(change)
    bench.write()
    bench.ask(structs.replace(change, fields=("prompt",)))  # before what is announced
    now_ms = int(START_S * 1000)
    assert bench.authority.prices.moment(now_ms) == now_ms - 1
    (refused,) = bench.write()
    assert isinstance(refused, Failure)
    assert bench.authority.prices.moment(now_ms) == now_ms
    bench.store.close()


@pytest.mark.parametrize(
    "what",
    ["open", "expired", "forgotten", "forgotten and reported", "forgotten and reported in full"],
)
def test_a_settlement_after_a_restart_costs_what_it_cost_when_it_was_let_in(
    what: str, store: SqlStore
) -> None:
    """Whatever the process that granted it could still write down."""
    entry = AuditEntry(int(START_S * 1000), "key_admin", "price_created", "price_1")
    settings = PriceSettings(models="*", prompt=0, completion=1_000_000, valid_from=1)
    price = Resource(
        resource_id="price_1", settings=settings, created_at=1, created_by="key_admin", version=1
    )
    store.apply([AddResource("price", price, entry), AddKey(stored_key(), entry)])
    clock = FakeClock()
    first = authority_bench(snapshot=store.load(recent_since_ms=0), epoch=1, clock=clock)
    granted = first.authority.authorize(authorize())
    assert isinstance(granted, Granted)
    if what == "expired":
        clock.advance(601)
        first.authority.expire()
    if not what.startswith("forgotten"):
        store.apply(first.emitted)
    clock.advance(1)
    dearer = {"completion": 9_000_000, "valid_from": int(clock.wall)}
    store.apply([ChangeResourceRow("price", "price_1", dearer, entry)])
    clock.advance(60)
    second = authority_bench(snapshot=store.load(recent_since_ms=0), epoch=2, clock=clock)
    if what.startswith("forgotten and reported"):
        report = LeaseReport(granted.lease_id, 10, 40)
        if what.endswith("in full"):  # as gateways do since they tell what a lease holds
            report = structs.replace(
                report,
                endpoint="/v1/chat/completions",
                max_prompt_tokens=10,
                max_completion_tokens=90,
            )
        second.authority.renew(Renew(leases=(report,)))
    late = second.authority.settle(settle_of(granted.lease_id))
    assert isinstance(late, BookUsage)
    store.apply([late])
    found = rows(store, "SELECT cost_micros, price_version, granted_at_ms FROM ledger")
    assert found == [(90, 1, int(START_S * 1000))]
    assert check_money(store.database.reading).trouble is None


def test_a_lease_of_before_ids_told_the_moment_of_their_grant_costs_what_it_costs_now() -> None:
    later = replace(HOUSE_PRICE, version=2, valid_from_ms=int(START_S * 1000) - 1, completion=5)
    authority = authority_bench(prices=(HOUSE_PRICE, later)).authority
    late = authority.settle(settle_of(LEASE))
    assert isinstance(late, BookUsage)
    assert (late.price_version, late.granted_at_ms) == (2, None)


def test_a_grant_in_the_future_is_one_of_now() -> None:
    """A clock was set back: no price that is only announced counts."""
    later = replace(HOUSE_PRICE, version=2, valid_from_ms=int(START_S * 1000) + 1, completion=5)
    authority = authority_bench(prices=(HOUSE_PRICE, later)).authority
    name = LeaseName(1, 1, "key_user", "demo", int(START_S * 1000) + 9)
    late = authority.settle(settle_of(str(name)))
    assert isinstance(late, BookUsage)
    assert (late.price_version, late.granted_at_ms) == (HOUSE_PRICE.version, int(START_S * 1000))


def test_a_corrected_row_costs_no_less_for_want_of_a_price(store: SqlStore) -> None:
    price = {"price_id": "price_gone", "price_version": 3}
    expired = booking("a", outcome="expired", completion_tokens=5, cost_micros=7, **price)
    store.apply([expired, booking("a", completion_tokens=50)])
    assert rows(store, "SELECT cost_micros, price_id FROM ledger") == [(7, "price_gone")]
    assert check_money(store.database.reading).trouble is None


@pytest.mark.parametrize("what", ["unchanged", "moved", "deleted"])
def test_a_correction_counts_in_the_limits_of_the_grant(what: str) -> None:
    budget = limit("money", 1_000_000, "total", "team", "team_1")
    key = stored_key(team_id="team_1")
    snapshot = Snapshot(
        keys=(key,),
        leases=(),
        recent=(),
        teams=(StoredTeam("team_1", "search"),),
        limits=(budget,),
        prices=(HOUSE_PRICE,),
    )
    bench = authority_bench(snapshot=snapshot)
    authority, emitted = bench.authority, bench.emitted
    granted = authority.authorize(authorize())
    assert isinstance(granted, Granted)
    bench.clock.advance(3600)
    authority.expire()
    expired = [one for one in emitted if is_expired(one)]
    assert len(expired) == 1
    if what == "moved":
        authority.keys.put(replace(key, team_id=""))
    elif what == "deleted":
        authority.keys.remove(key.key_id)
        authority.forget(key.key_id)
    late = authority.settle(settle_of(granted.lease_id))
    assert isinstance(late, BookUsage)
    # What the ledger answers: the counters are those of the row that it has.
    (counted,) = amounts_of(late._replace(charges=charges_of_expired(expired)))
    authority.booked(late, Booked((counted,)))
    assert authority.meter_of(budget).total == 190


def is_expired(operation: Operation) -> bool:
    return isinstance(operation, BookUsage) and operation.outcome == "expired"


def charges_of_expired(operations: list[Operation]) -> str:
    (one,) = operations
    assert isinstance(one, BookUsage)
    assert one.charges
    return one.charges


def test_numbers_of_counters_never_come_again() -> None:
    """The ledger still names counters that were dropped before a restart."""
    quota = limit("tokens", 10_000, "total", "key", "key_user")
    first = authority_bench(stored_key(), limits=[quota], epoch=3)
    assert isinstance(first.authority.authorize(authorize()), Granted)
    second = authority_bench(stored_key(), limits=[quota], epoch=4)
    assert isinstance(second.authority.authorize(authorize()), Granted)
    taken = [
        {one.row.counter_id for one in bench.emitted if isinstance(one, SaveCounter)}
        for bench in (first, second)
    ]
    assert all(taken)
    assert taken[0].isdisjoint(taken[1])


@pytest.mark.parametrize("window", ["minute", "hour"])
def test_what_a_late_settlement_adds_counts_in_sliding_windows(
    window: WindowKind, tmp_path: Path
) -> None:
    tokens = limit("tokens", 1000, window)
    bench = AuthHandlerBench(tmp_path, limits=(tokens,))
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    bench.clock.advance(601)
    bench.handler.expire()
    bench.write()
    assert bench.authority.meter_of(tokens).total == 0
    bench.clock.advance(5)
    assert bench.ask(settle_of(granted.lease_id)) is None
    bench.write()
    meter = bench.authority.meter_of(tokens)
    assert (meter.total, meter.free) == (100, 900)
    again = replace_tokens(settle_of(granted.lease_id), 500)
    assert bench.ask(again) is None
    bench.write()
    assert bench.authority.meter_of(tokens).total == 100  # the first settlement stands
    bench.clock.advance(3700)
    assert bench.authority.meter_of(tokens).total == 0
    bench.store.close()


@pytest.mark.parametrize("window", ["minute", "hour"])
def test_a_late_settlement_of_less_or_of_nothing_takes_back(
    window: WindowKind, tmp_path: Path
) -> None:
    tokens, requests = limit("tokens", 1000, window), limit("requests", 10, window)
    bench = AuthHandlerBench(tmp_path, limits=(tokens, requests))
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    bench.clock.advance(590)
    report = LeaseReport(lease_id=granted.lease_id, prompt_tokens=10, completion_tokens=40)
    bench.authority.renew(Renew(leases=(report,)))
    bench.clock.advance(601)
    bench.handler.expire()
    bench.write()
    assert bench.authority.meter_of(tokens).total == 50
    assert bench.ask(structs.replace(settle_of(granted.lease_id), is_unused=True)) is None
    bench.write()
    assert bench.authority.meter_of(tokens).total == 0
    bench.store.close()


@pytest.mark.parametrize("window", ["minute", "hour"])
def test_a_settlement_that_a_kill_forgot_counts_in_sliding_windows_and_after_another(
    window: WindowKind, tmp_path: Path
) -> None:
    tokens, requests = limit("tokens", 1000, window), limit("requests", 10, window)
    bench = AuthHandlerBench(tmp_path, limits=(tokens, requests))
    lease_id = "lease:000000:0000000001:key_user:demo"
    for _ in range(2):
        assert bench.ask(settle_of(lease_id)) is None
        bench.write()
        used = [bench.authority.meter_of(one).total for one in (tokens, requests)]
        assert used == [100, 1]
    snapshot = bench.store.load(recent_since_ms=0)
    again = authority_bench(snapshot=replace(snapshot, limits=(tokens,)), clock=bench.clock)
    assert again.authority.meter_of(tokens).total == 100
    bench.store.close()


@pytest.mark.parametrize("window", ["minute", "hour"])
def test_a_lease_that_an_engine_reports_after_it_expired_counts_once(
    window: WindowKind, tmp_path: Path
) -> None:
    tokens = limit("tokens", 1000, window)
    bench = AuthHandlerBench(tmp_path, limits=(tokens,))
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    bench.clock.advance(590)
    report = LeaseReport(lease_id=granted.lease_id, prompt_tokens=10, completion_tokens=40)
    bench.authority.renew(Renew(leases=(report,)))
    bench.clock.advance(601)
    bench.handler.expire()
    bench.write()
    stream = StreamUsage(
        lease_id=granted.lease_id, stream="req-1/0", prompt_tokens=10, completion_tokens=70
    )
    bench.ask(OrphanUsage(report_id="report-1", engine_id="engine-1", streams=(stream,)))
    bench.write()
    bench.clock.advance(31)
    bench.handler.expire()
    assert bench.authority.meter_of(tokens).total == 50
    bench.write()
    assert bench.authority.meter_of(tokens).total == 80
    (row,) = rows(bench.store, "SELECT sum(used) FROM limit_usage")
    assert row == ((80,) if window == "hour" else (None,))
    bench.store.close()


def replace_tokens(settle: Settle, completion_tokens: int) -> Settle:
    return structs.replace(settle, completion_tokens=completion_tokens)


def test_a_lease_of_before_that_is_opened_late_does_not_bring_an_ended_raise_back() -> None:
    now_s = int(START_S)
    raised = limit("tokens", 100, "total", raised_by=100, raised_until=now_s + 5)
    clock = FakeClock()
    snapshot = Snapshot((stored_key(),), (), (), limits=(raised,))
    bench = authority_bench(snapshot=snapshot, epoch=2, clock=clock)
    clock.advance(10)
    meter = bench.authority.meter_of(raised)
    assert meter.amount == 100
    name = LeaseName(1, 1, "key_user", "demo", now_s * 1000 + 1)
    report = LeaseReport(
        str(name),
        10,
        40,
        endpoint="/v1/chat/completions",
        max_prompt_tokens=10,
        max_completion_tokens=50,
    )
    bench.authority.renew(Renew(leases=(report,)))
    assert meter.amount == 100
