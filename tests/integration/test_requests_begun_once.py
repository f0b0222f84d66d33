"""An `Idempotency-Key` holds for each POST that makes something, at all gateways of a store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.errors import StoreUnavailableError
from gateway.http.access import stored_claims
from gateway.storage.conversations import OWNER_DEAD_MS
from gateway.storage.kept_answers import AnswerStore
from gateway.storage.open_store import FILE_NAME
from protocol.wire.messages import Authorize, Generate
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

pytestmark = pytest.mark.asyncio

CHAT = {"model": "demo", "messages": MESSAGES}
BATCH = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
ITEM = {"type": "message", "role": "user", "content": "hi"}
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}'


@asynccontextmanager
async def two_gateways(
    directory: Path, **changes: Any
) -> AsyncIterator[tuple[RunningGateway, RunningGateway]]:
    """Gateways of one data folder, each with an auth worker of its own."""
    shared = {"data_dir": directory / "data", "share_data_dir": True, **changes}
    for name in ("one", "two"):
        (directory / name).mkdir()
    async with (
        running_gateway(directory / "one", **shared) as one,
        running_gateway(directory / "two", **shared) as two,
    ):
        for gateway in (one, two):
            await gateway.auth()
        yield one, two


async def post(
    gateway: RunningGateway, path: str, body: Any, key: str | None = "key-1", **headers: str
) -> httpx.Response:
    named = headers if key is None else {"Idempotency-Key": key, **headers}
    return await gateway.client.post(path, json=body, headers=named)


async def upload(
    gateway: RunningGateway, content: bytes, key: str | None = "key-1", boundary: str = "one"
) -> httpx.Response:
    parts = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    )
    body = parts.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if key is not None:
        headers["Idempotency-Key"] = key
    return await gateway.client.post("/v1/files", content=body, headers=headers)


async def listed(gateway: RunningGateway, path: str) -> list[str]:
    return [one["id"] for one in (await gateway.client.get(path)).json()["data"]]


def die(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a gateway writes no end of a request, and says no more that it lives."""
    store = gateway.application.store
    assert store is not None

    async def lost(*_: Any) -> bool:
        return True

    async def silent() -> set[str]:
        return set()

    monkeypatch.setattr(store.answers, "end", lost)
    monkeypatch.setattr(store.jobs, "beat", silent)


def forget(gateway: RunningGateway) -> None:
    """What a gateway knows of answers is gone with its process."""
    table = gateway.application.parts.replays
    table._kept.clear()
    table._of_tenant.clear()
    table._running.clear()


async def is_taken_for_dead(gateway: RunningGateway) -> None:
    """The others haven't heard of it for long."""
    store = gateway.application.store
    assert store is not None
    long_ago = store._now_ms() - OWNER_DEAD_MS - 1
    await store._database.run(
        lambda connection: connection.execute(
            "UPDATE owners SET alive_ms = ? WHERE id = ?", (long_ago, gateway.gateway_id)
        )
    )


@pytest.mark.parametrize("place", ["one data folder", "postgres"])
async def test_a_generation_that_is_repeated_at_another_gateway_is_charged_once(
    socket_dir: Path, place: str, request: pytest.FixtureRequest
) -> None:
    changes: dict[str, Any] = {}
    if place == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        changes["store_url"] = server.url(server.new_database())
    async with two_gateways(socket_dir, **changes) as (one, two):
        engine, other = await one.engine(), await two.engine()
        first = await post(one, "/v1/chat/completions", CHAT)
        again = await post(two, "/v1/chat/completions", CHAT)
        assert (first.status_code, again.status_code) == (200, 200), again.text
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert (len(engine.of(Generate)), len(other.of(Generate))) == (1, 0)
        assert two.application.parts.replays.num_replayed == 1
        reused = await post(two, "/v1/chat/completions", CHAT | {"seed": 1})
        assert reused.status_code == 422
        assert (await post(two, "/v1/chat/completions", CHAT, "key-2")).status_code == 200
        # A restart forgets what is in memory only.
        forget(one)
        assert (await post(one, "/v1/chat/completions", CHAT)).content == first.content
        assert len(engine.of(Generate)) == 1


async def test_a_repetition_elsewhere_is_judged_by_all_that_was_asked_for(
    socket_dir: Path,
) -> None:
    async with two_gateways(socket_dir) as (one, two):
        await one.engine()
        await two.engine()
        await post(one, "/v1/chat/completions", CHAT | {"max_tokens": 7})
        assert (await post(two, "/v1/chat/completions", CHAT | {"max_tokens": 7})).is_success
        auth: Any = two.workers[0]
        judged = auth.of(Authorize)[-1]
        assert (judged.model, judged.asked_tokens, judged.is_metered) == ("demo", 7, False)
        auth.denied_models = {"demo"}
        refused = await post(two, "/v1/chat/completions", CHAT | {"max_tokens": 7})
        assert refused.status_code == 403


