"""A database of an older release ends up as a new one would be, with everything that it held."""

import ast
import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, event, text

from auth_worker.auditing.audit_check import check_log
from auth_worker.errors import StoreError, StoreForeignError, StoreTooNewError
from auth_worker.exit_codes import EXIT_FAILED, exit_code_of
from auth_worker.records.operations import (
    AddKey,
    AddResource,
    AuditEntry,
    ChangeKey,
    KeyPage,
    PutMember,
    ReadKeys,
)
from auth_worker.storage.migrations import (
    FIRST_VERSION,
    FOLDER,
    downgrade,
    migrate,
    newest_version,
    version_of,
)
from auth_worker.storage.sqlite_store import DATABASE_NAME, SqliteStore
from protocol.wire.messages import PrincipalRole, Resource, TeamSettings, UserSettings
from tests.fakes.auth_parts import FakeClock, admin_key, stored_key
from tests.fakes.source_trees import tree_of

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
    """Columns and indices of every table, by name; of an index also whether it is of some rows."""
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
                    [
                        *(column[2] for column in connection.execute(info(index[1]))),
                        f"some: {index[4]}",
                    ]
                    for index in connection.execute(f"PRAGMA index_list({name})")
                ),
            )
            for name in names
        }
    finally:
        connection.close()


def info(index: str) -> str:
    return f"PRAGMA index_info({index})"


@contextmanager
def writing(path: Path) -> Iterator[Connection]:
    """One transaction, begun as the store begins its own."""
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: sqlite3.Connection, _record: object) -> None:
        dbapi_connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


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
    checked = check_log(store.database.reading)
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


def test_the_file_of_the_first_version_makes_what_the_first_release_made(tmp_path: Path) -> None:
    old_database(tmp_path / "old")
    new = tmp_path / "new.sqlite3"
    SqliteStore(tmp_path, clock=FakeClock()).close()
    (tmp_path / DATABASE_NAME).rename(new)
    with writing(new) as connection:
        downgrade(connection, FIRST_VERSION, now_s=5.0)
    expected = shape(tmp_path / "old" / DATABASE_NAME)
    back = shape(new)
    del back["alembic_version"]
    assert back == expected


def test_every_version_goes_back_and_forward_again_and_keeps_keys_and_totals(
    tmp_path: Path,
) -> None:
    path = tmp_path / DATABASE_NAME
    store = SqliteStore(tmp_path, clock=FakeClock())
    audit = AuditEntry(0, "", "key_created", "x")
    keys = (admin_key(), stored_key(requests_per_minute=6))
    store.apply([AddKey(key, audit) for key in keys])
    store.close()
    made = shape(path)
    for version in range(newest_version() - 1, FIRST_VERSION - 1, -1):
        with writing(path) as connection:
            downgrade(connection, version, now_s=5.0)
            assert version_of(connection) == version
        with writing(path) as connection:
            assert migrate(connection, now_s=6.0) == newest_version()
        assert shape(path) == made, version
        store = SqliteStore(tmp_path, clock=FakeClock())
        assert store.load(recent_since_ms=0).keys == keys
        store.close()


def test_a_key_that_an_older_release_would_leave_unbound_is_revoked_on_the_way_back(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path, clock=FakeClock())
    audit = AuditEntry(0, "", "key_created", "x")
    narrow: dict[str, dict[str, object]] = {
        "scoped": {"scopes": '["models.list"]'},
        "of_models": {"allowed_models": '["demo"]'},
        "of_addresses": {"allowed_ip_addresses": '["192.0.2.0/24"]'},
        "suspended": {"suspended_at": 77},
        "readonly": {"role": "readonly"},
        "whole": {"enable_streaming": False},
        "toolless": {"enable_function_calling": False},
        "service": {"role": "service"},
        "free": {},
    }
    for name, values in narrow.items():
        store.apply([AddKey(stored_key(name, f"psk-{name}"), audit)])
        store.apply([ChangeKey(name, values, audit)])
    store.close()
    with writing(tmp_path / DATABASE_NAME) as connection:
        downgrade(connection, 1, now_s=5.0)
        rows = connection.execute(text("SELECT key_id, role, revoked_at FROM keys")).all()
    assert {row.key_id for row in rows if row.revoked_at is None} == {"free", "service"}
    assert {row.role for row in rows} == {"user"}


