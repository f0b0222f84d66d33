"""The tables, in words that SQLite and PostgreSQL both read."""

from typing import Final

SCHEMA_VERSION: Final = 1

TABLES: Final[tuple[str, ...]] = (
    "CREATE TABLE IF NOT EXISTS store_version (version INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS responses (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        status TEXT NOT NULL,
        previous_id TEXT,
        conversation_id TEXT,
        created_ms BIGINT NOT NULL,
        used_ms BIGINT NOT NULL,
        num_bytes BIGINT NOT NULL,
        body BLOB NOT NULL,
        input BLOB NOT NULL,
        output BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS responses_by_use ON responses (tenant, used_ms)",
    "CREATE INDEX IF NOT EXISTS responses_by_age ON responses (used_ms)",
    """CREATE TABLE IF NOT EXISTS conversations (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        used_ms BIGINT NOT NULL,
        num_bytes BIGINT NOT NULL,
        metadata BLOB NOT NULL,
        next_position BIGINT NOT NULL,
        writer TEXT,
        writer_owner TEXT)""",
    "CREATE INDEX IF NOT EXISTS conversations_by_use ON conversations (tenant, used_ms)",
    "CREATE INDEX IF NOT EXISTS conversations_by_age ON conversations (used_ms)",
    """CREATE TABLE IF NOT EXISTS items (
        conversation_id TEXT NOT NULL,
        position BIGINT NOT NULL,
        id TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (conversation_id, position))""",
    "CREATE UNIQUE INDEX IF NOT EXISTS items_by_id ON items (conversation_id, id)",
    # Where items were that have been deleted lately: whoever reads page by page goes on there.
    """CREATE TABLE IF NOT EXISTS gone_items (
        conversation_id TEXT NOT NULL,
        id TEXT NOT NULL,
        position BIGINT NOT NULL,
        gone_ms BIGINT NOT NULL,
        PRIMARY KEY (conversation_id, id))""",
    """CREATE TABLE IF NOT EXISTS jobs (
        response_id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        owner TEXT,
        created_ms BIGINT NOT NULL,
        due_ms BIGINT NOT NULL,
        takes INTEGER NOT NULL,
        leases TEXT NOT NULL,
        request BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS jobs_by_tenant ON jobs (tenant)",
    """CREATE TABLE IF NOT EXISTS events (
        response_id TEXT NOT NULL,
        first BIGINT NOT NULL,
        last BIGINT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (response_id, first))""",
    # A row while a response is made in the background: whether anybody has asked for its events,
    # and the model whose output they tell.
    """CREATE TABLE IF NOT EXISTS event_logs (
        response_id TEXT PRIMARY KEY,
        is_read INTEGER NOT NULL,
        model TEXT NOT NULL)""",
    # Answers under an Idempotency-Key; one without bytes is being made by its owner, or nobody.
    """CREATE TABLE IF NOT EXISTS kept_answers (
        name BLOB PRIMARY KEY,
        tenant TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        owner TEXT NOT NULL,
        begun_ms BIGINT NOT NULL,
        num_bytes BIGINT NOT NULL,
        answer BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS kept_answers_by_tenant ON kept_answers"
    " (tenant, begun_ms, num_bytes)",
    "CREATE INDEX IF NOT EXISTS kept_answers_by_age ON kept_answers (begun_ms, num_bytes)",
    "CREATE TABLE IF NOT EXISTS owners (id TEXT PRIMARY KEY, alive_ms BIGINT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS tenants (
        tenant TEXT PRIMARY KEY,
        num_stored BIGINT NOT NULL,
        num_bytes BIGINT NOT NULL)""",
)
