"""kill -9 at random points under load, on either database; `make soak` does it fifty times."""

from pathlib import Path

import pytest

from tests.fakes.postgres_server import PostgresServer
from tests.soak.auth_kills import kill_again_and_again

pytestmark = pytest.mark.process

NUM_KILLS = 3


async def test_what_sqlite_has_acknowledged_survives_every_kill(socket_dir: Path) -> None:
    figures = await kill_again_and_again(socket_dir, num_kills=NUM_KILLS, seed=11)
    assert figures.num_settled > 0
    assert figures.num_keys > 0


async def test_what_postgresql_has_acknowledged_survives_every_kill_and_take_over(
    socket_dir: Path, postgres_server: PostgresServer
) -> None:
    figures = await kill_again_and_again(
        socket_dir,
        num_kills=NUM_KILLS,
        seed=12,
        url=postgres_server.url(postgres_server.new_database()),
    )
    assert figures.num_settled > 0
    assert figures.num_keys > 0