def test_a_key_whose_user_or_team_keeps_it_from_something_is_revoked_on_the_way_back(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path, clock=FakeClock())
    audit = AuditEntry(0, "", "key_created", "x")
    people: dict[str, PrincipalRole] = {"boss": "admin", "app": "service", "ada": "user"}
    for name, role in people.items():
        user = Resource(name, UserSettings(name=name, role=role), created_at=1)
        store.apply([AddResource("user", user, audit)])
    for name in ("open", "left"):
        team = Resource(name, TeamSettings(name=name), created_at=1)
        store.apply([AddResource("team", team, audit)])
    store.apply([PutMember("open", "ada", "member", 1, audit)])
    belongs = {
        ("admin of boss", "admin", "boss", ""): True,
        ("user of boss", "user", "boss", ""): True,
        ("user of app", "user", "app", ""): True,
        ("admin of app", "admin", "app", ""): False,
        ("admin of ada", "admin", "ada", ""): False,
        ("readonly of ada", "readonly", "ada", ""): False,
        ("user of nobody there", "user", "gone", ""): False,
        ("member", "user", "ada", "open"): True,
        ("no member any more", "user", "ada", "left"): False,
        ("of a team", "user", "", "left"): True,
        ("of no team there", "user", "", "gone"): False,
    }
    for name, own_role, user_id, team_id in belongs:
        key = stored_key(name, f"psk-{name}", role=own_role, user_id=user_id, team_id=team_id)
        store.apply([AddKey(key, audit)])
    store.close()
    with writing(tmp_path / DATABASE_NAME) as connection:
        downgrade(connection, 2, now_s=5.0)
        rows = connection.execute(text("SELECT key_id, revoked_at FROM keys")).all()
    opens = {row.key_id: row.revoked_at is None for row in rows}
    assert opens == {name: is_open for (name, *_), is_open in belongs.items()}


@pytest.mark.parametrize("version", [0, -1, 999])
def test_there_is_no_way_to_a_version_that_is_not_before_this_one(
    tmp_path: Path, version: int
) -> None:
    SqliteStore(tmp_path, clock=FakeClock()).close()
    with (
        pytest.raises(StoreError, match=rf"not to {version}\."),
        writing(tmp_path / DATABASE_NAME) as connection,
    ):
        downgrade(connection, version, now_s=5.0)


def test_a_step_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    old_database(tmp_path / "data")
    path = tmp_path / "data" / DATABASE_NAME
    before = shape(path)
    folder = tmp_path / "migration"
    shutil.copytree(FOLDER, folder)
    newest = newest_version()
    failing = folder / "versions" / f"v{newest + 1:04}_fails.py"
    failing.write_text(
        f'"""It fails."""\nfrom alembic import op\nrevision = "{newest + 1:04}"\n'
        f'down_revision = "{newest:04}"\n\n'
        'def upgrade():\n    op.execute("CREATE TABLE half (id INTEGER)")\n'
        '    raise OSError("no")\n'
    )
    with pytest.raises(OSError, match="no"), writing(path) as connection:
        migrate(connection, now_s=5.0, folder=folder)
    assert shape(path) == before
    failing.write_text(failing.read_text().replace('raise OSError("no")', "pass"))
    with writing(path) as connection:
        assert migrate(connection, now_s=5.0, folder=folder) == newest + 1
        versions = connection.execute(
            text("SELECT version FROM schema_version ORDER BY version")
        ).scalars()
        assert list(versions) == list(range(1, newest + 2))
    with pytest.raises(StoreTooNewError, match=f"has schema version {newest + 1}"):
        SqliteStore(tmp_path / "data", clock=FakeClock())


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE customers (id INTEGER)",
        "CREATE TABLE schema_version (version INTEGER)",
        "CREATE TABLE alembic_version (version_num VARCHAR)",
    ],
)
def test_a_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, statement: str
) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    connection.execute(statement)
    connection.commit()
    connection.close()
    before = shape(tmp_path / DATABASE_NAME)
    with pytest.raises(StoreForeignError, match="not Penstock's") as caught:
        SqliteStore(tmp_path, clock=FakeClock())
    assert "\n" not in caught.value.message
    assert exit_code_of(caught.value) == EXIT_FAILED
    assert shape(tmp_path / DATABASE_NAME) == before


def test_versions_follow_one_another_and_import_nothing_that_goes_on_changing() -> None:
    paths = sorted((FOLDER / "versions").glob("v*.py"))
    assert [int(path.name[1:5]) for path in paths] == list(range(1, newest_version() + 1))
    for number, path in enumerate(paths, start=1):
        tree = tree_of(path)
        values = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("revision", "down_revision")
        }
        before = None if number == 1 else f"{number - 1:04}"
        assert values == {"revision": f"{number:04}", "down_revision": before}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in {"alembic", "sqlalchemy", "collections"}
