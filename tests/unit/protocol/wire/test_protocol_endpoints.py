"""Endpoints: what may be bound and dialled, and what names resolve to."""

import pytest

from protocol.errors import ConfigurationError
from protocol.wire.endpoints import (
    Endpoint,
    bind_endpoint,
    dial_endpoints,
    parse_endpoint,
    resolve_endpoints,
    resolve_host,
)

ENGINE = "PENSTOCK_ENGINE_ENDPOINT"


@pytest.mark.parametrize(
    "text",
    ["ipc:///run/e.sock", "tcp://127.0.0.1:5555", "tcp://[::1]:0", "tcp://localhost:*"],
)
def test_what_stays_on_this_machine_needs_no_keys(text: str) -> None:
    assert parse_endpoint(text, setting=ENGINE, secured=False).text == text


@pytest.mark.parametrize(
    "text", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://gateway:5555", "tcp://10.0.0.1:5555"]
)
def test_plaintext_beyond_loopback_is_refused_and_keygen_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{ENGINE}.*penstock keygen"):
        parse_endpoint(text, setting=ENGINE, secured=False)
    assert parse_endpoint(text, setting=ENGINE, secured=True).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://x:1",
        "tcp://x",
        "tcp://x:99999",
        "tcp://:5",
        "tcp://[nonsense]:5",
        "ipc://relative",
        "tcp://a b:5",
        "tcp://-:1",
    ],
)
def test_a_malformed_endpoint_is_refused_with_its_setting(text: str) -> None:
    with pytest.raises(ConfigurationError, match=ENGINE):
        bind_endpoint({ENGINE: text}, "engine", secured=True)


def test_a_socket_path_too_long_for_the_system_is_refused_clearly() -> None:
    path = "/" + "x" * 107
    with pytest.raises(ConfigurationError, match="108 bytes, the system allows 107"):
        parse_endpoint(f"ipc://{path}", setting=ENGINE, secured=False)
    assert parse_endpoint(f"ipc://{path[:-1]}", setting=ENGINE, secured=False).is_ipc


def test_workers_dial_a_list_but_gateways_bind_one() -> None:
    environ = {ENGINE: "ipc:///a, tcp://127.0.0.1:7"}
    dialled = dial_endpoints(environ, "engine", secured=False)
    assert [endpoint.text for endpoint in dialled] == ["ipc:///a", "tcp://127.0.0.1:7"]
    with pytest.raises(ConfigurationError, match="not a list"):
        bind_endpoint(environ, "engine", secured=False)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:0", "tcp://*:5"])
def test_what_can_only_be_bound_cannot_be_dialled(text: str) -> None:
    with pytest.raises(ConfigurationError, match="bound but not dialled"):
        dial_endpoints({ENGINE: text}, "engine", secured=True)


def test_every_address_of_a_name_is_dialled_once() -> None:
    endpoints = (
        Endpoint("ipc:///a"),
        Endpoint("tcp://gateway:5", "gateway", 5),
        Endpoint("tcp://10.0.0.1:5", "10.0.0.1", 5),
    )
    addresses = resolve_endpoints(endpoints, lambda host, port: ["10.0.0.1", "fd00::1"])
    assert addresses == ("ipc:///a", "tcp://10.0.0.1:5", "tcp://[fd00::1]:5")


def test_a_name_service_that_is_down_changes_nothing() -> None:
    def fail(_host: str, _port: int) -> list[str]:
        raise OSError("down")

    assert resolve_endpoints((Endpoint("tcp://gateway:5", "gateway", 5),), fail) is None


def test_localhost_resolves_to_one_family() -> None:
    assert resolve_host("localhost", 5) in (["127.0.0.1"], ["::1"])
