"""The tables of the auth database and the migrations that lead to them, forward only.

A change edits the tables below *and* adds a migration that makes it in databases of before. Times
end in `_at` (Unix seconds) or `_at_ms`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    select,
)
from sqlalchemy.sql import func

from auth_worker.errors import StoreTooNewError

metadata = MetaData()

# SQLite gives automatic numbers only to INTEGER, PostgreSQL should use 64 bits.
_SERIAL = BigInteger().with_variant(Integer, "sqlite")

schema_version = Table(
    "schema_version",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("description", String, nullable=False),
    Column("applied_at", BigInteger, nullable=False),
)

authority = Table(
    "authority",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("acquired_at", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="authority_is_one_row"),
)

keys = Table(
    "keys",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("key_id", String, nullable=False, unique=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("hint", String, nullable=False),
    Column("name", String, nullable=False),
    Column("role", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
    Column("total_requests", BigInteger, nullable=False, default=0),
    Column("total_prompt_tokens", BigInteger, nullable=False, default=0),
    Column("total_completion_tokens", BigInteger, nullable=False, default=0),
    CheckConstraint("role IN ('user', 'admin')", name="key_has_a_known_role"),
    sqlite_autoincrement=True,
)

leases = Table(
    "leases",
    metadata,
    Column("lease_id", String, primary_key=True),
    Column("request_id", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("model", String, nullable=False),
    Column("granted_at_ms", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reported_prompt_tokens", BigInteger, nullable=False),
    Column("reported_completion_tokens", BigInteger, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("lease_id", String, primary_key=True),
    Column("request_id", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("model", String, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("outcome", String, nullable=False),
    Column("granted_at_ms", BigInteger),
    Column("settled_at_ms", BigInteger, nullable=False),
    Index("ledger_by_time", "settled_at_ms"),
)

usage_totals = Table(
    "usage_totals",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),  # days since 1970, UTC
    Column("num_requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor_key_id", String, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("detail", String, nullable=False),  # canonical JSON
    Column("previous_hash", LargeBinary(32), nullable=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step forward, to `version`, for databases made before it."""

    version: int
    description: str
    run: Callable[[Connection], None]


FIRST_VERSION = 1

MIGRATIONS: tuple[Migration, ...] = ()
"""In order, without gaps, from FIRST_VERSION + 1 on."""


def migrate(
    connection: Connection, *, now_s: float, migrations: Sequence[Migration] = MIGRATIONS
) -> int:
    """Bring the database to the newest version, inside the caller's transaction.

    An empty database gets the tables above at once; an older one runs what it has not seen.

    Returns:
        The version of the schema.

    Raises:
        StoreTooNewError: A newer Penstock wrote this database.
    """
    newest = migrations[-1].version if migrations else FIRST_VERSION
    if not is_made(connection):
        metadata.create_all(connection)
        _record(connection, newest, "all tables", now_s)
        return newest
    current = connection.execute(select(func.max(schema_version.c.version))).scalar_one()
    if current > newest:
        raise StoreTooNewError(
            f"The auth database has schema version {current}, this Penstock knows versions up to"
            f" {newest}. Start the Penstock that wrote it, or restore a backup."
        )
    for migration in migrations:
        if migration.version > current:
            migration.run(connection)
            _record(connection, migration.version, migration.description, now_s)
    return newest


def is_made(connection: Connection) -> bool:
    """Whether the database holds tables of ours."""
    return inspect(connection).has_table(schema_version.name)


def _record(connection: Connection, version: int, description: str, now_s: float) -> None:
    connection.execute(
        insert(schema_version).values(
            version=version, description=description, applied_at=int(now_s)
        )
    )
