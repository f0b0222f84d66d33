"""Makes the store that the settings ask for."""

import time
from pathlib import Path

from gateway.config import GatewaySettings
from gateway.storage import jobs
from gateway.storage.database import Connection, Database, Engine, SqliteEngine
from gateway.storage.records import Bounds
from gateway.storage.store import Store

FILE_NAME = "responses.sqlite3"
NO_STORE = "none"


def open_store(settings: GatewaySettings, owner: str) -> Store | None:
    """The store of a gateway; None where nothing is to be stored.

    Args:
        settings: Of this gateway.
        owner: Its id.

    Raises:
        ConfigurationError: The database can't be used.
    """
    url = settings.store_url
    if url == NO_STORE:
        return None
    bounds = Bounds(
        max_stored=settings.store_max_responses,
        max_tenant_bytes=settings.store_max_tenant_bytes,
        max_bytes=settings.store_max_bytes,
        max_age_s=settings.store_max_age_s,
        max_queued=settings.store_max_queued,
        max_context_bytes=settings.store_max_context_bytes,
        max_replay_bytes=settings.store_max_replay_bytes,
        replay_age_s=settings.replay_age_s,
    )
    is_alone = not url and not settings.share_data_dir

    def arrive(connection: Connection) -> None:
        if is_alone:
            jobs.forget_owners(connection)
        jobs.beat(connection, owner, int(time.time() * 1000))

    engine: Engine
    if url.startswith(("postgresql://", "postgres://")):
        # Of the group `gateway`, but loaded only where it is used.
        from gateway.storage.postgres import PostgresEngine

        engine = PostgresEngine(url)
    else:
        path = Path(url.removeprefix("sqlite://")) if url else settings.data_dir / FILE_NAME
        engine = SqliteEngine(path)
    return Store(Database(engine, arrive), owner, bounds)
