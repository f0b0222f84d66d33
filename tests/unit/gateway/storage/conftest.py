"""What tests of the store share."""

from pathlib import Path

import pytest

from gateway.storage.database import Engine, SqliteEngine
from gateway.storage.postgres import PostgresEngine
from tests.fakes.postgres_fixture import postgres_server
from tests.fakes.postgres_server import PostgresServer

__all__ = ["postgres_server"]


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return SqliteEngine(tmp_path / "store")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return PostgresEngine(server.url(server.new_database()))
