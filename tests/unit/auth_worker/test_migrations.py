"""A database of an older release ends up as a new one would be, with everything that it held."""

import hashlib
import sqlite3
from pathlib import Path

from auth_worker.auditing.audit_check import check_log
from auth_worker.records.operations import AddKey, AuditEntry, KeyPage, ReadKeys
from auth_worker.storage.sqlite_store import DATABASE_NAME, SqliteStore
from tests.fakes.auth_parts import FakeClock, admin_key, stored_key

VERSION_1 = """
CREATE TABLE schema_version (
    version INTEGER NOT NULL, description VARCHAR NOT NULL, applied_at BIGINT NOT NULL,
    PRIMARY KEY (version)
);
CREATE TABLE authority (
    id INTEGER NOT NULL, epoch BIGINT NOT NULL, acquired_at BIGINT NOT NULL,
    PRIMARY KEY (id), CONSTRAINT authority_is_one_row CHECK (id = 1)
);
CREATE TABLE keys (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    key_id VARCHAR NOT NULL, digest BLOB NOT NULL, hint VARCHAR NOT NULL, name VARCHAR NOT NULL,
    role VARCHAR NOT NULL, tenant VARCHAR NOT NULL, created_at BIGINT NOT NULL,
    requests_per_minute BIGINT, tokens_per_minute BIGINT, expires_at BIGINT, revoked_at BIGINT,
    last_used_at BIGINT, total_requests BIGINT NOT NULL, total_prompt_tokens BIGINT NOT NULL,
    total_completion_tokens BIGINT NOT NULL,
    CONSTRAINT key_has_a_known_role CHECK (role IN ('user', 'admin')),
    UNIQUE (key_id), UNIQUE (digest)
);
CREATE TABLE leases (
    lease_id VARCHAR NOT NULL, request_id VARCHAR NOT NULL, key_id VARCHAR NOT NULL,
    model VARCHAR NOT NULL, granted_at_ms BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL, reported_prompt_tokens BIGINT NOT NULL,
    reported_completion_tokens BIGINT NOT NULL,
    PRIMARY KEY (lease_id)
);
CREATE TABLE ledger (
    lease_id VARCHAR NOT NULL, request_id VARCHAR NOT NULL, key_id VARCHAR NOT NULL,
    model VARCHAR NOT NULL, prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL, outcome VARCHAR NOT NULL,
    granted_at_ms BIGINT, settled_at_ms BIGINT NOT NULL,
    PRIMARY KEY (lease_id)
);
CREATE INDEX ledger_by_time ON ledger (settled_at_ms);
CREATE TABLE usage_totals (
    key_id VARCHAR NOT NULL, model VARCHAR NOT NULL, day INTEGER NOT NULL,
    num_requests BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    PRIMARY KEY (key_id, model, day)
);
CREATE TABLE audit_log (
    seq INTEGER NOT NULL, at_ms BIGINT NOT NULL, actor_key_id VARCHAR NOT NULL,
    action VARCHAR NOT NULL, subject VARCHAR NOT NULL, detail VARCHAR NOT NULL,
    previous_hash BLOB NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (seq), UNIQUE (hash)
);
INSERT INTO schema_version VALUES (1, 'all tables', 1);
INSERT INTO authority VALUES (1, 7, 1);
INSERT INTO audit_log VALUES (
    1, 5, '', 'epoch_started', '1', '{}', zeroblob(32),
    x'{hash}'
);
"""
"""As the first release made them."""


def first_hash() -> str:
    """Of the one entry, as the first release computed it."""
    text = '[1,5,"","epoch_started","1","{}"]'
    return hashlib.sha256(bytes(32) + text.encode()).hexdigest()


def old_database(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    connection = sqlite3.connect(directory / DATABASE_NAME)
    connection.executescript(VERSION_1.replace("{hash}", first_hash()))
    for key in (admin_key(), stored_key(requests_per_minute=6, expires_at=2_000_000_000)):
        connection.execute(
            "INSERT INTO keys VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 9, 1, 2, 3)",
            (
                *(key.key_id, key.digest, key.hint, key.name, key.role, key.tenant),
                *(key.created_at, key.requests_per_minute, key.tokens_per_minute),
                *(key.expires_at, key.revoked_at),
            ),
        )
    connection.commit()
    connection.close()


def shape(path: Path) -> dict[str, object]:
    """Columns and indices of every table, by name."""
    connection = sqlite3.connect(path)
    try:
        names = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not name.startswith("sqlite_")
        ]
        return {
            name: (
                {
                    (column[1], column[2].upper(), column[3], column[5])
                    for column in connection.execute(f"PRAGMA table_info({name})")
                },
                sorted(
                    [column[2] for column in connection.execute(f"PRAGMA index_info({index[1]})")]
                    for index in connection.execute(f"PRAGMA index_list({name})")
                ),
            )
            for name in names
        }
    finally:
        connection.close()


def test_an_old_database_becomes_what_a_new_one_is(tmp_path: Path) -> None:
    old_database(tmp_path / "old")
    for name in ("old", "new"):
        SqliteStore(tmp_path / name, clock=FakeClock()).close()
    old, new = (shape(tmp_path / name / DATABASE_NAME) for name in ("old", "new"))
    assert old == new


def test_an_old_database_keeps_keys_totals_and_a_chain_that_holds(tmp_path: Path) -> None:
    old_database(tmp_path)
    store = SqliteStore(tmp_path, clock=FakeClock())
    expected = (admin_key(), stored_key(requests_per_minute=6, expires_at=2_000_000_000))
    assert store.load(recent_since_ms=0).keys == expected
    (page,) = store.apply([ReadKeys("", 10)])
    assert isinstance(page, KeyPage)
    user, admin = page.records
    assert (user.total_requests, user.total_prompt_tokens, user.last_used_at) == (1, 2, 9)
    assert (admin.settings.role, admin.settings.scopes, admin.status) == ("admin", None, "active")
    checked = check_log(store.path)
    assert (checked.num_entries, checked.trouble) == (2, None)
    store.close()


def test_new_keys_of_a_migrated_database_come_after_the_old_ones(tmp_path: Path) -> None:
    old_database(tmp_path)
    store = SqliteStore(tmp_path, clock=FakeClock())
    audit = AuditEntry(0, "", "key_created", "x")
    store.apply([AddKey(stored_key("key_new", "psk-new"), audit)])
    store.close()
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    numbers = [seq for (seq,) in connection.execute("SELECT seq FROM keys ORDER BY seq")]
    connection.close()
    assert numbers == [1, 2, 3]
