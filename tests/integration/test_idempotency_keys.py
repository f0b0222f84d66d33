"""`Idempotency-Key` over HTTP: the same request is answered once, also when its client left."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs

from gateway.request.idempotency.sealing import seal, unseal
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Generate, Granted, MakeKey, Message
from tests.fakes.auth_process import auth_process
from tests.fakes.fake_workers import FakeAuth, FakeEngine, key_digest
from tests.fakes.raw_http import connected, post
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

CHAT = {"model": "demo", "messages": MESSAGES}


async def chat(
    gateway: RunningGateway, key: str | None, path: str = "/v1/chat/completions", **fields: Any
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await gateway.client.post(path, json={**CHAT, **fields}, headers=headers)


async def harness(gateway: RunningGateway, **options: Any) -> tuple[FakeAuth, FakeEngine]:
    return await gateway.auth(), await gateway.engine(**options)


async def test_a_repeated_request_gets_the_first_answer_and_costs_nothing(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, engine = await harness(gateway)
        first = await chat(gateway, "key-1")
        again = await chat(gateway, "key-1")
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["x-penstock-request-id"] != first.headers["x-penstock-request-id"]
        assert "idempotent-replayed" not in first.headers
        assert len(engine.of(Generate)) == 1
        await gateway.until(lambda: len(auth.settled()) == 1)
        other = await chat(gateway, "key-2")
        without = await chat(gateway, None)
        assert len({first.json()["id"], other.json()["id"], without.json()["id"]}) == 3
        assert len(engine.of(Generate)) == 3


async def test_the_same_key_for_something_else_is_a_422(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await harness(gateway)
        assert (await chat(gateway, "key-1")).status_code == 200
        reused = await chat(gateway, "key-1", temperature=0.5)
        assert reused.status_code == 422
        error = reused.json()["error"]
        assert (error["code"], error["type"], error["param"]) == (
            "idempotency_key_reused",
            "idempotency_error",
            "Idempotency-Key",
        )
        # A key names a request of one route.
        body = {"model": "demo", "prompt": "x"}
        headers = {"Idempotency-Key": "key-1"}
        other = await gateway.client.post("/v1/completions", json=body, headers=headers)
        assert other.status_code == 200


async def test_while_a_request_runs_its_repetition_is_a_409_and_then_gets_its_answer(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        _, engine = await harness(gateway, text=None)
        running = asyncio.ensure_future(chat(gateway, "key-1"))
        await engine.until(lambda: bool(engine.of(Generate)))
        conflict = await chat(gateway, "key-1")
        assert conflict.status_code == 409
        assert conflict.json()["error"]["code"] == "request_in_progress"
        assert conflict.headers["retry-after"] == "1"
        (generate,) = engine.of(Generate)
        engine.emit(generate, "hi")
        engine.finish(generate)
        assert (await running).status_code == 200
        assert (await chat(gateway, "key-1")).content == (await running).content


async def test_who_leaves_and_comes_back_gets_the_answer(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, engine = await harness(gateway, text=None)
        body = json.dumps(CHAT).encode()
        async with connected(gateway) as raw:
            raw.writer.write(post(body, b"Idempotency-Key: key-1\r\n"))
            await engine.until(lambda: bool(engine.of(Generate)))
        await gateway.until(lambda: gateway.application.parts.replays._running)
        (generate,) = engine.of(Generate)
        engine.emit(generate, "hello again")
        engine.finish(generate)
        await gateway.until(lambda: len(auth.settled()) == 1)
        assert auth.settled()[0].outcome == "finished"
        # It is settled before its answer is kept, and until then a repetition is a 409.
        await gateway.until(lambda: not gateway.application.parts.replays._running)
        response = await gateway.client.post(
            "/v1/chat/completions",
            content=body,
            headers={"Idempotency-Key": "key-1", "Content-Type": "application/json"},
        )
        assert response.json()["choices"][0]["message"]["content"] == "hello again"
        assert response.headers["idempotent-replayed"] == "true"


async def test_a_failure_is_not_kept(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await harness(gateway)
        assert (await chat(gateway, "key-1", temperature=99)).status_code == 400
        assert (await chat(gateway, "key-1", model="none")).status_code == 404
        assert (await chat(gateway, "key-1")).status_code == 200


async def test_a_stream_with_a_key_is_refused_by_name(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        _, engine = await harness(gateway)
        response = await chat(gateway, "key-1", stream=True)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "Idempotency-Key")
        assert engine.of(Generate) == []
        assert (await chat(gateway, None, stream=True)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("Idempotency-Key", "")],
        [("Idempotency-Key", "x" * 256)],
        [("Idempotency-Key", "é")],
        [("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
    ],
)
async def test_what_is_no_key_is_a_400(socket_dir: Path, headers: list[tuple[str, str]]) -> None:
    async with running_gateway(socket_dir) as gateway:
        await harness(gateway)
        raw = [(name.encode(), value.encode()) for name, value in headers]
        response = await gateway.client.post("/v1/chat/completions", json=CHAT, headers=raw)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "Idempotency-Key"


async def test_a_key_that_was_revoked_gets_no_kept_answer(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-a",)
        await gateway.engine()
        gateway.client.headers["X-API-Key"] = "psk-a"
        assert (await chat(gateway, "key-1")).status_code == 200
        auth.good_keys = ()
        assert (await chat(gateway, "key-1")).status_code == 401


async def test_a_repetition_is_judged_by_the_model_and_by_all_else_that_was_asked_for(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-a", "psk-b")
        await gateway.engine()

        async def ask(key: str) -> httpx.Response:
            return await gateway.client.post(
                "/v1/chat/completions",
                json={**CHAT, "max_tokens": 7},
                headers={"X-API-Key": key, "Idempotency-Key": "key-1"},
            )

        assert (await ask("psk-a")).status_code == 200
        first = auth.of(Authorize)[-1]
        assert (await ask("psk-b")).headers["idempotent-replayed"] == "true"
        again = auth.of(Authorize)[-1]
        assert again.key_digest == key_digest("psk-b")
        for name in ("model", "endpoint", "scope", "asked_tokens", "uses_tools", "is_streaming"):
            assert getattr(again, name) == getattr(first, name), name
        assert (again.model, again.asked_tokens) == ("demo", 7)
        assert (again.prompt_tokens, again.completion_tokens, again.is_metered) == (0, 0, False)
        authorize = auth._authorize

        def not_this_model(command: Authorize) -> None:
            auth.denial = ErrorCode.PERMISSION_DENIED if command.model == "demo" else None
            authorize(command)

        auth._authorize = not_this_model  # type: ignore[method-assign]
        assert (await ask("psk-b")).status_code == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "demo", "prompt": "x"}),
        ("/v1/responses", {"model": "demo", "input": "x"}),
        ("/v1/messages", {"model": "demo", "messages": MESSAGES, "max_tokens": 5}),
        ("/tokenize", {"model": "demo", "prompt": "x"}),
    ],
)
async def test_every_route_that_generates_honours_a_key(
    socket_dir: Path, path: str, body: dict[str, Any]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await harness(gateway)
        headers = {"Idempotency-Key": "key-1"}
        first = await gateway.client.post(path, json=body, headers=headers)
        again = await gateway.client.post(path, json=body, headers=headers)
        assert (first.status_code, again.content) == (200, first.content), first.text
        assert again.headers["idempotent-replayed"] == "true"


async def test_a_key_that_was_made_once_is_shown_again_to_who_made_it_and_to_nobody_else(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-one",)

        async def make(key: str, name: str = "ci") -> httpx.Response:
            headers = {"X-API-Key": key, "Idempotency-Key": "make-ci"}
            return await gateway.client.post("/v1/admin/keys", json={"name": name}, headers=headers)

        first, again = await make("psk-one"), await make("psk-one")
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json()
        assert again.headers["cache-control"] == "no-store"
        assert len(auth.of(MakeKey)) == 1
        assert (await make("psk-one", "other")).status_code == 422
        auth.good_keys = ()
        assert (await make("psk-one")).status_code == 401


async def test_two_administrators_of_one_tenant_do_not_share_answers(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-one", "psk-two")
        authorize = auth._authorize

        def of_two_keys(command: Authorize) -> None:
            send = auth.send

            def named(message: Message) -> None:
                if isinstance(message, Granted):
                    is_one = command.key_digest == key_digest("psk-one")
                    message = structs.replace(message, key_id="one" if is_one else "two")
                send(message)

            auth.send = named  # type: ignore[method-assign]
            authorize(command)
            auth.send = send  # type: ignore[method-assign]

        auth._authorize = of_two_keys  # type: ignore[method-assign]
        answers = [
            await gateway.client.post(
                "/v1/admin/keys",
                json={"name": "ci"},
                headers={"X-API-Key": key, "Idempotency-Key": "make-ci"},
            )
            for key in ("psk-one", "psk-two")
        ]
        assert answers[0].json()["key"] != answers[1].json()["key"]
        assert len(auth.of(MakeKey)) == 2


@pytest.mark.process
async def test_administration_is_done_once_across_restarts(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:

        def restart() -> None:
            """What a gateway knows of answers is gone with its process."""
            table = gateway.application.parts.replays
            table._kept.clear()
            table._of_tenant.clear()
            table._running.clear()

        async with auth_process(gateway) as auth, auth.admin(gateway) as admin:

            async def make(word: str, **body: Any) -> httpx.Response:
                headers = {"Idempotency-Key": word}
                return await admin.post("/v1/admin/keys", json=body, headers=headers)

            first = await make("one", name="ci")
            assert first.status_code == 201
            restart()
            again = await make("one", name="ci")
            assert (again.status_code, again.content) == (201, first.content)
            assert again.headers["idempotent-replayed"] == "true"
            assert again.headers["cache-control"] == "no-store"
            restart()
            assert (await make("one", name="other")).status_code == 422
            # What was refused began nothing.
            assert (await make("two", name="x", requests_per_minute=-1)).status_code == 400
            restart()
            assert (await make("two", name="x")).status_code == 201
            keys = (await admin.get("/v1/admin/keys")).json()["data"]
            assert sorted(key["name"] for key in keys if key["name"] in ("ci", "x")) == ["ci", "x"]
            # Another key of the same administrator's can't read it: no answer is another's.
            other = (await make("three", name="second", role="admin")).json()["key"]
            async with httpx.AsyncClient(
                base_url=gateway.client.base_url, headers={"X-API-Key": other}, timeout=30.0
            ) as second:
                theirs = await second.post(
                    "/v1/admin/keys", json={"name": "ci"}, headers={"Idempotency-Key": "one"}
                )
            assert theirs.status_code == 201
            assert theirs.json()["key"] != first.json()["key"]
            secret = first.json()["key"].encode()
        database = (auth.data_dir / "auth.sqlite3").read_bytes()
        log = auth.data_dir / "auth.sqlite3-wal"
        assert secret not in database + (log.read_bytes() if log.exists() else b"")


async def test_a_change_whose_outcome_nobody_knows_is_not_made_twice(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-one",)
        headers = {"X-API-Key": "psk-one", "Idempotency-Key": "once"}
        keys = auth._keys

        async def make() -> httpx.Response:
            return await gateway.client.post("/v1/admin/keys", json={"name": "ci"}, headers=headers)

        auth._keys = lambda command: None  # type: ignore[method-assign]
        making = asyncio.ensure_future(make())
        await auth.until(lambda: bool(auth.of(MakeKey)))
        await gateway.crash(auth)  # the command was taken, and its answer never came
        assert (await making).status_code == 503
        fresh = await gateway.auth(allow_anonymous=False)
        fresh.good_keys, fresh.kept = auth.good_keys, auth.kept
        auth._keys = keys  # type: ignore[method-assign]
        answer = await make()
        assert answer.status_code == 409
        assert "Look whether it was done" in answer.json()["error"]["message"]
        assert fresh.of(MakeKey) == []


@pytest.mark.parametrize("age_s", [None, 0.0, 59.9, 60.0])
async def test_what_may_run_at_another_gateway_is_to_be_repeated_and_what_was_lost_is_not(
    socket_dir: Path, age_s: float | None
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-one",)
        headers = {"X-API-Key": "psk-one", "Idempotency-Key": "once"}
        body = b'{"name":"ci"}'
        name = hashlib.sha256(b"key key-1\0POST /v1/admin/keys\0once").digest()
        auth.kept[name] = (hashlib.sha256(body).digest(), b"")
        auth.claim_age_s = age_s
        answer = await gateway.client.post("/v1/admin/keys", content=body, headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (409, "request_in_progress")
        may_run = age_s is not None and age_s < 60
        assert answer.headers.get("retry-after") == ("1" if may_run else None)
        assert answer.headers.get("x-should-retry") == (None if may_run else "false")
        assert ("Look whether it was done" in error["message"]) is not may_run
        assert auth.of(MakeKey) == []


def test_what_is_sealed_opens_with_its_key_alone_and_not_when_it_was_changed() -> None:
    sealed = seal(b"psk-one", b"secret" * 100)
    assert unseal(b"psk-one", sealed) == b"secret" * 100
    assert b"secret" not in sealed
    assert unseal(b"psk-two", sealed) is None
    assert seal(b"psk-one", b"secret" * 100) != sealed
    for place in (0, 20, len(sealed) - 1):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert unseal(b"psk-one", bytes(changed)) is None
    assert unseal(b"psk-one", b"") is None
