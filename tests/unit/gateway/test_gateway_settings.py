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


def test_a_unix_socket_is_shared_by_no_gateways() -> None:
    shared = {**ENDPOINTS, "PENSTOCK_SHARE_PORT": "true"}
    assert GatewaySettings.from_env(shared).share_port
    with pytest.raises(ConfigurationError, match="PENSTOCK_SHARE_PORT"):
        GatewaySettings.from_env({**shared, "PENSTOCK_UDS": "/run/penstock.sock"})


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


def test_a_stranger_is_bounded_and_no_proxy_believed_by_default() -> None:
    settings = GatewaySettings.from_env(ENDPOINTS)
    assert settings.trusted_proxies == ()
    assert (settings.max_connections, settings.max_connections_per_address) == (0, 0)
    assert settings.max_answer_bytes == 32 * 1024 * 1024
    assert settings.max_bodies_per_caller == 8
    assert settings.access_log


def test_trusted_proxies_are_addresses_and_networks() -> None:
    environ = {**ENDPOINTS, "PENSTOCK_TRUSTED_PROXIES": "10.0.0.7, fd00::/8, 172.16.0.0/12"}
    proxies = GatewaySettings.from_env(environ).trusted_proxies
    assert proxies == ("10.0.0.7/32", "fd00::/8", "172.16.0.0/12")


@pytest.mark.parametrize("word", ["proxy.example", "10.0.0.0/33", "10.0.0.1/8", "*"])
def test_a_proxy_that_is_no_network_is_named(word: str) -> None:
    environ = {**ENDPOINTS, "PENSTOCK_TRUSTED_PROXIES": f"127.0.0.1,{word}"}
    with pytest.raises(ConfigurationError) as caught:
        GatewaySettings.from_env(environ)
    assert caught.value.message == (
        f"PENSTOCK_TRUSTED_PROXIES must be addresses and networks such as 10.0.0.0/8, not {word!r}."
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_MAX_CONNECTIONS", "-1"),
        ("PENSTOCK_MAX_CONNECTIONS_PER_ADDRESS", "few"),
        ("PENSTOCK_MAX_ANSWER_BYTES", "1"),
        ("PENSTOCK_MAX_BODIES_PER_CALLER", "0"),
        ("PENSTOCK_ACCESS_LOG", "perhaps"),
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


def test_mcp_servers_have_labels_and_urls() -> None:
    servers = "a=https://a.example/mcp, b=http://10.0.0.1:9000/x?y=z"
    settings = GatewaySettings.from_env({**ENDPOINTS, "PENSTOCK_MCP_SERVERS": servers})
    assert settings.mcp_urls == {
        "a": "https://a.example/mcp",
        "b": "http://10.0.0.1:9000/x?y=z",
    }


@pytest.mark.parametrize(
    "server",
    [
        "https://a.example/mcp",
        "a=file:///etc/passwd",
        "a=https://user:secret@a.example/mcp",
        "a=https://a.example/mcp#x",
        "a=https:///mcp",
        "a=https://a.example:port/mcp",
        "1=https://a.example/mcp",
        "penstock=https://a.example/mcp",
    ],
)
def test_mcp_servers_that_are_none_are_refused(server: str) -> None:
    with pytest.raises(ConfigurationError, match="PENSTOCK_MCP_SERVERS"):
        GatewaySettings.from_env({**ENDPOINTS, "PENSTOCK_MCP_SERVERS": server})
