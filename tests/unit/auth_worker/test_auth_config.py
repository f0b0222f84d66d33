"""The settings: defaults, bounds, and a secret that never shows."""

from pathlib import Path

import pytest

from auth_worker.config import AuthSettings
from protocol.errors import ConfigurationError

STRONG = "psk-Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7Hc5"


def test_without_settings_the_defaults_hold() -> None:
    settings = AuthSettings.from_env({})
    assert settings.data_dir.is_absolute()
    assert settings.rules.allow_anonymous is False
    assert settings.rules.lease_duration_s == 600.0
    assert settings.admin_key is None


def test_settings_are_read_and_the_admin_key_is_masked(tmp_path: Path) -> None:
    settings = AuthSettings.from_env(
        {
            "PENSTOCK_DATA_DIR": str(tmp_path),
            "PENSTOCK_ALLOW_ANONYMOUS": "true",
            "PENSTOCK_LEASE_DURATION_S": "30",
            "PENSTOCK_ADMIN_KEY": STRONG,
        }
    )
    assert settings.data_dir == tmp_path
    assert settings.rules.allow_anonymous
    assert settings.rules.lease_duration_s == 30.0
    assert settings.admin_key is not None
    assert settings.admin_key.reveal() == STRONG
    assert STRONG not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_ADMIN_KEY", "changeme-changeme-changeme"),
        ("PENSTOCK_ALLOW_ANONYMOUS", "perhaps"),
        ("PENSTOCK_LEASE_DURATION_S", "0"),
        ("PENSTOCK_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_names_its_setting(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        AuthSettings.from_env({name: value})


def test_a_weak_admin_key_is_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AuthSettings.from_env({"PENSTOCK_ADMIN_KEY": "letmein-letmein-letmein-99"})
    assert "letmein" not in caught.value.message


def test_the_admin_key_may_come_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    path.write_text(f"{STRONG}\n")
    settings = AuthSettings.from_env({"PENSTOCK_ADMIN_KEY_FILE": str(path)})
    assert settings.admin_key is not None
    assert settings.admin_key.reveal() == STRONG
    assert STRONG not in repr(settings)


@pytest.mark.parametrize("content", ["", "letmein-letmein-letmein-99"])
def test_a_file_with_a_weak_admin_key_is_refused_by_its_setting(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "admin.key"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="PENSTOCK_ADMIN_KEY_FILE is too weak") as caught:
        AuthSettings.from_env({"PENSTOCK_ADMIN_KEY_FILE": str(path)})
    assert "letmein" not in caught.value.message


def test_an_admin_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(ConfigurationError, match="PENSTOCK_ADMIN_KEY_FILE: cannot read"):
        AuthSettings.from_env({"PENSTOCK_ADMIN_KEY_FILE": str(missing)})


def test_two_admin_keys_are_one_too_many(tmp_path: Path) -> None:
    given = {"PENSTOCK_ADMIN_KEY": STRONG, "PENSTOCK_ADMIN_KEY_FILE": str(tmp_path / "key")}
    with pytest.raises(ConfigurationError, match="not both"):
        AuthSettings.from_env(given)


def test_the_address_of_a_database_comes_in_a_variable_or_a_file_and_never_shows(
    tmp_path: Path,
) -> None:
    url = "postgresql://penstock:a-secret-word@localhost/auth"
    assert AuthSettings.from_env({}).database_url is None
    path = tmp_path / "url"
    path.write_text(f"{url}\n")
    for given in ({"PENSTOCK_DATABASE_URL": url}, {"PENSTOCK_DATABASE_URL_FILE": str(path)}):
        settings = AuthSettings.from_env(given)
        assert settings.database_url is not None
        assert "a-secret-word" in settings.database_url.reveal()
        assert "a-secret-word" not in repr(settings)
    with pytest.raises(ConfigurationError, match="not both"):
        AuthSettings.from_env(
            {"PENSTOCK_DATABASE_URL": url, "PENSTOCK_DATABASE_URL_FILE": str(path)}
        )
    path.write_text("mysql://penstock:a-secret-word@localhost/auth")
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATABASE_URL_FILE must be") as caught:
        AuthSettings.from_env({"PENSTOCK_DATABASE_URL_FILE": str(path)})
    assert "a-secret-word" not in caught.value.message


def test_old_rows_are_kept_as_long_as_the_settings_say(tmp_path: Path) -> None:
    given = {"PENSTOCK_LEDGER_RETENTION_DAYS": "7", "PENSTOCK_AUDIT_RETENTION_DAYS": "365"}
    retention = AuthSettings.from_env(given).retention
    assert (retention.ledger_days, retention.audit_days) == (7, 365)
    settings = AuthSettings.from_env({"PENSTOCK_DATA_DIR": str(tmp_path)})
    assert (settings.retention.ledger_days, settings.retention.audit_days) == (90, 0)
    assert settings.audit_key_file == tmp_path / "audit.key"
