"""All tables of the first release."""

from alembic import op

revision = "0001"
down_revision = None

_TABLES = (
    """
    CREATE TABLE schema_version (
        version INTEGER NOT NULL PRIMARY KEY,
        description VARCHAR NOT NULL,
        applied_at BIGINT NOT NULL
    )
    """,
    """
    CREATE TABLE authority (
        id INTEGER NOT NULL PRIMARY KEY,
        epoch BIGINT NOT NULL,
        acquired_at BIGINT NOT NULL,
        CONSTRAINT authority_is_one_row CHECK (id = 1)
    )
    """,
    """
    CREATE TABLE keys (
        seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        key_id VARCHAR NOT NULL UNIQUE,
        digest BLOB NOT NULL UNIQUE,
        hint VARCHAR NOT NULL,
        name VARCHAR NOT NULL,
        role VARCHAR NOT NULL,
        tenant VARCHAR NOT NULL,
        created_at BIGINT NOT NULL,
        requests_per_minute BIGINT,
        tokens_per_minute BIGINT,
        expires_at BIGINT,
        revoked_at BIGINT,
        last_used_at BIGINT,
        total_requests BIGINT NOT NULL,
        total_prompt_tokens BIGINT NOT NULL,
        total_completion_tokens BIGINT NOT NULL,
        CONSTRAINT key_has_a_known_role CHECK (role IN ('user', 'admin'))
    )
    """,
    """
    CREATE TABLE leases (
        lease_id VARCHAR NOT NULL PRIMARY KEY,
        request_id VARCHAR NOT NULL,
        key_id VARCHAR NOT NULL,
        model VARCHAR NOT NULL,
        granted_at_ms BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        reported_prompt_tokens BIGINT NOT NULL,
        reported_completion_tokens BIGINT NOT NULL
    )
    """,
    """
    CREATE TABLE ledger (
        lease_id VARCHAR NOT NULL PRIMARY KEY,
        request_id VARCHAR NOT NULL,
        key_id VARCHAR NOT NULL,
        model VARCHAR NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        cached_tokens BIGINT NOT NULL,
        reasoning_tokens BIGINT NOT NULL,
        outcome VARCHAR NOT NULL,
        granted_at_ms BIGINT,
        settled_at_ms BIGINT NOT NULL
    )
    """,
    "CREATE INDEX ledger_by_time ON ledger (settled_at_ms)",
    """
    CREATE TABLE usage_totals (
        key_id VARCHAR NOT NULL,
        model VARCHAR NOT NULL,
        day INTEGER NOT NULL,
        num_requests BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        cached_tokens BIGINT NOT NULL,
        reasoning_tokens BIGINT NOT NULL,
        PRIMARY KEY (key_id, model, day)
    )
    """,
    """
    CREATE TABLE audit_log (
        seq INTEGER NOT NULL PRIMARY KEY,
        at_ms BIGINT NOT NULL,
        actor_key_id VARCHAR NOT NULL,
        action VARCHAR NOT NULL,
        subject VARCHAR NOT NULL,
        detail VARCHAR NOT NULL,
        previous_hash BLOB NOT NULL,
        hash BLOB NOT NULL UNIQUE
    )
    """,
)


def upgrade() -> None:
    """Make them, as SQLite spells it: the first releases knew no other database."""
    for statement in _TABLES:
        op.execute(statement)


def downgrade() -> None:
    """There is nothing before it."""
    raise NotImplementedError("nothing comes before the first version")
