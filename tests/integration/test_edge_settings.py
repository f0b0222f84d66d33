"""How HTTP is spoken: each setting shows in what a client sees, and is off by default."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import service
from gateway.config import GatewaySettings
from gateway.http import server
from gateway.http.connections import arrival
from gateway.http.connections.limits import ConnectionLimits
from gateway.http.server import bind_socket, bind_unix_socket, remove_socket, socket_mark
from protocol.errors import ConfigurationError
from protocol.runtime import collector
from tests.fakes.raw_http import connected
from tests.fakes.running_gateway import RunningGateway, gateway_settings, running_gateway

PAGE = "https://chat.example.org"
ASKS = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
}


def cors_of(response: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name.startswith("access-control-")
    }


async def preflight(gateway: RunningGateway, **headers: str) -> httpx.Response:
    return await gateway.client.options("/v1/chat/completions", headers={**ASKS, **headers})


async def test_a_page_of_a_named_origin_may_call_the_api(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, cors_origins=(PAGE,)) as gateway:
        await gateway.auth()
        await gateway.engine()
        asked = await preflight(gateway)
        assert asked.status_code == 204
        allowed = cors_of(asked)
        assert allowed["access-control-allow-origin"] == PAGE
        assert "POST" in allowed["access-control-allow-methods"]
        assert allowed["access-control-allow-headers"] == ASKS["Access-Control-Request-Headers"]
        assert "access-control-allow-credentials" not in allowed
        body = {"model": "demo", "messages": [{"role": "user", "content": "?"}]}
        called = await gateway.client.post(
            "/v1/chat/completions", json=body, headers={"Origin": PAGE}
        )
        assert called.status_code == 200
        assert cors_of(called)["access-control-allow-origin"] == PAGE
        assert "x-request-id" in cors_of(called)["access-control-expose-headers"]
        assert "Origin" in called.headers["vary"]
        refused = await gateway.client.post(
            "/v1/chat/completions", json={}, headers={"Origin": PAGE}
        )
        assert (refused.status_code, bool(cors_of(refused))) == (400, True)


async def test_pages_of_others_are_told_nothing(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, cors_origins=(PAGE,)) as gateway:
        foreign = await preflight(gateway, Origin="https://evil.example.org")
        assert (foreign.status_code, cors_of(foreign)) == (403, {})
        odd = await preflight(gateway, **{"Access-Control-Request-Headers": "a\tb: c"})
        assert "access-control-allow-headers" not in cors_of(odd)


async def test_without_the_setting_no_page_may(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        asked = await preflight(gateway, Origin="http://localhost:3000")
        assert (asked.status_code, cors_of(asked)) == (405, {})


async def test_every_origin_may_where_keys_are_required(socket_dir: Path) -> None:
    options: dict[str, Any] = {"cors_origins": ("*",), "require_keys": True}
    async with running_gateway(socket_dir, **options) as gateway:
        await gateway.auth(allow_anonymous=False)
        assert cors_of(await preflight(gateway))["access-control-allow-origin"] == "*"
        for path in ("/v1/models", "/nowhere"):
            called = await gateway.client.get(path, headers={"Origin": PAGE})
            assert cors_of(called)["access-control-allow-origin"] == "*"
            assert "vary" not in called.headers


async def test_the_api_is_served_below_the_path_of_a_proxy(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, root_path="/llm/v2") as gateway:
        await gateway.auth()
        await gateway.engine()
        for path in ("/v1/models", "/llm/v2/v1/models", "/llm/v2/v1/models/demo", "/llm/v2/live"):
            assert (await gateway.client.get(path)).status_code == 200, path
        for path in ("/llm/v2", "/llm/v2x/live", "/x/llm/v2/live"):
            assert (await gateway.client.get(path)).status_code == 404, path
        document = (await gateway.client.get("/llm/v2/openapi.json")).json()
        assert document["servers"] == [{"url": "/llm/v2"}]
        assert "/llm/v2/openapi.json" in (await gateway.client.get("/docs")).text


async def test_header_and_title_are_settings(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        plain = await gateway.client.get("/openapi.json")
        assert "server" not in plain.headers
        assert plain.json()["info"]["title"] == "Penstock"
        assert "servers" not in plain.json()
    named = {"server_header": "house/1", "api_title": "Our <models>"}
    async with running_gateway(socket_dir, **named) as gateway:
        document = await gateway.client.get("/openapi.json")
        assert document.headers["server"] == "house/1"
        assert document.json()["info"]["title"] == "Our <models>"
        assert "<title>Our &lt;models&gt;</title>" in (await gateway.client.get("/docs")).text


async def test_a_full_queue_says_what_the_operator_wants(socket_dir: Path) -> None:
    options: dict[str, Any] = {"overload_message": "Come back tomorrow.", "max_queue": 1}
    async with running_gateway(socket_dir, **options) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None, max_requests=1)
        asked = [asyncio.ensure_future(gateway.chat()) for _ in range(6)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        refused = next(iter(done)).result()
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == "Come back tomorrow."
        assert "retry-after" in refused.headers
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert engine is not None


async def test_a_connection_stays_open_as_long_as_the_setting_says(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, keep_alive_s=1.0) as gateway:
        url = gateway.client.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"200 OK" in head
        assert b"connection: close" not in head.lower()
        # The default is 75 s, longer than this test may take.
        async with asyncio.timeout(60):
            await reader.read()
        writer.close()


async def test_a_port_of_metrics_serves_nothing_else_and_stays_while_a_gateway_drains(
    socket_dir: Path,
) -> None:
    with bind_socket("127.0.0.1", 0, setting="PENSTOCK_METRICS_PORT") as own:
        port = own.getsockname()[1]
        async with (
            running_gateway(socket_dir, own, metrics_port=port) as gateway,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as monitor,
        ):
            await gateway.auth()
            figures = await monitor.get("/metrics")
            assert f'gateway="{gateway.gateway_id}"' in figures.text
            for path in ("/load", "/version", "/live", "/ping"):
                assert (await monitor.get(path)).status_code == 200, path
            for path in ("/v1/models", "/docs", "/metrics/x", "/"):
                refused = await monitor.get(path)
                assert refused.status_code == 404
                assert "PENSTOCK_METRICS_PORT" in refused.json()["error"]["message"]
            asked = await monitor.post("/v1/chat/completions", json={})
            assert asked.status_code == 404
            assert (await gateway.client.get("/v1/models")).status_code == 200
            await gateway.server.stop_listening()
            assert (await monitor.get("/metrics", headers={"Connection": "close"})).is_success
            assert (await monitor.get("/metrics")).is_success
            with pytest.raises(ConnectionRefusedError):
                url = gateway.client.base_url
                await asyncio.open_connection(url.host, url.port)


def test_a_port_of_metrics_that_is_taken_is_named() -> None:
    with bind_socket("127.0.0.1", 0) as own, pytest.raises(ConfigurationError) as raised:
        bind_socket("127.0.0.1", own.getsockname()[1], setting="PENSTOCK_METRICS_PORT")
    assert "PENSTOCK_METRICS_PORT" in raised.value.message


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that its own key signed, and the key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certify(cert, key)
    return cert, key


def certify(cert: Path, key: Path) -> None:
    """Make another key, and a certificate of it."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, pkcs8, plain))


