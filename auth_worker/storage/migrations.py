"""The steps that bring an auth database to the newest tables, forward only.

Each says in plain SQL what it does: the tables of `schema.py` go on changing, what a step makes
doesn't.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, inspect, select
from sqlalchemy.sql import func

from auth_worker.errors import StoreTooNewError
from auth_worker.storage import schema


@dataclass(frozen=True, slots=True)
class Migration:
    """One step forward, to `version`, for databases made before it."""

    version: int
    description: str
    run: Callable[[Connection], None]


FIRST_VERSION = 1


def _add_principals(connection: Connection) -> None:
    """Keys get everything that bounds them but two limits, and audit entries their outcomes."""
    # SQLite can't change a constraint: the table is made anew, and its rows are copied.
    run = connection.exec_driver_sql
    run("ALTER TABLE keys RENAME TO keys_1")
    run(_KEYS_2)
    run(_COPY_1)
    run("DROP TABLE keys_1")
    run("CREATE INDEX keys_by_owner ON keys (owner)")
    for column in ("outcome", "address", "request_id"):
        run(f"ALTER TABLE audit_log ADD COLUMN {column} VARCHAR DEFAULT '' NOT NULL")
    run("CREATE INDEX audit_by_actor ON audit_log (actor_key_id, seq)")
    run("CREATE INDEX audit_by_subject ON audit_log (subject, seq)")
    run("CREATE INDEX audit_by_action ON audit_log (action, seq)")
    run("CREATE INDEX audit_by_time ON audit_log (at_ms)")


def _add_people(connection: Connection) -> None:
    """Users, teams, limits and prices; keys belong to users and teams."""
    run = connection.exec_driver_sql
    for column in ("user_id VARCHAR DEFAULT ''", "team_id VARCHAR DEFAULT ''"):
        run(f"ALTER TABLE keys ADD COLUMN {column} NOT NULL")
    run("ALTER TABLE keys ADD COLUMN may_name_end_users BOOLEAN DEFAULT 0 NOT NULL")
    run("CREATE INDEX keys_by_user ON keys (user_id)")
    run("CREATE INDEX keys_by_team ON keys (team_id)")
    for statement in _PEOPLE_3.split(";"):
        run(statement)


_PEOPLE_3 = """
CREATE TABLE users (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    user_id VARCHAR NOT NULL UNIQUE,
    name VARCHAR NOT NULL,
    email VARCHAR NOT NULL,
    role VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    tags VARCHAR,
    metadata VARCHAR,
    suspended_at BIGINT,
    created_at BIGINT NOT NULL,
    created_by VARCHAR NOT NULL
);
CREATE TABLE teams (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    team_id VARCHAR NOT NULL UNIQUE,
    name VARCHAR NOT NULL,
    tenant_is_shared BOOLEAN NOT NULL,
    allowed_models VARCHAR,
    tags VARCHAR,
    metadata VARCHAR,
    suspended_at BIGINT,
    created_at BIGINT NOT NULL,
    created_by VARCHAR NOT NULL
);
CREATE TABLE team_members (
    team_id VARCHAR NOT NULL,
    user_id VARCHAR NOT NULL,
    role VARCHAR NOT NULL,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (team_id, user_id)
);
CREATE INDEX team_members_by_user ON team_members (user_id);
CREATE TABLE limits (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    limit_id VARCHAR NOT NULL UNIQUE,
    name VARCHAR NOT NULL,
    holder VARCHAR NOT NULL,
    holder_id VARCHAR NOT NULL,
    measure VARCHAR NOT NULL,
    amount BIGINT NOT NULL,
    "window" VARCHAR NOT NULL,
    time_zone VARCHAR NOT NULL,
    starts_at BIGINT,
    length_s BIGINT,
    models VARCHAR,
    endpoints VARCHAR,
    is_hard BOOLEAN NOT NULL,
    thresholds VARCHAR,
    rolls_over BOOLEAN NOT NULL,
    auto_renews BOOLEAN NOT NULL,
    raised_by BIGINT NOT NULL,
    raised_until BIGINT,
    created_at BIGINT NOT NULL,
    created_by VARCHAR NOT NULL
);
CREATE INDEX limits_by_holder ON limits (holder, holder_id);
CREATE TABLE prices (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    price_id VARCHAR NOT NULL,
    version INTEGER NOT NULL,
    models VARCHAR NOT NULL,
    valid_from_ms BIGINT NOT NULL,
    prompt BIGINT NOT NULL,
    cached_prompt BIGINT,
    completion BIGINT NOT NULL,
    reasoning BIGINT,
    embedding BIGINT,
    request BIGINT NOT NULL,
    is_ended BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    created_by VARCHAR NOT NULL,
    UNIQUE (price_id, version)
)
"""
_COPY_1 = """
INSERT INTO keys (
    seq, key_id, digest, hint, name, role, tenant, created_at, requests_per_minute,
    tokens_per_minute, expires_at, revoked_at, last_used_at, total_requests, total_prompt_tokens,
    total_completion_tokens
)
SELECT
    seq, key_id, digest, hint, name, role, tenant, created_at, requests_per_minute,
    tokens_per_minute, expires_at, revoked_at, last_used_at, total_requests, total_prompt_tokens,
    total_completion_tokens
FROM keys_1
"""
_KEYS_2 = """
CREATE TABLE keys (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    key_id VARCHAR NOT NULL UNIQUE,
    digest BLOB NOT NULL UNIQUE,
    hint VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    role VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    created_at BIGINT NOT NULL,
    created_by VARCHAR DEFAULT '' NOT NULL,
    description VARCHAR DEFAULT '' NOT NULL,
    owner VARCHAR DEFAULT '' NOT NULL,
    scopes VARCHAR,
    tags VARCHAR,
    metadata VARCHAR,
    requests_per_minute BIGINT,
    tokens_per_minute BIGINT,
    max_parallel_requests BIGINT,
    max_tokens_per_request BIGINT,
    allowed_models VARCHAR,
    allowed_endpoints VARCHAR,
    allowed_ip_addresses VARCHAR,
    blocked_ip_addresses VARCHAR,
    enable_streaming BOOLEAN DEFAULT 1 NOT NULL,
    enable_function_calling BOOLEAN DEFAULT 1 NOT NULL,
    priority VARCHAR DEFAULT 'normal' NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    suspended_at BIGINT,
    previous_digest BLOB,
    previous_until BIGINT,
    last_rotated_at BIGINT,
    last_rotated_by VARCHAR DEFAULT '' NOT NULL,
    last_used_at BIGINT,
    total_requests BIGINT NOT NULL,
    total_prompt_tokens BIGINT NOT NULL,
    total_completion_tokens BIGINT NOT NULL,
    CONSTRAINT key_has_a_known_role CHECK (role IN ('admin', 'service', 'user', 'readonly'))
)
"""

MIGRATIONS: tuple[Migration, ...] = (
    Migration(2, "what bounds a key, and outcomes in the audit log", _add_principals),
    Migration(3, "users, teams, limits and prices", _add_people),
)
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
        schema.metadata.create_all(connection)
        _record(connection, newest, "all tables", now_s)
        return newest
    current = connection.execute(select(func.max(schema.schema_version.c.version))).scalar_one()
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
    return inspect(connection).has_table(schema.schema_version.name)


def _record(connection: Connection, version: int, description: str, now_s: float) -> None:
    connection.execute(
        insert(schema.schema_version).values(
            version=version, description=description, applied_at=int(now_s)
        )
    )
