"""A change of a price never reaches back to a request of the same millisecond."""

from pathlib import Path

from msgspec import structs

from auth_worker.principals.prices import PriceTable
from protocol.wire.messages import (
    Actor,
    Granted,
    MakeResource,
    PriceSettings,
    ResourcesFound,
    UpdateResource,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import authorize
from tests.fakes.auth_stores import rows
from tests.unit.auth_worker.test_late_settlements import settle_of


def test_a_request_of_the_millisecond_of_a_change_costs_the_price_of_before_it(
    tmp_path: Path,
) -> None:
    """Two changes and requests before, between and behind them, all in one millisecond."""
    bench = AuthHandlerBench(tmp_path)
    actor = Actor(key_id="key_admin")
    first = PriceSettings(models="*", prompt=0, completion=1_000_000)
    bench.ask(MakeResource(request_id="r", actor=actor, kind="price", settings=first))
    (made,) = bench.write()
    assert isinstance(made, ResourcesFound)
    leases: list[str] = []

    def let_in() -> None:
        granted = bench.ask(authorize())
        assert isinstance(granted, Granted)
        leases.append(granted.lease_id)

    let_in()
    for completion in (5_000_000, 9_000_000):
        dearer = UpdateResource(
            request_id="r",
            actor=actor,
            kind="price",
            resource_id=made.resources[0].resource_id,
            settings=structs.replace(first, completion=completion),
            fields=("completion",),
        )
        assert bench.ask(dearer) is None
        bench.write()
        let_in()
    bench.clock.advance(0.001)
    let_in()
    for lease_id in leases:
        assert bench.ask(settle_of(lease_id)) is None
    bench.write()
    costs = rows(bench.store, "SELECT price_version, cost_micros FROM ledger ORDER BY lease_id")
    assert costs == [(1, 90)] * 3 + [(3, 810)]
    bench.store.close()


def test_a_clock_that_was_set_back_far_holds_no_price_up() -> None:
    prices = PriceTable()
    assert prices.moment(10_000) == 10_000
    begins = [prices.beginning(now_ms) for now_ms in (10_001, 10_000, 9_999, 9_002, 9_001, 1)]
    assert begins == [10_001, 10_001, 10_001, 10_001, 9_001, 1]
