"""Leases of gateways that died: charged the most that anybody reported of each stream, once."""

from pathlib import Path

import pytest

from auth_worker.decisions.leases import MAX_STREAMS_A_LEASE
from auth_worker.decisions.open_leases import ORPHAN_TERM_S
from auth_worker.decisions.sliced_meters import FixedMeter
from auth_worker.records.lease_names import LeaseName
from auth_worker.records.limit_usage import CounterRow
from auth_worker.records.operations import BookUsage, SaveLease, Snapshot
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.wire.messages import (
    Granted,
    LeaseReport,
    OrphanUsage,
    OrphanUsageNoted,
    Renew,
    Settle,
    StreamUsage,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import (
    AuthorityBench,
    FakeClock,
    authority_bench,
    authorize,
    booking,
    stored_key,
)
from tests.fakes.auth_stores import rows
from tests.fakes.limit_parts import limit


def usage(lease_id: str, stream: str, prompt_tokens: int, completion_tokens: int) -> StreamUsage:
    return StreamUsage(
        lease_id=lease_id,
        stream=stream,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def orphan(bench: AuthorityBench, *usages: StreamUsage) -> list[SaveLease]:
    return bench.authority.note_orphans(OrphanUsage(report_id="e:1", engine_id="e", streams=usages))


def granted(bench: AuthorityBench) -> str:
    answer = bench.authority.authorize(authorize())
    assert isinstance(answer, Granted)
    return answer.lease_id


def renew(bench: AuthorityBench, lease_id: str, *streams: StreamUsage, tokens: int = 0) -> None:
    report = LeaseReport(
        lease_id=lease_id, prompt_tokens=10, completion_tokens=tokens, streams=streams
    )
    bench.authority.renew(Renew(leases=(report,)))


def charged(bench: AuthorityBench) -> list[tuple[int, int]]:
    """Prompt and completion tokens of every booking so far."""
    return [
        (one.prompt_tokens, one.completion_tokens)
        for one in bench.emitted
        if isinstance(one, BookUsage)
    ]


def test_a_lease_that_was_never_renewed_is_charged_what_its_engine_reports() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench)
    (saved,) = orphan(bench, usage(lease_id, "r/0", 10, 7))
    assert saved.row.reported_completion_tokens == 7
    bench.clock.advance(ORPHAN_TERM_S - 0.1)
    assert bench.authority.expire() == 0
    bench.clock.advance(0.2)
    assert bench.authority.expire() == 1
    assert charged(bench) == [(10, 7)]
    assert bench.authority.num_leases == 0


def test_each_stream_counts_with_the_most_that_was_reported_of_it() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench)
    # The gateway's last report: choice 0 is over, choice 1 and 2 were under way.
    streams = (usage("", "r/0", 10, 40), usage("", "r/1", 0, 5), usage("", "r/2", 0, 9))
    renew(bench, lease_id, *streams, tokens=54)
    orphan(bench, usage(lease_id, "r/1", 0, 8))
    orphan(bench, usage(lease_id, "r/2", 0, 7), usage(lease_id, "r/1", 0, 8))
    bench.clock.advance(ORPHAN_TERM_S)
    bench.authority.expire()
    assert charged(bench) == [(10, 40 + 8 + 9)]


def test_a_report_without_streams_is_never_undercut() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench)
    renew(bench, lease_id, tokens=50)
    orphan(bench, usage(lease_id, "r/0", 10, 30))
    bench.clock.advance(ORPHAN_TERM_S)
    bench.authority.expire()
    assert charged(bench) == [(10, 50)]


def test_a_gateway_that_lives_after_all_keeps_its_lease() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench)
    orphan(bench, usage(lease_id, "r/0", 10, 3))
    renew(bench, lease_id, tokens=20)
    bench.clock.advance(ORPHAN_TERM_S + 1)
    assert bench.authority.expire() == 0
    orphan(bench, usage(lease_id, "r/0", 10, 3))
    settled = bench.authority.settle(
        Settle(lease_id=lease_id, request_id="r", prompt_tokens=10, completion_tokens=22)
    )
    assert isinstance(settled, BookUsage)
    assert settled.completion_tokens == 22
    # What comes after the settlement changes nothing and opens nothing.
    assert orphan(bench, usage(lease_id, "r/0", 10, 99)) == []
    assert bench.authority.num_leases == 0


def test_a_report_that_comes_after_the_lease_expired_still_counts() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench)
    renew(bench, lease_id, tokens=2)
    bench.clock.advance(600)
    assert bench.authority.expire() == 1
    orphan(bench, usage(lease_id, "r/0", 10, 6))
    bench.clock.advance(ORPHAN_TERM_S)
    assert bench.authority.expire() == 1
    assert charged(bench) == [(10, 2), (10, 6)]


