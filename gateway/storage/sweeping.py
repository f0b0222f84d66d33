"""Dropping what is too old or too much, in transactions that nobody waits long for."""

from collections.abc import Callable
from typing import Final

from gateway.storage.database import Connection, Database

MAX_DROPPED: Final = 1000
"""Of one kind in one transaction; a sweep goes on with the next one."""


async def swept(database: Database, sweep: Callable[[Connection], int]) -> int:
    """Sweep until there is no more to drop; how much that was.

    Args:
        database: What waits for it beside comes in between.
        sweep: Drops some in one transaction, and says at least `MAX_DROPPED` where there may be
            more.

    Raises:
        GatewayError: The store can't be used.
    """
    total = 0
    while (num_dropped := await database.run(sweep)) >= MAX_DROPPED:
        total += num_dropped
    return total + num_dropped
