"""The first admin key: given, replaced, taken away, or made and written to a private file."""

import secrets
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from msgspec import structs

from auth_worker.administration.first_admin import ADMIN_KEY_FILE, ensure_admin
from auth_worker.administration.key_administration import Administration
from auth_worker.auditing.audit_check import check_log
from auth_worker.config import AdminKey
from auth_worker.errors import InvalidCommandError
from auth_worker.principals.keys import ENVIRONMENT_KEY_ID, KeyDirectory, StoredKey, digest_of
from auth_worker.records.operations import (
    AddKey,
    AddResource,
    AuditEntry,
    ChangeKey,
    ChangeResourceRow,
)
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.errors import ConfigurationError
from protocol.wire.messages import Actor, ChangeKeyStatus, Resource, UserSettings
from tests.fakes.auth_parts import START_S, FakeClock, admin_key, stored_key

FIRST = "psk-Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7Hc5"
SECOND = "psk-Qm7sTb2Vx9Kd4Wf6Yp1Zr8Nc3Jh5"
AUDIT = AuditEntry(0, "", "key_created", "x")


class Bench:
    """A store in a folder and the start of an auth worker on it, again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.store = SqliteStore(directory, clock=self.clock)
        self._numbers = count()

    def start(self, given: str | None = None) -> Path | None:
        return ensure_admin(
            self.store,
            self.store.load(recent_since_ms=0),
            given=None if given is None else AdminKey(given),
            directory=self.directory,
            clock=self.clock,
            random_text=secrets.token_urlsafe,
            new_key_id=lambda: f"key_{next(self._numbers)}",
        ).path

    def stored(self) -> tuple[StoredKey, ...]:
        return self.store.load(recent_since_ms=0).keys

    def opens(self, secret: str) -> bool:
        key = KeyDirectory(self.stored()).find(digest_of(secret))
        return key is not None and key.role == "admin" and key.is_active(self.clock.wall)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def test_without_an_admin_one_is_made_and_only_its_owner_reads_the_file(bench: Bench) -> None:
    path = bench.start()
    assert path == bench.directory / ADMIN_KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().strip()
    assert len(secret) == 47
    assert bench.opens(secret)
    assert [file.name for file in bench.directory.glob("*.new")] == []


def test_the_made_key_stays_on_the_next_start(bench: Bench) -> None:
    path = bench.start()
    assert path is not None
    secret = path.read_text()
    assert bench.start() is None
    assert path.read_text() == secret
    assert len(bench.stored()) == 1


def test_the_made_key_appears_in_no_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    path = bench.start()
    assert path is not None
    assert str(path) in caplog.text
    assert path.read_text().strip() not in caplog.text


def test_a_file_left_by_a_crash_before_its_digest_was_stored_is_overwritten(bench: Bench) -> None:
    path = bench.directory / ADMIN_KEY_FILE
    path.write_text("psk-lost\n")
    (bench.directory / "admin.key.new").write_text("half")
    bench.start()
    assert bench.opens(path.read_text().strip())


def test_a_given_key_opens_and_no_file_is_made(bench: Bench) -> None:
    assert bench.start(FIRST) is None
    assert bench.opens(FIRST)
    assert not (bench.directory / ADMIN_KEY_FILE).exists()


def test_another_value_replaces_the_given_key(bench: Bench) -> None:
    bench.start(FIRST)
    bench.start(SECOND)
    assert bench.opens(SECOND)
    assert not bench.opens(FIRST)
    assert [key.key_id for key in bench.stored()] == [ENVIRONMENT_KEY_ID]


def test_the_same_value_again_changes_nothing(bench: Bench) -> None:
    bench.start(FIRST)
    before = bench.stored()
    bench.clock.advance(100)
    bench.start(FIRST)
    assert bench.stored() == before


def test_a_key_taken_out_of_the_environment_opens_nothing_and_another_is_made(
    bench: Bench,
) -> None:
    bench.start(FIRST)
    path = bench.start()
    assert not bench.opens(FIRST)
    assert path is not None
    assert bench.opens(path.read_text().strip())
    bench.start(FIRST)
    assert bench.opens(FIRST)


def test_a_given_key_that_an_administrator_revoked_stays_so_until_another_is_given(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.start(FIRST)
    bench.store.apply([AddKey(admin_key(), AUDIT)])
    keys = KeyDirectory(bench.stored())
    administration = Administration(keys, clock=bench.clock, new_key_id=lambda: "key_9")
    command = ChangeKeyStatus(
        request_id="r", actor=Actor(key_id="key_admin"), key_id=ENVIRONMENT_KEY_ID, action="revoke"
    )
    bench.store.apply([administration.change_status(command)])
    for _ in range(2):
        assert bench.start(FIRST) is None
        assert not bench.opens(FIRST)
        assert "holds a key that was revoked" in caplog.messages[-1]
    with pytest.raises(InvalidCommandError, match="PENSTOCK_ADMIN_KEY"):
        administration.change_status(structs.replace(command, action="delete"))
    bench.start()
    bench.start(FIRST)
    assert not bench.opens(FIRST)
    bench.start(SECOND)
    assert bench.opens(SECOND)


def test_the_made_key_may_be_handed_on_through_the_environment(bench: Bench) -> None:
    path = bench.start()
    assert path is not None
    assert bench.start(path.read_text().strip()) is None
    assert len(bench.stored()) == 1


@pytest.mark.parametrize("role", ["user", "admin"])
def test_a_user_key_or_a_revoked_one_can_not_be_the_admin_key(bench: Bench, role: str) -> None:
    bench.store.apply([AddKey(stored_key("key_old", FIRST, role=role), AUDIT)])
    if role == "admin":
        bench.store.apply([ChangeKey("key_old", {"revoked_at": 5}, AUDIT)])
    with pytest.raises(ConfigurationError, match="PENSTOCK_ADMIN_KEY") as caught:
        bench.start(FIRST)
    assert FIRST not in caught.value.message


def test_when_every_admin_key_has_ended_a_new_one_is_made(bench: Bench) -> None:
    bench.store.apply([AddKey(admin_key(expires_at=int(START_S)), AUDIT)])
    assert bench.start() is not None


def test_a_temporary_admin_key_does_not_stand_for_the_lasting_one(bench: Bench) -> None:
    temporary = admin_key(expires_at=int(START_S) + 60)
    bench.store.apply([AddKey(temporary, AUDIT)])
    path = bench.start()
    assert path is not None
    bench.clock.advance(60)
    assert bench.opens(path.read_text().strip())


def test_the_environments_key_is_a_lasting_one(bench: Bench) -> None:
    bench.store.apply([AddKey(admin_key(expires_at=int(START_S) + 60), AUDIT)])
    assert bench.start(FIRST) is None


def of_user(bench: Bench, secret: str) -> None:
    """The only admin key is that of a user who administers."""
    user = Resource(
        resource_id="user_ops",
        settings=UserSettings(name="ops", role="admin"),
        created_at=int(START_S),
        created_by="",
    )
    key = stored_key("key_ops", secret, role="admin", user_id="user_ops")
    bench.store.apply([AddResource("user", user, AUDIT), AddKey(key, AUDIT)])


def test_a_key_of_a_user_who_administers_is_a_lasting_one(bench: Bench) -> None:
    of_user(bench, SECOND)
    assert bench.start() is None, "nobody asked for another key of an administrator"
    assert [key.key_id for key in bench.stored()] == ["key_ops"]
    assert not (bench.directory / ADMIN_KEY_FILE).exists()


def test_a_key_of_a_user_who_is_suspended_is_none(bench: Bench) -> None:
    of_user(bench, SECOND)
    bench.store.apply([ChangeResourceRow("user", "user_ops", {"suspended_at": 5}, AUDIT)])
    path = bench.start()
    assert path is not None
    assert bench.opens(path.read_text().strip())


def test_a_key_of_a_user_may_be_handed_on_through_the_environment(bench: Bench) -> None:
    of_user(bench, SECOND)
    assert bench.start(SECOND) is None
    assert [key.key_id for key in bench.stored()] == ["key_ops"]
    bench.store.apply([ChangeResourceRow("user", "user_ops", {"role": "user"}, AUDIT)])
    with pytest.raises(ConfigurationError, match="PENSTOCK_ADMIN_KEY"):
        bench.start(SECOND)


def test_the_secret_of_before_a_rotation_is_given_in_vain_once_its_time_is_over(
    bench: Bench,
) -> None:
    previous = {"previous_digest": digest_of(FIRST), "previous_until": int(START_S) + 60}
    bench.store.apply([AddKey(admin_key(), AUDIT), ChangeKey("key_admin", previous, AUDIT)])
    assert bench.start(FIRST) is None
    bench.clock.advance(60)
    with pytest.raises(ConfigurationError, match="rotated") as caught:
        bench.start(FIRST)
    assert FIRST not in caught.value.message


def test_each_change_is_on_record_without_the_key(bench: Bench) -> None:
    bench.start(FIRST)
    bench.start(SECOND)
    bench.start()
    with bench.store._engine.begin() as connection:
        rows = connection.exec_driver_sql("SELECT action, detail FROM audit_log").all()
    actions = [row.action for row in rows]
    assert actions == ["epoch_started", *["admin_key_changed"] * 3, "key_created"]
    assert all(FIRST not in row.detail and SECOND not in row.detail for row in rows)
    checked = check_log(bench.store.database.reading)
    assert (checked.num_entries, checked.trouble) == (5, None)


def test_the_other_keys_are_not_indexed_however_many_they_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start()
    for number in range(100):
        key = stored_key(f"key_of_{number}", f"psk-{number}")
        bench.store.apply([AddKey(key, AUDIT)])
    put, indexed = KeyDirectory.put, list[str]()

    def noted(directory: KeyDirectory, key: StoredKey) -> None:
        indexed.append(key.name)
        put(directory, key)

    monkeypatch.setattr(KeyDirectory, "put", noted)
    assert bench.start() is None
    assert indexed == ["first admin key"]
