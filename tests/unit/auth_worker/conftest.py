"""Stores over either database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from auth_worker.storage.sql_store import SqlStore
from tests.fakes.auth_stores import StoreHouse
from tests.fakes.postgres_fixture import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreHouse]:
    """Stores over the one and over the other database."""
    house = StoreHouse(request.param, tmp_path, lambda: request.getfixturevalue("postgres_server"))
    yield house
    house.close()


@pytest.fixture
def store(house: StoreHouse) -> SqlStore:
    """A store on an empty database; closed with the house."""
    return house.open()
