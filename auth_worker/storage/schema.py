"""The tables of the auth database, as its newest version has them.

A change edits the tables below *and* adds a file to `migration/versions/` that makes it in
databases of before, and takes it back. Times end in `_at` (Unix seconds) or `_at_ms`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
    true,
)

metadata = MetaData()

# SQLite gives automatic numbers only to INTEGER, PostgreSQL should use 64 bits.
_SERIAL = BigInteger().with_variant(Integer, "sqlite")


_HAS_ACTOR = text("actor_key_id <> ''")
_HAS_SUBJECT = text("subject <> ''")

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
    # Grows with each transaction of the holder: standing still, the holder is gone.
    Column("num_commits", BigInteger, nullable=False, server_default="0"),
    Column("holder", String, nullable=False, server_default=""),  # empty: released cleanly
    # Random, made with the epoch 1: epochs of two databases can't be compared.
    Column("database_id", String, nullable=False, server_default=""),
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
    Column("created_by", String, nullable=False, server_default=""),
    Column("description", String, nullable=False, server_default=""),
    Column("owner", String, nullable=False, server_default=""),
    # Lists and maps are JSON; NULL where the key says nothing.
    Column("scopes", String),
    Column("tags", String),
    Column("metadata", String),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("max_parallel_requests", BigInteger),
    Column("max_tokens_per_request", BigInteger),
    Column("allowed_models", String),
    Column("allowed_endpoints", String),
    Column("allowed_ip_addresses", String),
    Column("blocked_ip_addresses", String),
    Column("enable_streaming", Boolean, nullable=False, server_default=true()),
    Column("enable_function_calling", Boolean, nullable=False, server_default=true()),
    Column("priority", String, nullable=False, server_default="normal"),
    Column("user_id", String, nullable=False, server_default=""),
    Column("team_id", String, nullable=False, server_default=""),
    Column("may_name_end_users", Boolean, nullable=False, server_default=false()),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("suspended_at", BigInteger),
    Column("previous_digest", LargeBinary(32)),
    Column("previous_until", BigInteger),
    Column("last_rotated_at", BigInteger),
    Column("last_rotated_by", String, nullable=False, server_default=""),
    Column("last_used_at", BigInteger),
    Column("total_requests", BigInteger, nullable=False, default=0),
    Column("total_prompt_tokens", BigInteger, nullable=False, default=0),
    Column("total_completion_tokens", BigInteger, nullable=False, default=0),
    Column("total_cost_micros", BigInteger, nullable=False, server_default="0"),
    CheckConstraint(
        "role IN ('admin', 'service', 'user', 'readonly')", name="key_has_a_known_role"
    ),
    Index("keys_by_owner", "owner"),
    Index("keys_by_user", "user_id"),
    Index("keys_by_team", "team_id"),
    sqlite_autoincrement=True,
)

users = Table(
    "users",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("user_id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("email", String, nullable=False),
    Column("role", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("tags", String),
    Column("metadata", String),
    Column("suspended_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String, nullable=False),
    sqlite_autoincrement=True,
)

teams = Table(
    "teams",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("team_id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("tenant_is_shared", Boolean, nullable=False),
    Column("allowed_models", String),
    Column("tags", String),
    Column("metadata", String),
    Column("suspended_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String, nullable=False),
    sqlite_autoincrement=True,
)

team_members = Table(
    "team_members",
    metadata,
    Column("team_id", String, primary_key=True),
    Column("user_id", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("added_at", BigInteger, nullable=False),
    Index("team_members_by_user", "user_id"),
)

limits = Table(
    "limits",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("limit_id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("holder", String, nullable=False),
    Column("holder_id", String, nullable=False),
    Column("measure", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("window", String, nullable=False),
    Column("time_zone", String, nullable=False),
    Column("starts_at", BigInteger),
    Column("length_s", BigInteger),
    Column("models", String),
    Column("endpoints", String),
    Column("is_hard", Boolean, nullable=False),
    Column("thresholds", String),
    Column("rolls_over", Boolean, nullable=False),
    Column("auto_renews", Boolean, nullable=False),
    Column("raised_by", BigInteger, nullable=False),
    Column("raised_until", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String, nullable=False),
    # Unix seconds; 0: since it was made. Another window begins another count.
    Column("counts_since", BigInteger, nullable=False, server_default="0"),
    Index("limits_by_holder", "holder", "holder_id"),
    sqlite_autoincrement=True,
)

# A row a version: what was said once is never changed.
prices = Table(
    "prices",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("price_id", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("models", String, nullable=False),
    Column("valid_from_ms", BigInteger, nullable=False),
    Column("prompt", BigInteger, nullable=False),
    Column("cached_prompt", BigInteger),
    Column("completion", BigInteger, nullable=False),
    Column("reasoning", BigInteger),
    Column("embedding", BigInteger),
    Column("request", BigInteger, nullable=False),
    Column("is_ended", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String, nullable=False),
    UniqueConstraint("price_id", "version"),
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
    Column("endpoint", String, nullable=False, server_default=""),
    Column("end_user", String, nullable=False, server_default=""),
    Column("user_id", String, nullable=False, server_default=""),
    Column("team_id", String, nullable=False, server_default=""),
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
    Column("user_id", String, nullable=False, server_default=""),
    Column("team_id", String, nullable=False, server_default=""),
    Column("end_user", String, nullable=False, server_default=""),
    Column("endpoint", String, nullable=False, server_default=""),
    Column("cost_micros", BigInteger, nullable=False, server_default="0"),
    Column("price_id", String, nullable=False, server_default=""),
    Column("price_version", Integer, nullable=False, server_default="0"),
    # The counters of limits that it counts in, and as what: `12m,57t`.
    Column("charges", String, nullable=False, server_default=""),
    # The entry of the audit log that covers it; 0 without a price, and of before there were such.
    Column("audit_seq", BigInteger, nullable=False, server_default="0"),
    Index("ledger_by_time", "settled_at_ms"),
)

limit_usage = Table(
    "limit_usage",
    metadata,
    # Given by the authority; a fixed window of a limit, or a slot of a sliding one.
    Column("counter_id", BigInteger, primary_key=True, autoincrement=False),
    Column("limit_id", String, nullable=False),
    Column("end_user", String, nullable=False),
    Column("begins_at", BigInteger, nullable=False),
    # Up to here requests may be granted; committed before they are.
    Column("granted", BigInteger, nullable=False),
    Column("carried", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Index("limit_usage_by_limit", "limit_id"),
)

usage_by_hour = Table(
    "usage_by_hour",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),  # hours since 1970, UTC
    Column("model", String, primary_key=True),
    Column("endpoint", String, primary_key=True),
    Column("end_user", String, primary_key=True),
    Column("user_id", String, primary_key=True),
    Column("team_id", String, primary_key=True),
    Column("num_requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Index("usage_by_time", "hour"),
    Index("usage_by_user", "user_id", "hour"),
    Index("usage_by_team", "team_id", "hour"),
)

# Sums of settlements that the totals of keys and hours don't have yet; see `pending_sums.py`.
pending_sums = Table(
    "pending_sums",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=False),
    Column("sums", String, nullable=False),  # JSON
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
    # Empty in entries of before these columns; see `audit.hash_of`.
    Column("outcome", String, nullable=False, server_default=""),
    Column("address", String, nullable=False, server_default=""),
    Column("request_id", String, nullable=False, server_default=""),
    # Each commit of money adds an entry that has neither; who looks for one says that he does.
    Index(
        "audit_by_actor",
        "actor_key_id",
        "seq",
        sqlite_where=_HAS_ACTOR,
        postgresql_where=_HAS_ACTOR,
    ),
    Index(
        "audit_by_subject",
        "subject",
        "seq",
        sqlite_where=_HAS_SUBJECT,
        postgresql_where=_HAS_SUBJECT,
    ),
    Index("audit_by_action", "action", "seq"),
    Index("audit_by_time", "at_ms"),
)

# What ledger rows older than the retention were folded into; together with the ledger it adds up to
# the totals.
ledger_hours = Table(
    "ledger_hours",
    metadata,
    Column("hour", Integer, primary_key=True, autoincrement=False),  # hours since 1970, UTC
    Column("key_id", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("user_id", String, primary_key=True),
    Column("team_id", String, primary_key=True),
    Column("end_user", String, primary_key=True),
    Column("endpoint", String, primary_key=True),
    Column("num_requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
)

ledger_fold = Table(
    "ledger_fold",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # The greatest that was folded. Lease ids grow: one that is not greater, and neither open nor in
    # the ledger, was folded, or was never remembered.
    Column("last_lease_id", String, nullable=False),
    CheckConstraint("id = 1", name="ledger_fold_is_one_row"),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("key_name", String, nullable=False),  # of the key that signed it
    Column("signature", LargeBinary(32), nullable=False),
)

admin_answers = Table(
    "admin_answers",
    metadata,
    Column("name", LargeBinary(32), primary_key=True),
    Column("owner", String, nullable=False),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    # Sealed with the owner's key; empty while nobody knows what came of it.
    Column("answer", LargeBinary, nullable=False),
    Index("admin_answers_by_owner", "owner", "at_ms"),
    Index("admin_answers_by_time", "at_ms"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("webhook_id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("url", String, nullable=False),
    Column("events", String, nullable=False),  # a JSON list
    Column("secret", String, nullable=False),
    Column("suspended_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String, nullable=False),
    # Everything of the audit log up to here was sent.
    Column("after_seq", BigInteger, nullable=False),
    Column("num_failed", Integer, nullable=False, server_default="0"),
    Column("next_attempt_ms", BigInteger, nullable=False, server_default="0"),
    Column("last_delivered_at", BigInteger),
    Column("last_error", String, nullable=False, server_default=""),
    sqlite_autoincrement=True,
)
