"""Keys that are guessed, and keys that are smuggled past whoever reads the head of a request."""

from pathlib import Path

import pytest

from protocol.wire.messages import Authorize
from tests.fakes.fake_workers import FakeAuth
from tests.fakes.raw_http import answers, connected, error_code
from tests.fakes.running_gateway import RunningGateway, running_gateway

GOOD = "psk-good"


async def guarded(gateway: RunningGateway) -> FakeAuth:
    auth = await gateway.auth(allow_anonymous=False)
    auth.good_keys = (GOOD,)
    return auth


async def test_who_guesses_keys_gets_a_429_and_the_auth_worker_is_not_asked(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, require_keys=True, max_wrong_keys=3) as gateway:
        auth = await guarded(gateway)
        await gateway.engine()
        good = {"Authorization": f"Bearer {GOOD}"}
        assert (await gateway.client.get("/v1/models", headers=good)).status_code == 200
        statuses = []
        for number in range(8):
            wrong = {"X-API-Key": f"psk-guess-{number}"}
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
                body = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
                response = await gateway.client.request(method, path, headers=wrong, json=body)
                statuses.append(response.status_code)
        assert statuses == [401] * 6 + [429] * 10
        error = response.json()["error"]
        assert (error["code"], error["type"]) == ("too_many_wrong_keys", "rate_limit_error")
        assert 1 <= int(response.headers["retry-after"]) <= 6
        assert len(auth.of(Authorize)) == 1 + 3
        assert (await gateway.client.get("/v1/models", headers=good)).status_code == 200
        metrics = (await gateway.client.get("/metrics")).text
        assert "penstock_gateway_refused_guesses_total 10.0" in metrics
        # The auth worker hears of them with the next question from there, and once.
        for path in ("/v1/tools", "/v1/usage"):
            await gateway.client.get(path, headers=good)
        assert [asked.num_refused_guesses for asked in auth.of(Authorize)[4:]] == [10, 0, 0]


async def test_keys_that_administer_are_guarded_where_no_other_is_asked_for(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, max_wrong_keys=3) as gateway:
        auth = await gateway.auth()
        auth.good_keys = (GOOD,)

        async def status(key: str, path: str) -> int:
            return (await gateway.client.get(path, headers={"X-API-Key": key})).status_code

        guesses = [await status(f"psk-{number}", "/v1/admin/keys") for number in range(6)]
        assert guesses == [401] * 3 + [429] * 3
        auth.good_keys = None  # as auth workers do where no key is asked for
        assert await status("psk-7", "/v1/models") == 200
        assert await status("psk-8", "/v1/admin/keys") == 429


async def test_the_address_that_counts_is_the_clients_behind_a_trusted_proxy(
    socket_dir: Path,
) -> None:
    changes = {"max_wrong_keys": 1, "trusted_proxies": ("127.0.0.1/32",)}
    async with running_gateway(socket_dir, require_keys=True, **changes) as gateway:
        await guarded(gateway)

        async def status(key: str, address: str) -> int:
            headers = {"X-API-Key": key, "X-Forwarded-For": address}
            return (await gateway.client.get("/v1/models", headers=headers)).status_code

        assert await status("psk-1", "192.0.2.1") == 401
        assert await status("psk-2", "192.0.2.1") == 429
        assert await status("psk-3", "192.0.2.2") == 401


SMUGGLED = {
    "a space before the colon": (b"Authorization : Bearer psk-good\r\n", 400),
    "a folded line": (b"X-Other: a\r\n Authorization: Bearer psk-good\r\n", None),
    "an underscore": (b"X_API_Key: psk-good\r\n", 401),
    "a tab in the name": (b"X-API-Key\t: psk-good\r\n", 400),
    "a NUL in the key": (b"X-API-Key: psk-go\x00od\r\n", None),
    "a carriage return in a value": (b"X-Other: a\rX-API-Key: psk-good\r\n", None),
    "two in one header": (b"Authorization: Bearer psk-good, Bearer psk-bad\r\n", 401),
    "the second after the first": (
        b"Authorization: Bearer psk-good\r\nAuthorization: Bearer psk-bad\r\n",
        401,
    ),
    "one of each that differ": (
        b"X-API-Key: psk-good\r\nAuthorization: Bearer psk-bad\r\n",
        401,
    ),
    "another spelling of each": (b"x-api-KEY: psk-bad\r\nX-API-Key: psk-good\r\n", 401),
    "connection takes the header away": (
        b"Connection: close, authorization\r\nX-API-Key: psk-bad\r\n"
        b"Authorization: Bearer psk-good\r\n",
        401,
    ),
    "the proxy's own header": (b"Proxy-Authorization: Bearer psk-good\r\n", 401),
    "a cookie": (b"Cookie: authorization=Bearer psk-good; api_key=psk-good\r\n", 401),
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_no_key_is_smuggled_in_and_none_hides_another(socket_dir: Path, name: str) -> None:
    lines, wanted = SMUGGLED[name]
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await guarded(gateway)
        async with connected(gateway) as raw:
            head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + lines
            if b"Connection" not in lines:
                head += b"Connection: close\r\n"
            ((status, answer),) = answers(await raw.until_closed(head + b"\r\n"))
        assert status in ((400, 401) if wanted is None else (wanted,)), answer
        if status == 401:
            assert error_code(answer) == "invalid_api_key"


async def test_a_second_request_in_the_body_of_the_first_has_no_key_of_its_own(
    socket_dir: Path,
) -> None:
    """The body says by one header that it is empty and by another that it is a request."""
    inner = b"GET /v1/admin/keys HTTP/1.1\r\nHost: x\r\nX-API-Key: psk-good\r\n\r\n"
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await guarded(gateway)
        for heads in (
            b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(inner),
            b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(inner),
            b"Transfer-Encoding: identity, chunked\r\nContent-Length: 5\r\n",
        ):
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += b"X-API-Key: psk-bad\r\n" + heads + b"\r\n"
            async with connected(gateway) as raw:
                got = answers(await raw.until_closed(head + b"0\r\n\r\n" + inner))
            assert [status for status, _ in got][:1] in ([400], [401])
            assert all(status in (400, 401) for status, _ in got), got
        assert not [one for one in auth.of(Authorize) if one.endpoint == "/v1/admin/keys"]
