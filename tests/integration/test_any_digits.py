"""Numbers and texts of any length, wherever a client can put one: never a 5xx or a traceback."""

import logging
from pathlib import Path

import pytest

from tests.fakes.raw_http import LIVE, answers, connected, post
from tests.fakes.running_gateway import running_gateway

MANY = b"9" * 5000
END = b"Connection: close\r\n\r\n"
GET = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer psk-a\r\n"
    b"Connection: close\r\n\r\n"
)

HEADS = {
    "content_length": post(b"", b"").split(b"Content-Length")[0] + b"Content-Length: %b\r\n" % MANY,
    "signed_content_length": post(b"").split(b"Content-Length")[0] + b"Content-Length: -5\r\n",
    "other_digits": post(b"").split(b"Content-Length")[0] + "Content-Length: ٣\r\n".encode(),
    "request_id": LIVE + b"X-Request-ID: %b\r\n" % MANY,
    "range": LIVE + b"Range: bytes=%b-\r\n" % MANY,
    "port_of_the_host": b"GET /live HTTP/1.1\r\nHost: localhost:%b\r\n" % MANY,
    "port_of_the_origin": LIVE + b"Origin: http://localhost:%b\r\n" % MANY,
    "broken_host": b"GET /live HTTP/1.1\r\nHost: [::1\r\n",
    "keep_alive": LIVE + b"Keep-Alive: timeout=%b\r\n" % MANY,
    "key": LIVE + b"Authorization: Bearer %b\r\n" % MANY,
    "scheme_of_the_key": LIVE + b"Authorization: %b\r\n" % MANY,
    "bytes_of_the_key": LIVE + b"Authorization: Bearer \xff\xfe\r\n",
    "forwarded_for": LIVE + b"X-Forwarded-For: %b\r\n" % MANY,
    "method": b"%b /live HTTP/1.1\r\nHost: localhost\r\n" % MANY,
    "version": b"GET /live HTTP/%b\r\nHost: localhost\r\n" % MANY,
}
TARGETS = {
    "limit": b"/v1/admin/keys?limit=%b" % MANY,
    "signed_limit": b"/v1/admin/keys?limit=-%b" % MANY,
    "other_digits": b"/v1/admin/keys?limit=%D9%A3",
    "after": b"/v1/admin/keys?after=%b" % MANY,
    "query": b"/live?%b=%b" % (MANY, MANY),
    "many_fields": b"/v1/admin/keys?" + b"a=1&" * 5000,
    "model": b"/v1/models/%b" % MANY,
    "path": b"/%b" % MANY,
    "escapes": b"/v1/models/%ff%00%2e%2e%2f",
    "metrics": b"/metrics?name[]=%b" % MANY,
}
BODIES = {
    "number": b'{"model":"demo","prompt":"x","max_tokens":%b}' % MANY,
    "fraction": b'{"model":"demo","prompt":"x","temperature":0.%b}' % MANY,
    "exponent": b'{"model":"demo","prompt":"x","temperature":1e%b}' % MANY,
    "seed": b'{"model":"demo","prompt":"x","seed":-%b}' % MANY,
    "token": b'{"model":"demo","prompt":[%b]}' % MANY,
    "bias": b'{"model":"demo","prompt":"x","logit_bias":{"%b":1}}' % MANY,
    "stop_token": b'{"model":"demo","prompt":"x","stop_token_ids":[%b]}' % MANY,
    "name": b'{"model":"%b","prompt":"x"}' % MANY,
    "field": b'{"model":"demo","prompt":"x","%b":1}' % MANY,
    "depth": b'{"model":"demo","prompt":"x","metadata":%b}' % (b"[" * 50_000),
    "surrogate": b'{"model":"demo","prompt":"\\ud800"}',
    "bytes": b'{"model":"demo","prompt":"\xff"}',
}


async def assert_refused_in_order(
    socket_dir: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        with caplog.at_level(logging.WARNING):
            async with connected(gateway) as connection:
                found = answers(await connection.until_closed(data))
            assert found
            assert all(status < 500 for status, _ in found), found
            assert all(len(answer) < 100_000 for _, answer in found)
            assert not [one for one in caplog.records if one.exc_info]
        assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize("head", HEADS)
async def test_headers_may_hold_anything(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    await assert_refused_in_order(socket_dir, HEADS[head] + END, caplog)


@pytest.mark.parametrize("target", TARGETS)
async def test_paths_and_queries_may_hold_anything(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    await assert_refused_in_order(socket_dir, GET % TARGETS[target], caplog)


@pytest.mark.parametrize("body", BODIES)
async def test_bodies_may_hold_anything(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    data = post(BODIES[body], b"Connection: close\r\n", path="/v1/completions")
    await assert_refused_in_order(socket_dir, data, caplog)


@pytest.mark.parametrize("line", [b"GET /nothing", b"PUT /live", b"POST /v1/models"])
async def test_what_is_not_there_is_refused_in_order_under_any_host(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        for host in (b"[::1", b"localhost:%b" % MANY, b"", b"a/b?c#d", b"\xff"):
            async with connected(gateway) as connection:
                data = line + b" HTTP/1.1\r\nHost: %b\r\n" % host + END
                ((status, _),) = answers(await connection.until_closed(data))
                assert status in (404, 405)
        assert not [one for one in caplog.records if one.exc_info]


async def test_ids_of_keys_may_be_of_any_length(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = (GET % (b"/v1/admin/keys/%b/revoke" % MANY)).replace(b"GET", b"DELETE", 1)
    await assert_refused_in_order(socket_dir, data, caplog)
