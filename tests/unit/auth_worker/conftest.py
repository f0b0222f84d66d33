"""Stores over either database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from auth_worker.storage.sql_store import SqlStore
from tests.fakes.auth_stores import StoreHarness
from tests.fakes.postgres_fixture import postgres_server
from tests.fakes.quick_databases import quick_databases

__all__ = ["postgres_server"]


@pytest.fixture(scope="session", autouse=True)
def databases_made_quickly() -> Iterator[None]:
    with quick_databases():
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreHarness]:
    """Stores over the one and over the other database."""
    harness = StoreHarness(
        request.param, tmp_path, lambda: request.getfixturevalue("postgres_server")
    )
    yield harness
    harness.close()


@pytest.fixture
def store(harness: StoreHarness) -> SqlStore:
    """A store on an empty database; closed with the deployment."""
    return harness.open()
