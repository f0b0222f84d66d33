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
