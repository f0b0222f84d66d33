"""Conversations: items in order, one writer at a time, and nobody else's to see."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import connect

from gateway.storage import conversations
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Failure, Generate, Prepare
from tests.fakes.fake_workers import FakeAuth, FakeEngine
from tests.fakes.running_gateway import RunningGateway, running_gateway

pytestmark = pytest.mark.asyncio
HI = {"role": "user", "content": "hi"}


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(text=("Hello",))
        yield gateway


def engine_of(gateway: RunningGateway) -> FakeEngine:
    (engine,) = [one for one in gateway.workers if isinstance(one, FakeEngine)]
    return engine


async def ask(
    gateway: RunningGateway, method: str, path: str, status: int = 200, **body: Any
) -> dict[str, Any]:
    sent = body if method == "POST" else None
    answer = await gateway.client.request(method, path, json=sent)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def begin(gateway: RunningGateway, *items: Any, **fields: Any) -> str:
    made = await ask(gateway, "POST", "/v1/conversations", items=list(items), **fields)
    name: str = made["id"]
    return name


async def respond(
    gateway: RunningGateway, conversation: Any, status: int = 200, **fields: Any
) -> dict[str, Any]:
    body = {"model": "demo", "input": "next", "conversation": conversation, **fields}
    return await ask(gateway, "POST", "/v1/responses", status, **body)


async def texts(gateway: RunningGateway, name: str) -> list[str]:
    answer = await gateway.client.get(
        f"/v1/conversations/{name}/items", params={"order": "asc", "limit": 100}
    )
    return [item["content"][0]["text"] for item in answer.json()["data"]]


async def test_a_conversation_is_made_shown_labelled_and_deleted(gateway: RunningGateway) -> None:
    made = await ask(gateway, "POST", "/v1/conversations", metadata={"a": "1"})
    assert (made["object"], made["metadata"]) == ("conversation", {"a": "1"})
    path = f"/v1/conversations/{made['id']}"
    assert await ask(gateway, "GET", path) == made
    changed = await ask(gateway, "POST", path, metadata={"b": "2"})
    assert changed == {**made, "metadata": {"b": "2"}}
    gone = await ask(gateway, "DELETE", path)
    assert gone == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    assert (await ask(gateway, "GET", path, 404))["error"]["code"] == "not_found"
    await ask(gateway, "DELETE", path, 404)


async def test_writing_items_counts_as_a_request_and_reading_a_response_does_not(
    gateway: RunningGateway,
) -> None:
    (auth,) = [one for one in gateway.workers if isinstance(one, FakeAuth)]
    name = await begin(gateway)
    await ask(gateway, "POST", f"/v1/conversations/{name}/items", items=[HI])
    assert [one.is_metered for one in auth.of(Authorize)] == [True, True]
    await ask(gateway, "GET", f"/v1/conversations/{name}")
    await ask(gateway, "GET", "/v1/responses/resp_1", 404)
    assert [one.is_metered for one in auth.of(Authorize)][2:] == [False, False]


async def test_items_are_added_listed_shown_and_deleted(gateway: RunningGateway) -> None:
    name = await begin(gateway, HI)
    path = f"/v1/conversations/{name}/items"
    added = await ask(gateway, "POST", path, items=[{"role": "assistant", "content": "yes"}, HI])
    assert [item["role"] for item in added["data"]] == ["assistant", "user"]
    assert await texts(gateway, name) == ["hi", "yes", "hi"]
    item = added["data"][0]
    assert await ask(gateway, "GET", f"{path}/{item['id']}") == item
    left = await ask(gateway, "DELETE", f"{path}/{item['id']}")
    assert left["id"] == name
    assert await texts(gateway, name) == ["hi", "hi"]
    await ask(gateway, "GET", f"{path}/{item['id']}", 404)
    await ask(gateway, "DELETE", f"{path}/{item['id']}", 404)
    page = (await gateway.client.get(path, params={"limit": 1})).json()
    assert page["has_more"] is True
    params = {"after": page["last_id"]}
    rest = (await gateway.client.get(path, params=params)).json()
    assert len(rest["data"]) == 1
    assert (await gateway.client.get(path, params={"after": "no"})).status_code == 404


async def test_what_clients_call_by_one_id_is_kept_unless_it_says_the_same(
    gateway: RunningGateway,
) -> None:
    """Some give all their items the same id; others send back what they have got."""
    name = await begin(gateway)
    path, mine = f"/v1/conversations/{name}/items", {"id": "msg_mine", "role": "user"}
    given = [{**mine, "content": text} for text in ("one", "two", "one")]
    added = await ask(gateway, "POST", path, items=given)
    ids = [item["id"] for item in added["data"]]
    assert (ids[0], ids[2], len(set(ids))) == ("msg_mine", "msg_mine", 2)
    assert await texts(gateway, name) == ["one", "two"]
    assert (await ask(gateway, "GET", f"{path}/{ids[1]}"))["id"] == ids[1]
    await respond(gateway, name, input=[{**mine, "content": "three"}])
    assert await texts(gateway, name) == ["one", "two", "three", "Hello"]
    said = (await gateway.client.get(path, params={"limit": 1})).json()["data"][0]
    back = {**said, "content": [{"type": "output_text", "text": "Hello"}]}
    await ask(gateway, "POST", path, items=[back])
    assert await texts(gateway, name) == ["one", "two", "three", "Hello"]


@pytest.mark.parametrize(
    "items",
    [[], [HI] * 21, [{"type": "novel"}], [{"role": "king", "content": "x"}], "x", None, [1]],
)
async def test_wrong_items_are_refused(gateway: RunningGateway, items: Any) -> None:
    name = await begin(gateway)
    answer = await ask(gateway, "POST", f"/v1/conversations/{name}/items", 400, items=items)
    assert answer["error"]["param"].startswith("items")


async def test_a_response_reads_a_conversation_and_adds_to_it(gateway: RunningGateway) -> None:
    name = await begin(gateway, HI)
    made = await respond(gateway, name)
    assert made["conversation"] == {"id": name}
    assert await texts(gateway, name) == ["hi", "next", "Hello"]
    await respond(gateway, {"id": name}, input="more")
    prepare = engine_of(gateway).of(Prepare)[-1]
    read = [one["content"] for one in orjson.loads(prepare.messages_json)]
    assert read == ["hi", "next", "Hello", "more"]
    # What belongs to a conversation is continued there.
    body = {"model": "demo", "input": "x", "previous_response_id": made["id"]}
    answer = await ask(gateway, "POST", "/v1/responses", 400, **body)
    assert name in answer["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": False}, "store"),
    ],
)
async def test_what_does_not_go_with_a_conversation_is_named(
    gateway: RunningGateway, fields: dict[str, Any], param: str
) -> None:
    name = await begin(gateway)
    answer = await respond(gateway, name, 400, **fields)
    assert answer["error"]["param"] == param


@pytest.mark.parametrize("name", ["conv_1", "", "x" * 500, "a\0"])
async def test_an_unknown_conversation_is_not_found(gateway: RunningGateway, name: str) -> None:
    answer = await respond(gateway, name, 404)
    assert (answer["error"]["code"], answer["error"]["param"]) == ("not_found", "conversation")


@pytest.mark.parametrize("is_socket", [False, True])
async def test_it_is_held_while_a_response_is_tried_again_with_less(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, *, is_socket: bool
) -> None:
    engine = engine_of(gateway)
    prepare = engine._prepare

    def limited(command: Prepare) -> None:
        if len(command.messages_json or "") <= 500:
            prepare(command)
            return
        code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
        engine.send(Failure(request_id=command.request_id, code=code, message="too long"))

    monkeypatch.setattr(engine, "_prepare", limited)
    name = await begin(
        gateway, *({"role": "user", "content": f"{number} " + "x" * 40} for number in range(15))
    )
    engine.text = None
    fields = {"model": "demo", "input": "one", "conversation": name, "truncation": "auto"}

    async def first() -> str:
        if not is_socket:
            answer = await gateway.client.post("/v1/responses", json=fields)
            status: str = answer.json()["status"]
            return status
        url = f"ws://127.0.0.1:{gateway.client.base_url.port}/v1/responses"
        async with connect(url, proxy=None) as socket:
            await socket.send(orjson.dumps({"type": "response.create", **fields}).decode())
            while True:
                event = orjson.loads(await socket.recv())
                if event["type"] == "response.completed":
                    return "completed"
                assert event["type"] != "error", event

    answering = asyncio.create_task(first())
    await engine.until(lambda: bool(engine.of(Generate)) or answering.done())
    assert len(engine.of(Prepare)) > 1  # the first was too long
    second = await respond(gateway, name, 409)
    assert second["error"]["code"] == "conversation_locked"
    engine.emit(engine.of(Generate)[0], "Hello")
    engine.finish(engine.of(Generate)[0])
    assert await asyncio.wait_for(answering, 60) == "completed"
    assert (await texts(gateway, name))[-2:] == ["one", "Hello"]
    engine.text = ("Hi",)
    await respond(gateway, name, truncation="auto")


@pytest.mark.parametrize("is_background", [False, True])
async def test_two_do_not_write_at_once(gateway: RunningGateway, *, is_background: bool) -> None:
    engine = engine_of(gateway)
    name = await begin(gateway)
    engine.text = None
    body = {"model": "demo", "input": "one", "conversation": name, "stream": not is_background}
    request = gateway.client.build_request(
        "POST", "/v1/responses", json={**body, "background": is_background}
    )
    # Its headers come with its first event.
    sending = asyncio.create_task(gateway.client.send(request, stream=True))
    await engine.until(lambda: bool(engine.of(Generate)))
    second = await respond(gateway, name, 409)
    assert second["error"]["code"] == "conversation_locked"
    path = f"/v1/conversations/{name}/items"
    assert (await ask(gateway, "POST", path, 409, items=[HI]))["error"]["param"] == "conversation"
    generate = engine.of(Generate)[0]
    engine.emit(generate, "Hello")
    engine.finish(generate)
    first = await sending
    await first.aread()
    if is_background:
        made = orjson.loads(first.content)
        events = f"/v1/responses/{made['id']}"
        await gateway.client.get(events, params={"stream": "true"})
    assert await texts(gateway, name) == ["one", "Hello"]
    engine.text = ("again",)
    await respond(gateway, name, input="two")
    assert await texts(gateway, name) == ["one", "Hello", "two", "again"]


async def test_nothing_is_made_for_a_conversation_that_has_no_room_for_it(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be computed and paid for, and refused at its end."""
    name = await begin(gateway, HI, {"role": "assistant", "content": "yes"})
    monkeypatch.setattr(conversations, "MAX_ITEMS", 2)
    for is_background in (False, True):
        refused = await respond(gateway, name, 400, background=is_background)
        assert refused["error"]["param"] == "conversation"
    path = f"/v1/conversations/{name}/items"
    first, second = (await gateway.client.get(path)).json()["data"]
    await ask(gateway, "DELETE", f"{path}/{first['id']}")
    # There is room for one more, and an answer comes with its question.
    assert (await respond(gateway, name, 400))["error"]["param"] == "conversation"
    assert engine_of(gateway).of(Prepare) == []
    await ask(gateway, "DELETE", f"{path}/{second['id']}")
    await respond(gateway, name)
    assert await texts(gateway, name) == ["next", "Hello"]


async def test_a_response_that_fails_lets_go_and_adds_nothing(gateway: RunningGateway) -> None:
    engine = engine_of(gateway)
    name = await begin(gateway, HI)
    engine.generate_failure = ErrorCode.UNSUPPORTED_GRAMMAR
    await respond(gateway, name, 400)
    await respond(gateway, name, 400, stream=True)
    await respond(gateway, name, 404, model="unknown")
    engine.generate_failure = None
    await respond(gateway, name)
    assert await texts(gateway, name) == ["hi", "next", "Hello"]


async def test_a_conversation_deleted_under_a_response_is_an_error(
    gateway: RunningGateway,
) -> None:
    engine = engine_of(gateway)
    name = await begin(gateway)
    engine.text = None
    made = await respond(gateway, name, background=True)
    await engine.until(lambda: bool(engine.of(Generate)))
    await ask(gateway, "DELETE", f"/v1/conversations/{name}")
    generate = engine.of(Generate)[0]
    engine.emit(generate, "Hello")
    engine.finish(generate)
    path = f"/v1/responses/{made['id']}"
    await gateway.client.get(path, params={"stream": "true"})
    assert (await ask(gateway, "GET", path))["status"] == "failed"