async def test_https_is_served_with_a_certificate(
    socket_dir: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    options: dict[str, Any] = {"tls_cert_file": cert, "tls_key_file": key}
    async with running_gateway(socket_dir, max_body_bytes=1000, **options) as gateway:
        await gateway.auth()
        await gateway.engine()
        assert gateway.client.base_url.scheme == "https"
        assert (await gateway.chat()).status_code == 200
        streamed = await gateway.chat(stream=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        too_large = await gateway.client.post("/v1/parse", content=b"x" * 50_000)
        assert too_large.status_code == 413
        plain = f"http://127.0.0.1:{gateway.client.base_url.port}/live"
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(plain)


async def test_a_renewed_certificate_is_shown_to_the_next_connection(
    socket_dir: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    fresh_cert, fresh_key = tmp_path / "cert.new", tmp_path / "key.new"
    certify(fresh_cert, fresh_key)
    former, fresh = cert.read_text(), fresh_cert.read_text()
    options: dict[str, Any] = {"tls_cert_file": cert, "tls_key_file": key}
    async with running_gateway(socket_dir, **options) as gateway:
        address = ("127.0.0.1", gateway.client.base_url.port or 0)

        async def shown() -> str:
            return await asyncio.to_thread(ssl.get_server_certificate, address)

        assert await shown() == former
        before = (await gateway.client.get("/live")).status_code
        fresh_cert.replace(cert)
        # Until the key is there as well they don't fit each other.
        assert await shown() == former
        fresh_key.replace(key)
        assert await shown() == fresh
        cert.unlink()
        assert await shown() == fresh
        assert (before, (await gateway.client.get("/live")).status_code) == (200, 200)


async def test_connections_that_never_shake_hands_are_bounded_like_all_others(
    socket_dir: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ConnectionLimits] = []

    def limits(*args: Any) -> ConnectionLimits:
        made.append(ConnectionLimits(*args))
        return made[-1]

    monkeypatch.setattr(server, "ConnectionLimits", limits)
    cert, key = certificate
    options: dict[str, Any] = {"tls_cert_file": cert, "tls_key_file": key}
    bounds = {"max_connections": 3, "max_connections_per_address": 3}
    async with running_gateway(socket_dir, **bounds, **options) as gateway:
        async with contextlib.AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(connected(gateway)) for _ in range(6)]
            for one in silent[:3]:
                assert await one.until_closed() == b""
            assert (await gateway.client.get("/live")).status_code == 200
            # Who has shaken hands took the oldest one's place.
            assert await silent[3].until_closed() == b""
            assert len(made[0]) == 3
        # The client keeps its connection.
        await gateway.until(lambda: len(made[0]) == 1)


async def test_a_handshake_that_takes_too_long_ends(
    socket_dir: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "HANDSHAKE_TIMEOUT_S", 0.01)
    cert, key = certificate
    options: dict[str, Any] = {"tls_cert_file": cert, "tls_key_file": key}
    async with (
        running_gateway(socket_dir, **options) as gateway,
        connected(gateway) as silent,
    ):
        assert await silent.until_closed(b"\x16\x03\x01") == b""


async def test_a_unix_socket_stands_for_address_and_port(socket_dir: Path) -> None:
    path = socket_dir / "http"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with running_gateway(socket_dir, uds=path) as gateway:
        await gateway.auth()
        await gateway.engine()
        assert (await gateway.chat()).status_code == 200
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(ConfigurationError, match="PENSTOCK_UDS"):
            bind_unix_socket(path)
    with pytest.raises(ConfigurationError, match="PENSTOCK_UDS"):
        bind_unix_socket(socket_dir / "missing" / "http")


def test_the_socket_of_a_successor_is_left_alone(socket_dir: Path) -> None:
    path = socket_dir / "http"
    with bind_unix_socket(path):
        own = socket_mark(path)
    # Nobody listens any more, and the next gateway replaces the socket, maybe in the same inode.
    with bind_unix_socket(path):
        remove_socket(path, own)
        assert path.is_socket()
        successor = socket_mark(path)
        path.chmod(0o666)
        remove_socket(path, successor)
        assert not path.exists()
        remove_socket(path, successor)


@pytest.mark.parametrize("has_successor", [False, True])
async def test_a_gateway_that_ends_removes_its_own_socket_only(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, has_successor: bool
) -> None:
    path, is_serving = socket_dir / "http", asyncio.Event()
    monkeypatch.setattr(service, "write_port_file", lambda *_: is_serving.set())
    monkeypatch.setattr(collector, "settle", lambda: None)
    settings = gateway_settings(socket_dir, uds=path, port_file=socket_dir / "port")
    with contextlib.ExitStack() as opened:
        sock = opened.enter_context(bind_unix_socket(path))
        serving = asyncio.create_task(service.serve(settings, sock))
        await is_serving.wait()
        if has_successor:
            path.unlink()
            opened.enter_context(bind_unix_socket(path))
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
        assert path.exists() is has_successor


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PENSTOCK_CORS_ORIGINS": "chat.example.org"}, "origins such as"),
        ({"PENSTOCK_CORS_ORIGINS": "https://a.example.org/path"}, "origins such as"),
        ({"PENSTOCK_CORS_ORIGINS": "https://bücher.example"}, "PENSTOCK_CORS_ORIGINS.*xn--"),
        ({"PENSTOCK_CORS_ORIGINS": "https://[a"}, "PENSTOCK_CORS_ORIGINS.*origins such as"),
        ({"PENSTOCK_CORS_ORIGINS": "*"}, "every web page"),
        ({"PENSTOCK_ROOT_PATH": "llm"}, "begins with a slash"),
        ({"PENSTOCK_ROOT_PATH": "/llm/"}, "begins with a slash"),
        ({"PENSTOCK_SERVER_HEADER": "a\r\nb: c"}, "printable ASCII"),
        ({"PENSTOCK_TLS_CERT_FILE": "/none"}, "go together"),
        ({"PENSTOCK_TLS_CERT_FILE": "/none", "PENSTOCK_TLS_KEY_FILE": "/none"}, "can't be used"),
        ({"PENSTOCK_KEEP_ALIVE_S": "0"}, "PENSTOCK_KEEP_ALIVE_S"),
    ],
)
def test_a_wrong_value_names_its_setting(environment: dict[str, str], words: str) -> None:
    roles = ("ENGINE", "AUTH", "TOOLPARSER")
    base = {f"PENSTOCK_{role}_ENDPOINT": f"ipc:///nowhere/{role}" for role in roles}
    with pytest.raises(ConfigurationError, match=words):
        GatewaySettings.from_env({**base, **environment})
