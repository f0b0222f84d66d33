"""The price of a request is for what was computed; a request that is refused only counts."""

from dataclasses import replace
from pathlib import Path

import pytest

from auth_worker.principals.prices import cost
from auth_worker.records.operations import BookUsage
from protocol.wire.messages import Denied, Granted, Settle
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import AuthorityBench, authority_bench, authorize, booking, stored_key
from tests.fakes.auth_stores import rows
from tests.fakes.limit_parts import HOUSE_PRICE, limit

PRICE = replace(HOUSE_PRICE, prompt=0, cached_prompt=0, completion=0, reasoning=0, request=9)


def settle(lease_id: str, *, has_begun: bool = False, num_tokens: int = 0) -> Settle:
    return Settle(
        lease_id=lease_id,
        request_id="r",
        prompt_tokens=num_tokens,
        completion_tokens=0,
        outcome="failed",
        has_begun=has_begun,
    )


def granted(bench: AuthorityBench) -> str:
    answer = bench.authority.authorize(authorize())
    assert isinstance(answer, Granted)
    return answer.lease_id


def booked(bench: AuthorityBench, command: Settle) -> BookUsage:
    booking = bench.authority.settle(command)
    assert isinstance(booking, BookUsage)
    return booking


@pytest.mark.parametrize(
    ("has_begun", "num_tokens", "money"), [(False, 0, 0), (True, 0, 9), (False, 1, 9), (True, 1, 9)]
)
def test_a_request_costs_its_price_if_a_worker_began_or_a_token_was_used(
    has_begun: bool, num_tokens: int, money: int
) -> None:
    bench = authority_bench(stored_key(), prices=(PRICE,))
    command = settle(granted(bench), has_begun=has_begun, num_tokens=num_tokens)
    assert booked(bench, command).cost_micros == money


def test_refused_requests_spend_no_budget_and_count_in_limits_of_requests() -> None:
    """A budget of three such requests still has room when the limit has none."""
    limits = limit("money", 27, "total"), limit("requests", 5, "total")
    bench = authority_bench(stored_key(), limits=limits, prices=(PRICE,))
    for _ in range(3):
        assert booked(bench, settle(granted(bench))).cost_micros == 0
    for _ in range(2):
        assert booked(bench, settle(granted(bench), has_begun=True)).cost_micros == 9
    refused = bench.authority.authorize(authorize())
    assert isinstance(refused, Denied)
    assert refused.limit is not None
    assert refused.limit.measure == "requests"


def test_a_lease_that_nobody_settled_costs_until_somebody_says_that_nothing_began(
    tmp_path: Path,
) -> None:
    budget = limit("money", 20, "total")
    bench = AuthHandlerBench(tmp_path, limits=(budget,), prices=(PRICE,))
    assert bench.ask(authorize()) is None  # a hard budget's first slice is written first
    (answer,) = bench.write()
    assert isinstance(answer, Granted)
    bench.clock.advance(601)
    bench.handler.expire()
    bench.write()
    assert rows(bench.store, "SELECT cost_micros FROM ledger") == [(9,)]
    assert bench.ask(settle(answer.lease_id)) is None
    bench.write()
    assert rows(bench.store, "SELECT outcome, cost_micros FROM ledger") == [("failed", 0)]
    assert [row.used for row in bench.store.load(recent_since_ms=0).counters] == [0]
    bench.store.close()


def test_a_late_settlement_of_what_never_began_is_free_at_any_version_of_the_price(
    tmp_path: Path,
) -> None:
    """Whoever books it may have forgotten at which price the lease was granted."""
    bench = AuthHandlerBench(tmp_path)
    of_none = {"prompt_tokens": 0, "completion_tokens": 0, "price_id": PRICE.price_id}
    expired = booking("a", outcome="expired", cost_micros=9, price_version=1, **of_none)
    bench.store.apply([expired])
    bench.store.apply([booking("a", outcome="failed", price_version=2, **of_none)])
    assert rows(bench.store, "SELECT outcome, cost_micros FROM ledger") == [("failed", 0)]
    bench.store.close()


def test_the_cost_of_no_tokens_is_the_price_of_a_request_where_something_began() -> None:
    assert cost(PRICE, prompt_tokens=0, completion_tokens=0) == 9
    assert cost(PRICE, prompt_tokens=0, completion_tokens=0, has_begun=False) == 0
    assert cost(PRICE, prompt_tokens=0, completion_tokens=1, has_begun=False) == 9
