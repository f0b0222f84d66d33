"""Whoever has taken a database over keeps it while it is still loading, or ends with the reason."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from auth_worker.errors import StoreError, StoreFencedError, StoreUnavailableError
from auth_worker.records.operations import Operation
from auth_worker.storage import lease_keeper
from auth_worker.storage.lease_keeper import LeaseKeeper


class Store:
    """Takes transactions, and says when three of them came."""

    def __init__(self, errors: Sequence[StoreError | None] = ()) -> None:
        self.database = self
        self.errors = list(errors)
        self.applied: list[Sequence[Operation]] = []
        self.three = threading.Event()

    def wants_renewal(self) -> bool:
        return True

    def apply(self, operations: Sequence[Operation]) -> list[Any]:
        self.applied.append(operations)
        if len(self.applied) >= 3:
            self.three.set()
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_keeper, "LOOK_S", 0.001)


def test_it_writes_nothing_again_and_again_until_it_is_stopped() -> None:
    store: Any = Store([None, StoreUnavailableError("away for a moment")])
    with LeaseKeeper(store) as keeper:
        assert store.three.wait(60)
        keeper.stop()
        num_written = len(store.applied)
        keeper.stop()
    assert len(store.applied) == num_written
    assert all(operations == [] for operations in store.applied)


def test_a_lease_that_was_lost_meanwhile_is_said_when_the_start_is_over() -> None:
    store: Any = Store([None, None, StoreFencedError("another one")])
    with LeaseKeeper(store) as keeper:
        assert store.three.wait(60)
        with pytest.raises(StoreFencedError, match="another one"):
            keeper.stop()
    assert len(store.applied) == 3