def test_a_lease_that_a_restart_forgot_is_found_by_its_name() -> None:
    bench = authority_bench(stored_key(), epoch=3)
    forgotten = str(LeaseName(2, 9, "key_user", "demo"))
    (saved,) = orphan(bench, usage(forgotten, "r/0", 10, 6))
    assert (saved.row.key_id, saved.row.request_id) == ("key_user", "r")
    for nobodys in ("?", "x" * 5000, str(LeaseName(2, 9, "key_gone", "demo"))):
        assert orphan(bench, usage(nobodys, "r/0", 1, 1)) == []


def test_wild_reports_are_passed_over_and_streams_are_bounded() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench)
    assert orphan(bench, usage(lease_id, "r/0", -1, 5), usage(lease_id, "r/0", 1, 2**62)) == []
    orphan(bench, usage(lease_id, "r" * 5000, 1, 1))
    many = [usage(lease_id, f"r/{n}", 0, 1) for n in range(MAX_STREAMS_A_LEASE + 5)]
    (saved,) = orphan(bench, *many)
    assert saved.row.reported_completion_tokens == MAX_STREAMS_A_LEASE


def test_the_ledger_takes_the_greater_of_two_expired_counts_and_then_the_settlement(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path, clock=FakeClock())
    steps = [(5, "expired"), (9, "expired"), (7, "expired"), (8, "finished"), (99, "expired")]
    seen = []
    for tokens, outcome in steps:
        store.apply([booking("a", completion_tokens=tokens, outcome=outcome)])
        with store._engine.connect() as connection:
            query = "SELECT completion_tokens FROM ledger"
            count = connection.exec_driver_sql(query).scalar_one()
        seen.append(count)
    store.close()
    assert seen == [5, 9, 9, 8, 8]


def test_a_lease_that_expired_here_takes_nothing_of_what_a_killed_process_granted() -> None:
    quota = limit("tokens", 10_000, "total", limit_id="lim_quota")
    snapshot = Snapshot(
        keys=(stored_key(),),
        leases=(),
        recent=(),
        limits=(quota,),
        counters=(CounterRow(1, "lim_quota", "", 0, granted=1000),),
    )
    bench = authority_bench(snapshot=snapshot)
    meter = bench.authority.meter_of(quota)
    assert isinstance(meter, FixedMeter)
    assert meter.unknown == 1000
    lease_id = granted(bench)
    for used in (20, 40):  # each time it is opened, and expires soon
        orphan(bench, usage(lease_id, "req-1/0", 10, used))
        bench.clock.advance(31.0)
        bench.authority.expire()
    assert meter.unknown == 1000


@pytest.mark.parametrize("outcome", ["finished", "aborted", "failed"])
def test_a_lease_that_was_settled_before_a_restart_takes_no_place_when_an_engine_tells_of_it(
    tmp_path: Path, outcome: str
) -> None:
    """Nobody would end it for half a minute."""
    alone = limit("parallel", 1, "total")
    before = AuthHandlerBench(tmp_path, limits=(alone,))
    lease = before.ask(authorize())
    assert isinstance(lease, Granted)
    used = Settle(
        lease_id=lease.lease_id,
        request_id="r",
        prompt_tokens=10,
        completion_tokens=7,
        outcome=outcome,  # type: ignore[arg-type]
    )
    assert before.ask(used) is None
    before.write()
    before.store.close()
    bench = AuthHandlerBench(tmp_path, limits=(alone,), clock=before.clock)
    streams = (usage(lease.lease_id, "r/0", 10, 7),)
    noted = bench.ask(OrphanUsage(report_id="e:1", engine_id="e", streams=streams))
    assert noted == OrphanUsageNoted(report_id="e:1", engine_id="e")
    assert bench.authority.num_leases == 0
    assert isinstance(bench.ask(authorize()), Granted)
    bench.store.close()


def test_a_lease_that_only_expired_before_a_restart_is_told_of_as_before(tmp_path: Path) -> None:
    before = AuthHandlerBench(tmp_path)
    lease = before.ask(authorize())
    assert isinstance(lease, Granted)
    before.clock.advance(601)
    before.handler.expire()
    before.write()
    before.store.close()
    bench = AuthHandlerBench(tmp_path, clock=before.clock)
    streams = (usage(lease.lease_id, "r/0", 10, 7),)
    bench.ask(OrphanUsage(report_id="e:1", engine_id="e", streams=streams))
    bench.write()
    bench.clock.advance(ORPHAN_TERM_S + 1)
    bench.handler.expire()
    bench.write()
    assert rows(bench.store, "SELECT prompt_tokens, completion_tokens FROM ledger") == [(10, 7)]
    bench.store.close()
