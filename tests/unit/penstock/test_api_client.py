"""The command line's HTTP client: errors in the server's words, streams with an end."""

import json
from pathlib import Path

import httpx
import pytest

from penstock.api_client import ApiClient, read_admin_key
from penstock.errors import ServerError, UsageError


def client_of(handler: httpx.MockTransport) -> ApiClient:
    return ApiClient("http://server", "psk-test", transport=handler)


def sse(*events: object) -> httpx.Response:
    lines = [f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events]
    return httpx.Response(200, text="".join(lines))


def test_an_error_body_becomes_the_error_message() -> None:
    body = {"error": {"message": "No such model.", "type": "x", "param": None, "code": None}}
    client = client_of(httpx.MockTransport(lambda _: httpx.Response(404, json=body)))
    with pytest.raises(ServerError, match=r"404: No such model\."):
        client.request("GET", "/v1/models/x")


def test_an_error_body_that_is_not_ours_is_shown_too() -> None:
    client = client_of(httpx.MockTransport(lambda _: httpx.Response(502, text="bad gateway")))
    with pytest.raises(ServerError, match="502: bad gateway"):
        client.request("GET", "/")


def test_a_server_that_is_away_is_named_with_a_way_out() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ServerError, match="http://server does not answer.*penstock serve"):
        client_of(httpx.MockTransport(refuse)).request("GET", "/")


def test_a_server_that_is_no_penstock_is_one_clear_line() -> None:
    client = client_of(httpx.MockTransport(lambda _: httpx.Response(200, text="<html>")))
    with pytest.raises(ServerError, match="http://server answers, but not as Penstock does"):
        client.request("GET", "/ping")


def test_a_malformed_url_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--url is malformed"):
        ApiClient("http://host:port")


def test_the_key_travels_as_a_bearer_token() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={})

    client_of(httpx.MockTransport(answer)).request("GET", "/")
    assert seen == ["Bearer psk-test"]


def test_a_stream_yields_its_chunks_up_to_done() -> None:
    client = client_of(httpx.MockTransport(lambda _: sse({"a": 1}, {"a": 2}, "[DONE]")))
    assert list(client.stream_chat({})) == [{"a": 1}, {"a": 2}]


def test_a_stream_that_ends_with_an_error_raises_it() -> None:
    events = ({"a": 1}, {"error": {"message": "The engine died."}}, "[DONE]")
    client = client_of(httpx.MockTransport(lambda _: sse(*events)))
    with pytest.raises(ServerError, match=r"The engine died\."):
        list(client.stream_chat({}))


def test_a_stream_without_done_is_an_error() -> None:
    client = client_of(httpx.MockTransport(lambda _: sse({"a": 1})))
    with pytest.raises(ServerError, match="broke off"):
        list(client.stream_chat({}))


def test_the_admin_key_comes_from_environment_then_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="No admin key"):
        read_admin_key(None, tmp_path)
    (tmp_path / "admin.key").write_text("psk-file\n", encoding="utf-8")
    assert read_admin_key(None, tmp_path) == "psk-file"
    (tmp_path / "secret").write_text("psk-secret\n", encoding="utf-8")
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY_FILE", str(tmp_path / "secret"))
    assert read_admin_key(None, tmp_path) == "psk-secret"
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "psk-environment")
    assert read_admin_key(None, tmp_path) == "psk-environment"
    assert read_admin_key(tmp_path / "admin.key", tmp_path) == "psk-file"
