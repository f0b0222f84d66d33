"""The gateway's settings from the environment."""

from pathlib import Path

import pytest

from gateway.config import GatewaySettings
from protocol.errors import ConfigurationError

ENDPOINTS = {
    "PENSTOCK_ENGINE_ENDPOINT": "ipc:///run/e",
    "PENSTOCK_AUTH_ENDPOINT": "ipc:///run/a",
    "PENSTOCK_TOOLPARSER_ENDPOINT": "ipc:///run/p",
}


def test_on_loopback_no_key_is_required_elsewhere_one_is() -> None:
    assert not GatewaySettings.from_env(ENDPOINTS).require_keys
    assert not GatewaySettings.from_env({**ENDPOINTS, "PENSTOCK_HOST": "127.0.0.2"}).require_keys
    assert GatewaySettings.from_env({**ENDPOINTS, "PENSTOCK_HOST": "0.0.0.0"}).require_keys


def test_serving_others_without_keys_is_refused() -> None:
    environ = {**ENDPOINTS, "PENSTOCK_HOST": "0.0.0.0", "PENSTOCK_REQUIRE_KEYS": "false"}
    with pytest.raises(ConfigurationError, match="PENSTOCK_REQUIRE_KEYS"):
        GatewaySettings.from_env(environ)


def test_settings_are_read_with_their_types() -> None:
    settings = GatewaySettings.from_env(
        {
            **ENDPOINTS,
            "PENSTOCK_PORT": "0",
            "PENSTOCK_MODELS": "a, org/b",
            "PENSTOCK_MAX_BODY_BYTES": "2MiB",
            "PENSTOCK_ALLOWED_HOSTS": "Friend.example",
            "PENSTOCK_DATA_DIR": "/data",
            "PENSTOCK_STRICT_FIELDS": "yes",
            "PENSTOCK_WORKER_DEAD_S": "7.5",
        }
    )
    assert settings.port == 0
    assert settings.models == ("a", "org/b")
    assert settings.max_body_bytes == 2 * 1024 * 1024
    assert settings.allowed_hosts == ("friend.example",)
    assert settings.data_dir == Path("/data")
    assert settings.worker_dead_s == 7.5
    assert settings.strict_fields


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_PORT", "70000"),
        ("PENSTOCK_MAX_QUEUE", "0"),
        ("PENSTOCK_REQUEST_TIMEOUT_S", "nan"),
        ("PENSTOCK_LOG_LEVEL", "loud"),
        ("PENSTOCK_ENGINE_ENDPOINT", "http://x"),
        ("PENSTOCK_ENGINE_ENDPOINT", "tcp://10.0.0.1:5"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        GatewaySettings.from_env({**ENDPOINTS, name: value})
