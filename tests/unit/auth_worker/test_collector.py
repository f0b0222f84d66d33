"""Requests under way don't have the garbage collector look at everything that the process holds."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from auth_worker.records.operations import BookUsage
from auth_worker.service import calm_collector
from protocol.wire.messages import Granted, Settle
from tests.fakes.auth_parts import authority_bench, authorize, stored_key
from tests.fakes.limit_parts import HOUSE_PRICE, limit

NUM_UNDER_WAY = 256


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """The generation of each collection that begins."""
    before, begun = gc.get_threshold(), list[int]()

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            begun.append(info["generation"])

    calm_collector()
    gc.callbacks.append(note)
    yield begun
    gc.callbacks.remove(note)
    gc.set_threshold(*before)
    gc.unfreeze()


def test_requests_under_way_begin_no_collection(collections: list[int]) -> None:
    limits = [limit(measure, 2**40, "hour") for measure in ("requests", "tokens", "money")]
    bench = authority_bench(
        stored_key(requests_per_minute=2**40), limits=limits, prices=(HOUSE_PRICE,)
    )
    for _ in range(4):
        leases = [bench.authority.authorize(authorize()) for _ in range(NUM_UNDER_WAY)]
        for lease in leases:
            assert isinstance(lease, Granted)
            settle = Settle(
                lease_id=lease.lease_id, request_id="r", prompt_tokens=1, completion_tokens=1
            )
            assert isinstance(bench.authority.settle(settle), BookUsage)
        bench.emitted.clear()
    assert collections == []
