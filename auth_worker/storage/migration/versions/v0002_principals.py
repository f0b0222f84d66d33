"""What bounds a key, and outcomes in the audit log."""

from alembic import op

revision = "0002"
down_revision = "0001"

_AUDIT_INDICES = {
    "audit_by_actor": "actor_key_id, seq",
    "audit_by_subject": "subject, seq",
    "audit_by_action": "action, seq",
    "audit_by_time": "at_ms",
}
_AUDIT_COLUMNS = ("outcome", "address", "request_id")


def upgrade() -> None:
    """Keys get everything that bounds them but two limits, and audit entries their outcomes."""
    # SQLite can't change a constraint: the table is made again, and its rows are copied.
    op.execute("ALTER TABLE keys RENAME TO keys_1")
    op.execute(_KEYS_2)
    op.execute(f"INSERT INTO keys ({_COPIED}) SELECT {_COPIED} FROM keys_1")  # noqa: S608
    op.execute("DROP TABLE keys_1")
    op.execute("CREATE INDEX keys_by_owner ON keys (owner)")
    for column in _AUDIT_COLUMNS:
        op.execute(f"ALTER TABLE audit_log ADD COLUMN {column} VARCHAR DEFAULT '' NOT NULL")
    for name, columns in _AUDIT_INDICES.items():
        op.execute(f"CREATE INDEX {name} ON audit_log ({columns})")


def downgrade() -> None:
    """Keys lose what bounds them beside two limits; one that was suspended is revoked.

    Roles that were not known become `user`, and a role narrowed by scopes, models, endpoints,
    addresses or what a request may ask for is revoked rather than opened: the older release would
    not heed them. Outcomes in the audit log are lost, and with them the proof of entries that had
    one.
    """
    op.execute(
        "UPDATE keys SET revoked_at = coalesce(revoked_at, suspended_at, created_at)"
        " WHERE suspended_at IS NOT NULL OR scopes IS NOT NULL OR allowed_models IS NOT NULL"
        " OR allowed_endpoints IS NOT NULL OR allowed_ip_addresses IS NOT NULL"
        " OR blocked_ip_addresses IS NOT NULL OR max_parallel_requests IS NOT NULL"
        " OR max_tokens_per_request IS NOT NULL OR role = 'readonly'"
        " OR NOT enable_streaming OR NOT enable_function_calling"
    )
    op.execute("ALTER TABLE keys RENAME TO keys_2")
    op.execute(_KEYS_1)
    to_old_role = "CASE role WHEN 'admin' THEN 'admin' ELSE 'user' END"
    op.execute(
        f"INSERT INTO keys ({_COPIED})"  # noqa: S608
        f" SELECT {_COPIED.replace(' role,', f' {to_old_role},')} FROM keys_2"
    )
    op.execute("DROP TABLE keys_2")
    for name in _AUDIT_INDICES:
        op.execute(f"DROP INDEX {name}")
    for column in _AUDIT_COLUMNS:
        op.execute(f"ALTER TABLE audit_log DROP COLUMN {column}")


_COPIED = """
    seq, key_id, digest, hint, name, role, tenant, created_at, requests_per_minute,
    tokens_per_minute, expires_at, revoked_at, last_used_at, total_requests, total_prompt_tokens,
    total_completion_tokens
"""
_KEYS_1 = """
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
