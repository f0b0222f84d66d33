"""Names that callers make up fill neither tables nor memory; what is served keeps its name."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from auth_worker.decisions.served_models import MAX_SERVED, ServedModels
from auth_worker.records.operations import BookUsage, RecentUse, Snapshot
from protocol.wire.messages import Authorize, Denied, Granted, Settle
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import START_S, authority_bench, authorize, stored_key
from tests.fakes.auth_stores import rows
from tests.fakes.limit_parts import HOUSE_PRICE, limit


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def use(
    bench: AuthHandlerBench,
    model: str,
    num_tokens: int,
    outcome: str = "failed",
    *,
    has_begun: bool = False,
) -> None:
    """One request from its grant to its durable settlement."""
    granted = bench.ask(authorize(model=model))
    assert isinstance(granted, Granted)
    settle = Settle(
        lease_id=granted.lease_id,
        request_id="req-1",
        prompt_tokens=num_tokens,
        completion_tokens=num_tokens,
        outcome="finished" if outcome == "finished" else "failed",
        has_begun=has_begun,
    )
    assert bench.ask(settle) is None
    bench.write()


def used(bench: AuthHandlerBench) -> list[tuple[Any, ...]]:
    """Models and their requests in the totals by the hour."""
    bench.store._pending.added_at_ms = 0  # the next commit adds what waits
    bench.ask(metered(""))
    bench.clock.advance(1)
    bench.write()
    return rows(bench.store, "SELECT model, num_requests FROM usage_by_hour ORDER BY model")


def test_any_number_of_made_up_models_is_one_row_of_the_totals(bench: AuthHandlerBench) -> None:
    for number in range(30):
        use(bench, f"made-up-{number}", 0)
    for number in range(30):
        assert isinstance(bench.ask(metered(f"tokenize-{number}")), Granted)
        bench.write()
    assert used(bench) == [("", 61)]
    assert {model for (model,) in rows(bench.store, "SELECT DISTINCT model FROM ledger")} == {""}


def metered(model: str) -> Authorize:
    """A request that uses no tokens."""
    return authorize(model=model, prompt_tokens=0, completion_tokens=0, is_metered=True)


def test_what_was_served_keeps_its_name_also_when_a_request_fails(bench: AuthHandlerBench) -> None:
    use(bench, "demo", 3, "finished")
    use(bench, "demo", 0)
    assert used(bench) == [("", 1), ("demo", 2)]


def test_a_model_whose_engine_was_asked_keeps_its_name_without_tokens(
    bench: AuthHandlerBench,
) -> None:
    use(bench, "demo", 0, has_begun=True)
    use(bench, "made-up", 0)
    assert used(bench) == [("", 2), ("demo", 1)]


def test_a_late_settlement_names_a_model_whose_engine_was_asked(bench: AuthHandlerBench) -> None:
    granted = bench.ask(authorize(model="demo"))
    assert isinstance(granted, Granted)
    bench.clock.advance(601)
    bench.handler.expire()
    bench.write()
    assert rows(bench.store, "SELECT model FROM ledger") == [("",)]
    settle = Settle(
        lease_id=granted.lease_id,
        request_id="req-1",
        prompt_tokens=0,
        completion_tokens=0,
        outcome="failed",
        has_begun=True,
    )
    assert bench.ask(settle) is None
    bench.write()
    assert rows(bench.store, "SELECT model FROM ledger") == [("demo",)]


@pytest.mark.parametrize(("models", "booked"), [("demo", "demo"), ("demo*", ""), ("*", "")])
def test_what_a_request_without_tokens_costs_is_told_of_a_model_that_has_its_own_price(
    models: str, booked: str
) -> None:
    price = replace(HOUSE_PRICE, models=models, request=7)
    bench = authority_bench(stored_key(), prices=(price,))
    assert isinstance(bench.authority.authorize(authorize(model="demo")), Granted)
    bench.clock.advance(601)
    bench.authority.expire()
    (booking,) = (one for one in bench.emitted if isinstance(one, BookUsage))
    assert (booking.model, booking.cost_micros) == (booked, 7)


def test_models_of_before_a_restart_are_known() -> None:
    at_ms = int(START_S * 1000)
    recent = (
        RecentUse("key_user", at_ms, at_ms, 5, 5, model="demo"),
        RecentUse("key_user", at_ms, at_ms, 0, 0, model="made-up"),
    )
    snapshot = Snapshot(keys=(stored_key(),), leases=(), recent=recent)
    bench = authority_bench(snapshot=snapshot)
    for model in ("demo", "made-up"):
        assert isinstance(bench.authority.authorize(metered(model)), Granted)
    booked = [one.model for one in bench.emitted if isinstance(one, BookUsage)]
    assert booked == ["demo", ""]


def test_a_request_without_tokens_costs_and_counts_by_the_name_that_it_asked_for() -> None:
    of_it = limit("requests", 1, "hour", models=("made-*",))
    bench = authority_bench(stored_key(), limits=(of_it,), prices=(HOUSE_PRICE,))
    granted = bench.authority.authorize(authorize(model="made-up"))
    assert isinstance(granted, Granted)
    settle = Settle(lease_id=granted.lease_id, request_id="r", prompt_tokens=0, completion_tokens=0)
    booking = bench.authority.settle(settle)
    assert isinstance(booking, BookUsage)
    assert (booking.model, booking.price_id) == ("", "price_all")
    assert isinstance(bench.authority.authorize(authorize(model="made-up")), Denied)


def test_plans_of_limits_are_kept_for_models_that_are_served_alone() -> None:
    of_some = limit("tokens", 10**9, "hour", models=("m*", "s*"))
    bench = authority_bench(stored_key(), limits=(of_some,))
    for number in range(50):
        bench.authority.authorize(authorize(model=f"made-up-{number}"))
    granted = bench.authority.authorize(authorize(model="served"))
    assert isinstance(granted, Granted)
    assert not bench.authority._meters._callers["key_user"].plans
    settle = Settle(lease_id=granted.lease_id, request_id="r", prompt_tokens=1, completion_tokens=0)
    bench.authority.settle(settle)
    for model in (*(f"made-up-{number}" for number in range(50)), "served"):
        bench.authority.authorize(authorize(model=model))
    plans = bench.authority._meters._callers["key_user"].plans or {}
    assert [model for model, _, _ in plans] == ["served"]


def test_served_models_are_bounded_and_the_one_used_longest_ago_goes() -> None:
    served = ServedModels(f"m{number}" for number in range(MAX_SERVED))
    assert served.booked("m0", 1) == "m0"
    served.note("one more")
    assert (served.booked("m0", 0), served.booked("m1", 0)) == ("m0", "")
