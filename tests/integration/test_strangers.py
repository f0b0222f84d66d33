"""What a client without a good key gets: refused early, and told nothing."""

from pathlib import Path

import pytest

from gateway.http.bodies import reading as bodies
from protocol.wire.messages import Authorize, Prepare
from tests.fakes.fake_workers import FakeAuth
from tests.fakes.raw_http import BODY, answers, connected, error_code, post
from tests.fakes.running_gateway import RunningGateway, running_gateway

GOOD = "psk-good"
GOOD_KEY = {"Authorization": f"Bearer {GOOD}"}
BAD_KEY = {"Authorization": "Bearer psk-made-up"}
BAD_LINE = b"Authorization: Bearer psk-made-up\r\n"
GOOD_LINE = b"Authorization: Bearer psk-good\r\nConnection: close\r\n"
NO_ANSWER_YET = 5_000_000


async def guarded_by_keys(gateway: RunningGateway) -> FakeAuth:
    auth = await gateway.auth(allow_anonymous=False)
    auth.good_keys = (GOOD,)
    return auth


async def test_a_made_up_key_is_refused_before_its_large_body_comes(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await guarded_by_keys(gateway)
        for _ in range(2):
            async with connected(gateway) as stranger:
                # Of the announced body hardly anything is sent.
                data = post(b"{", BAD_LINE, length=NO_ANSWER_YET)
                ((status, answer),) = answers(await stranger.until_closed(data))
                assert (status, error_code(answer)) == (401, "invalid_api_key")
        # The second time nobody had to be asked.
        assert len(auth.of(Authorize)) == 1


@pytest.mark.parametrize("path", ["/v1/models", "/v1/admin/keys"])
async def test_a_made_up_key_costs_the_auth_worker_one_question(
    socket_dir: Path, path: str
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await guarded_by_keys(gateway)
        for _ in range(5):
            assert (await gateway.client.get(path, headers=BAD_KEY)).status_code == 401
        assert len(auth.of(Authorize)) == 1


async def test_a_body_of_unknown_length_waits_until_its_sender_is_known(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await guarded_by_keys(gateway)
        async with connected(gateway) as stranger:
            head = post(b"", BAD_LINE).split(b"Content-Length")[0]
            data = head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
            ((status, _),) = answers(await stranger.until_closed(data))
            assert status == 401
        assert auth.of(Authorize)[0].completion_tokens == 0  # it was asked who this is, no more


async def test_who_waits_for_a_go_ahead_with_a_bad_key_never_gets_it(socket_dir: Path) -> None:
    expect = b"Expect: 100-continue\r\n"
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await guarded_by_keys(gateway)
        await gateway.engine()
        async with connected(gateway) as stranger:
            data = post(b"", expect + BAD_LINE, length=len(BODY))
            assert [status for status, _ in answers(await stranger.until_closed(data))] == [401]
        async with connected(gateway) as friend:
            friend.writer.write(post(b"", expect + GOOD_LINE, length=len(BODY)))
            assert await friend.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert [status for status, _ in answers(await friend.until_closed(BODY))] == [200]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": "nope", "prompt": "x"}),
        ("/detokenize", {"model": "nope", "tokens": [1]}),
        ("/v1/parse", {"model": "nope", "text": "x"}),
        ("/v1/parse", {"format": "nope", "text": "x"}),
        ("/v1/tools/execute", {"name": "nope"}),
        ("/v1/chat/completions", {"model": "nope", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"model": "nope", "prompt": "x"}),
        ("/v1/embeddings", {"model": "nope", "input": "x"}),
        ("/v1/completions", {"model": "secret-model", "prompt": [1] * 5000}),
        ("/v1/completions", {"model": "secret-model", "prompt": "x", "logit_bias": {"1999": 1}}),
    ],
)
async def test_strangers_do_not_learn_what_is_served(
    socket_dir: Path, path: str, body: dict[str, object]
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await guarded_by_keys(gateway)
        engine = await gateway.engine(model="secret-model")
        await gateway.parser()
        response = await gateway.client.post(path, json=body, headers=BAD_KEY)
        assert response.status_code == 401
        assert "secret-model" not in response.text
        assert engine.of(Prepare) == []


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json"])
async def test_local_routes_are_closed_to_foreign_pages_also_when_keys_are_required(
    socket_dir: Path, path: str
) -> None:
    rebound = {"Host": "evil.example"}
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await guarded_by_keys(gateway)
        client = gateway.client
        assert (await client.get(path)).status_code == 200
        assert (await client.get(path, headers=rebound)).status_code == 403
        assert (
            await client.get(path, headers={"Origin": "https://evil.example"})
        ).status_code == 403
        # A scraper behind a proxy on this machine has a name of its own, and a key.
        assert (await client.get(path, headers={**rebound, **GOOD_KEY})).status_code == 200
        assert (await client.get(path, headers={**rebound, **BAD_KEY})).status_code == 401


@pytest.mark.parametrize("path", ["/ready", "/health"])
async def test_probes_tell_nobody_which_processes_there_are(socket_dir: Path, path: str) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        await gateway.parser()
        text = (await gateway.client.get(path)).text
        assert '"role":"engine"' in text
        for worker in gateway.workers:
            assert worker.worker.instance_id not in text
        assert gateway.gateway_id not in text


async def test_thirty_two_slow_strangers_hold_up_nobody(socket_dir: Path) -> None:
    changes = {"max_bodies_per_caller": 1, "max_wrong_keys": 0}
    async with running_gateway(socket_dir, require_keys=True, **changes) as gateway:
        await guarded_by_keys(gateway)
        await gateway.engine()
        gateway.client.headers.update(GOOD_KEY)
        for number in range(32):
            async with connected(gateway) as stranger:
                line = b"Authorization: Bearer psk-made-up-%d\r\n" % number
                stranger.writer.write(post(b"{" * 1000, line, length=NO_ANSWER_YET))
                assert (await stranger.reader.readline()).startswith(b"HTTP/1.1 401")
        large = [{"role": "user", "content": "x" * 2 * bodies.SMALL_BYTES}]
        assert (await gateway.chat(messages=large)).status_code == 200