async def test_while_one_gateway_answers_a_request_another_says_so(socket_dir: Path) -> None:
    async with two_gateways(socket_dir) as (one, two):
        engine: FakeEngine = await one.engine(text=None)
        await two.engine()
        running = asyncio.ensure_future(post(one, "/v1/chat/completions", CHAT))
        await engine.until(lambda: bool(engine.of(Generate)))
        conflict = await post(two, "/v1/chat/completions", CHAT)
        assert conflict.status_code == 409
        assert conflict.json()["error"]["code"] == "request_in_progress"
        assert conflict.headers["retry-after"] == "1"
        assert (await post(two, "/v1/chat/completions", CHAT | {"seed": 1})).status_code == 422
        (generate,) = engine.of(Generate)
        engine.emit(generate, "hi")
        engine.finish(generate)
        assert (await running).status_code == 200
        assert (await post(two, "/v1/chat/completions", CHAT)).content == (await running).content


async def test_a_gateway_that_died_with_a_request_does_not_hold_its_key(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_gateways(socket_dir) as (one, two):
        await one.engine()
        other = await two.engine()
        die(one, monkeypatch)
        lost = await post(one, "/v1/chat/completions", CHAT)
        assert (await post(two, "/v1/chat/completions", CHAT)).status_code == 409
        await is_taken_for_dead(one)
        again = await post(two, "/v1/chat/completions", CHAT)
        assert again.status_code == 200
        assert again.content != lost.content
        assert len(other.of(Generate)) == 1


async def test_a_gateway_that_was_overtaken_keeps_no_answer_of_its_own(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_gateways(socket_dir) as (one, two):
        engine: FakeEngine = await one.engine(text=None)
        await two.engine()
        store = one.application.store
        assert store is not None

        async def silent() -> set[str]:
            return set()

        monkeypatch.setattr(store.jobs, "beat", silent)
        running = asyncio.ensure_future(post(one, "/v1/chat/completions", CHAT))
        await engine.until(lambda: bool(engine.of(Generate)))
        await is_taken_for_dead(one)
        kept = await post(two, "/v1/chat/completions", CHAT)
        (generate,) = engine.of(Generate)
        engine.emit(generate, "late")
        engine.finish(generate)
        assert (await running).status_code == 200
        for gateway in (one, two):
            assert (await post(gateway, "/v1/chat/completions", CHAT)).content == kept.content


async def test_a_failure_leaves_the_key_free_at_every_gateway(socket_dir: Path) -> None:
    async with two_gateways(socket_dir) as (one, two):
        await two.engine()
        assert (await post(one, "/v1/chat/completions", CHAT | {"top_p": 9})).status_code == 400
        assert (await post(one, "/v1/chat/completions", CHAT)).status_code in (404, 503)
        assert (await post(two, "/v1/chat/completions", CHAT)).status_code == 200


async def test_the_store_holds_no_word_of_a_request_or_its_answer(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        asked = {"model": "demo", "messages": [{"role": "user", "content": "a-word-of-mine"}]}
        answer = await post(gateway, "/v1/chat/completions", asked, "a-key-of-mine")
        told = answer.json()["choices"][0]["message"]["content"].encode()
        forget(gateway)
        again = await post(gateway, "/v1/chat/completions", asked, "a-key-of-mine")
        assert again.content == answer.content
        data = gateway.application.settings.data_dir
        held = b"".join(path.read_bytes() for path in data.glob(f"{FILE_NAME}*"))
        assert b"kept_answers" in held
        for word in (b"a-word-of-mine", b"a-key-of-mine", told):
            assert word not in held


Make = Callable[[RunningGateway, str | None], Any]


async def _batch(gateway: RunningGateway, key: str | None) -> httpx.Response:
    files = await listed(gateway, "/v1/files")
    file_id = files[0] if files else (await upload(gateway, LINE, None)).json()["id"]
    return await post(gateway, "/v1/batches", BATCH | {"input_file_id": file_id}, key)


async def _file(gateway: RunningGateway, key: str | None) -> httpx.Response:
    return await upload(gateway, b"{}\n" * 1000, key)


async def _conversation(gateway: RunningGateway, key: str | None) -> httpx.Response:
    return await post(gateway, "/v1/conversations", {"items": [ITEM]}, key)


CONVERSATION: list[str] = []
"""The one that items are added to."""


async def conversation_of(gateway: RunningGateway) -> str:
    if not CONVERSATION:
        made = await post(gateway, "/v1/conversations", {}, None)
        CONVERSATION.append(made.json()["id"])
    return CONVERSATION[0]


async def _items(gateway: RunningGateway, key: str | None) -> httpx.Response:
    where = f"/v1/conversations/{await conversation_of(gateway)}/items"
    return await post(gateway, where, {"items": [ITEM]}, key)


async def _turn(gateway: RunningGateway, key: str | None) -> httpx.Response:
    name = await conversation_of(gateway)
    body = {"model": "demo", "input": "hi", "conversation": name}
    return await post(gateway, "/v1/responses", body, key)


async def _background(gateway: RunningGateway, key: str | None) -> httpx.Response:
    body = {"model": "demo", "input": "hi", "background": True}
    return await post(gateway, "/v1/responses", body, key)


@pytest.fixture(autouse=True)
def no_conversation() -> None:
    CONVERSATION.clear()


async def engines_for(make: Make, *gateways: RunningGateway) -> None:
    if make in (_background, _turn):
        for gateway in gateways:
            await gateway.parser()
            await gateway.engine(**({"text": None} if make is _background else {}))


MAKERS = [_batch, _file, _conversation, _items, _background, _turn]


@pytest.mark.parametrize("make", MAKERS)
async def test_what_a_post_makes_is_made_once_whichever_gateway_it_is_repeated_at(
    socket_dir: Path, make: Make
) -> None:
    async with two_gateways(socket_dir) as (one, two):
        await engines_for(make, one, two)
        first = await make(one, "key-1")
        again = await make(two, "key-1")
        assert (first.status_code, again.status_code) == (200, 200), again.text
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert (await make(one, "key-2")).content != first.content
        assert (await make(one, None)).content != first.content
        if make is _batch:
            assert len(await listed(one, "/v1/batches")) == 3


@pytest.mark.parametrize("make", MAKERS)
async def test_what_a_gateway_made_before_it_died_is_not_made_again(
    socket_dir: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_gateways(socket_dir) as (one, two):
        await engines_for(make, one, two)
        die(one, monkeypatch)
        first = await make(one, "key-1")
        assert first.status_code == 200
        await is_taken_for_dead(one)
        again = await make(two, "key-1")
        assert again.status_code == 200
        assert "idempotent-replayed" not in again.headers
        if make is _items:
            where = f"/v1/conversations/{CONVERSATION[0]}/items"
            assert len(await listed(two, where)) == 1
        else:
            assert again.json()["id"] == first.json()["id"]
        if make is _turn:
            where = f"/v1/conversations/{CONVERSATION[0]}/items"
            assert len(await listed(two, where)) == 2
        if make in (_batch, _file):
            where = "/v1/batches" if make is _batch else "/v1/files"
            assert await listed(two, where) == [first.json()["id"]]


async def test_a_file_is_the_same_whatever_divides_its_form(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await upload(gateway, b"{}\n" * 200_000)
        again = await upload(gateway, b"{}\n" * 200_000, boundary="another")
        assert (again.status_code, again.content) == (200, first.content)
        other = await upload(gateway, b"{}\n" * 200_001)
        assert other.status_code == 422
        assert await listed(gateway, "/v1/files") == [first.json()["id"]]
        folder = gateway.application.settings.data_dir / "files"
        assert len([path for path in folder.rglob("*") if path.is_file()]) <= 2


@pytest.mark.parametrize("make", [_batch, _file])
async def test_a_gateway_without_a_store_keeps_answers_in_memory(
    socket_dir: Path, make: Make
) -> None:
    async with running_gateway(socket_dir, store_url="none") as gateway:
        await gateway.auth()
        first, again = await make(gateway, "key-1"), await make(gateway, "key-1")
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        forget(gateway)
        assert (await make(gateway, "key-1")).content != first.content


async def test_a_repetition_counts_as_no_request(socket_dir: Path) -> None:
    async with two_gateways(socket_dir) as (one, two):
        first = await _conversation(one, "key-1")
        for gateway in (one, two, one):
            assert (await _conversation(gateway, "key-1")).content == first.content
        counted = [
            one
            for gateway in (one, two)
            for worker in gateway.workers
            for one in worker.of(Authorize)
            if one.is_metered
        ]
        assert len(counted) == 1
        await _conversation(one, None)
        auth: Any = one.workers[0]
        assert [command.is_metered for command in auth.of(Authorize)][-1] is True


async def test_a_store_that_is_away_refuses_only_requests_with_a_key(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()

        async def away(*_: Any) -> None:
            raise StoreUnavailableError("gone")

        store = gateway.application.store
        assert store is not None
        with monkeypatch.context() as patched:
            patched.setattr(store.answers, "claim", away)
            assert (await post(gateway, "/v1/chat/completions", CHAT)).status_code == 503
            assert (await post(gateway, "/v1/chat/completions", CHAT, None)).status_code == 200
        assert len(engine.of(Generate)) == 1
        assert (await post(gateway, "/v1/chat/completions", CHAT)).status_code == 200


async def test_an_answer_waits_for_no_store_that_hangs(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_claims, "END_PATIENCE_S", 0.01)
    goes_on = asyncio.Event()
    end = AnswerStore.end

    async def hanging(*given: Any) -> bool:
        await goes_on.wait()
        return await end(*given)

    monkeypatch.setattr(AnswerStore, "end", hanging)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        first = await post(gateway, "/v1/chat/completions", CHAT)
        assert first.status_code == 200
        goes_on.set()
        await gateway.until(lambda: not stored_claims._ending)
        forget(gateway)
        assert (await post(gateway, "/v1/chat/completions", CHAT)).content == first.content
