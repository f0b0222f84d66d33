"""The command line's HTTP client: errors in the server's words, streams with an end."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from penstock.admin_options import admin_client
from penstock.api_client import ApiClient, all_pages, read_admin_key
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
    with pytest.raises(ServerError, match="ended early"):
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
    monkeypatch.delenv("PENSTOCK_ADMIN_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY_FILE", "~/secret")
    assert read_admin_key(None, tmp_path) == "psk-secret"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", b"psk-a\npsk-b"])
def test_a_file_that_holds_no_key_is_named_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "admin.key"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"admin\.key holds no key; .*--key-file") as caught:
        read_admin_key(None, tmp_path)
    assert "psk-a" not in caught.value.message


def test_a_key_file_that_may_not_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UsageError, match="Permission denied.*--key-file"):
        read_admin_key(None, tmp_path)


@pytest.mark.parametrize("key", ["two words", "psk-x\n", "psk-\u2013"])
def test_a_malformed_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(UsageError, match="PENSTOCK_API_KEY") as caught:
        ApiClient("http://server", key)
    assert key.strip() not in caught.value.message


@pytest.mark.parametrize("url", ["server:8000", "ftp://server", "http://", "", "http://[::1"])
def test_an_address_that_is_none_is_told_with_an_example(url: str) -> None:
    with pytest.raises(UsageError, match="--url is malformed.*http://127.0.0.1:8000"):
        ApiClient(url)


def test_a_password_in_the_address_is_not_shown() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    client = ApiClient("http://me:pw@server/v1", transport=httpx.MockTransport(refuse))
    with pytest.raises(ServerError, match="^http://server does not answer"):
        client.request("GET", "/ping")
    assert "pw" not in client.url


def test_an_address_with_v1_as_other_clients_want_it_works() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json={})

    client = ApiClient("http://server/v1/", transport=httpx.MockTransport(answer))
    client.request("GET", "/v1/models")
    assert seen == ["http://server/v1/models"]


def test_an_unknown_key_is_told_with_where_it_came_from(tmp_path: Path) -> None:
    reply = httpx.Response(401, json={"error": {"message": "This API key is not known."}})
    client = client_of(httpx.MockTransport(lambda _: reply))
    (tmp_path / "admin.key").write_text("psk-admin\n")
    administrators = admin_client("http://server", tmp_path / "admin.key", tmp_path)
    for names in (client.key_names, administrators.key_names):
        client.key_names = names
        with pytest.raises(ServerError, match=f"401: This API key is not known. .*{names}"):
            client.request("GET", "/v1/models")
    assert names == "PENSTOCK_ADMIN_KEY or --key-file"


def test_a_body_with_odd_bytes_of_an_argument_is_sent_as_json() -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        assert request.headers["content-type"] == "application/json"
        return httpx.Response(200, json={})

    client_of(httpx.MockTransport(answer)).request("POST", "/", {"text": "\udcff"})
    assert json.loads(seen[0]) == {"text": "\udcff"}


@pytest.mark.parametrize("body", [{}, {"data": [1]}, {"data": [{}], "has_more": True}, [], None])
def test_a_list_of_another_shape_is_one_clear_line(body: object) -> None:
    client = client_of(httpx.MockTransport(lambda _: httpx.Response(200, json=body)))
    with pytest.raises(ServerError, match="not as Penstock does"):
        for key in all_pages(client, "/keys", {}):
            with client.reading():
                key["id"]


def test_a_server_that_gives_the_same_page_for_ever_is_left() -> None:
    page = {"data": [{"id": "a b"}], "has_more": True}
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.query.decode())
        return httpx.Response(200, json=page)

    with pytest.raises(ServerError, match="not as Penstock does"):
        list(all_pages(client_of(httpx.MockTransport(answer)), "/keys", {"tag": "a&b", "x": None}))
    assert seen == ["limit=100&tag=a%26b", "limit=100&tag=a%26b&after=a+b"]


@pytest.mark.parametrize("event", ["5", "[1]", '{"error": "broken"}', '{"error": {}}', "{"])
def test_a_stream_of_another_shape_is_one_clear_line(event: str) -> None:
    with pytest.raises(ServerError):
        list(client_of(httpx.MockTransport(lambda _: sse(event, "[DONE]"))).stream_chat({}))


def test_an_answer_that_cannot_be_unpacked_is_one_clear_line() -> None:
    def garble(request: httpx.Request) -> httpx.Response:
        raise httpx.DecodingError("gzip", request=request)

    with pytest.raises(ServerError, match="does not answer .DecodingError"):
        client_of(httpx.MockTransport(garble)).request("GET", "/")


def own_certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 that its own key signed, and the key, in one file."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "penstock.test")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(private, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = folder / "own.pem"
    path.write_bytes(
        private.private_bytes(pem, pkcs8, serialization.NoEncryption()) + made.public_bytes(pem)
    )
    return path


@contextmanager
def serving_tls(certificate: Path) -> Iterator[str]:
    """The URL of a server that answers each connection with an empty object."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(reply)
            except OSError:
                plain.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_server_of_an_authority_of_ones_own_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = own_certificate(tmp_path)
    with serving_tls(certificate) as url:
        with (
            ApiClient(url) as strict,
            pytest.raises(ServerError, match="certificate that is not trusted: .*SSL_CERT_FILE"),
        ):
            strict.request("GET", "/ping")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with ApiClient(url) as trusting:
            assert trusting.request("GET", "/ping") == {}


def test_authorities_that_can_not_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match="SSL_CERT_FILE can't be read: No such file"):
        ApiClient("https://server")
