"""A PostgreSQL server for the tests that want one, and stores over either database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from auth_worker.storage.sql_store import SqlStore
from tests.fakes.auth_stores import StoreHouse
from tests.fakes.postgres_server import MISSING, PostgresServer, find_binaries


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this process; each takes a database of its own."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(MISSING)
    server = PostgresServer(binaries)
    server.start()
    yield server
    server.close()


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
