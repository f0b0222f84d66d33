"""The fixture of a PostgreSQL server, for the `conftest.py` of folders whose tests want one."""

from collections.abc import Iterator

import pytest

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
