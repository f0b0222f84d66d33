"""Stores of several gateways on one database, and a clock that a test moves."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.storage.database import Database, Engine
from gateway.storage.records import Bounds
from gateway.storage.store import Store

Story = Callable[["Shelf"], Coroutine[Any, Any, None]]


class Clock:
    """Unix seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Shelf:
    """Stores on one database, of several gateways."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clock = Clock()
        self.stores: list[Store] = []

    def store(self, owner: str = "one", **bounds: Any) -> Store:
        database = Database(self.engine)
        self.stores.append(Store(database, owner, Bounds(**bounds), self.clock))
        return self.stores[-1]

    def raw(self, statement: str, *values: Any) -> list[Any]:
        connection = self.engine.connect()
        try:
            return connection.execute(statement, values)
        finally:
            self.engine.close(connection)


def play(engine: Engine, story: Story) -> None:
    async def main() -> None:
        shelf = Shelf(engine)
        try:
            await story(shelf)
        finally:
            for store in shelf.stores:
                await store.close()

    asyncio.run(main())
