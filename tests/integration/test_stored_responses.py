"""Responses that are kept: fetched, continued, deleted, and nobody else's to see."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.errors import StoreUnavailableError
from protocol.errors import ErrorCode
from protocol.wire.messages import Failure, Generate, Prepare
from tests.fakes.fake_workers import FakeAuth, FakeEngine
from tests.fakes.running_gateway import RunningGateway, named_events_of, running_gateway

pytestmark = pytest.mark.asyncio


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(text=("Hello", ", world"))
        yield gateway


def engine_of(gateway: RunningGateway) -> FakeEngine:
    (engine,) = [one for one in gateway.workers if isinstance(one, FakeEngine)]
    return engine


def auth_of(gateway: RunningGateway) -> FakeAuth:
    (auth,) = [one for one in gateway.workers if isinstance(one, FakeAuth)]
    return auth


async def create(gateway: RunningGateway, **fields: Any) -> dict[str, Any]:
    answer = await gateway.client.post(
        "/v1/responses", json={"model": "demo", "input": "hi", **fields}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def read_by_engine(gateway: RunningGateway) -> list[tuple[str, str]]:
    """Roles and texts of the last prompt."""
    prepare = engine_of(gateway).of(Prepare)[-1]
    return [(one["role"], one["content"]) for one in orjson.loads(prepare.messages_json)]


async def refusal(gateway: RunningGateway, method: str, path: str, **more: Any) -> tuple[int, str]:
    answer = await gateway.client.request(method, path, **more)
    return answer.status_code, answer.json()["error"]["code"]


async def test_nothing_is_made_that_a_store_which_is_away_could_not_keep(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be computed and paid for, and fail at its end, as often as it is repeated."""
    store = gateway.application.store
    assert store is not None

    async def away(_work: Any) -> Any:
        raise StoreUnavailableError("It is away.")

    asked = {"model": "demo", "input": "hi"}
    with monkeypatch.context() as patched:
        patched.setattr(store._database, "run", away)
        with pytest.raises(StoreUnavailableError):
            await store.jobs.beat()
        refused = await refusal(gateway, "POST", "/v1/responses", json=asked)
        assert refused == (503, "worker_unavailable")
        assert engine_of(gateway).of(Generate) == []
        assert (await create(gateway, store=False))["status"] == "completed"
    await store.jobs.beat()
    assert (await create(gateway))["status"] == "completed"


async def test_a_response_is_fetched_as_it_was_told(gateway: RunningGateway) -> None:
    made = await create(gateway, metadata={"a": "b"})
    assert (made["store"], made["background"], made["truncation"]) == (True, False, "disabled")
    fetched = await gateway.client.get(f"/v1/responses/{made['id']}")
    assert fetched.json() == made


async def test_what_is_not_to_be_stored_is_not(gateway: RunningGateway) -> None:
    made = await create(gateway, store=False)
    assert made["store"] is False
    found = await refusal(gateway, "GET", f"/v1/responses/{made['id']}")
    assert found == (404, "not_found")


async def test_a_stream_is_stored_before_its_end_is_told(gateway: RunningGateway) -> None:
    body = {"model": "demo", "input": "hi", "stream": True}
    async with gateway.client.stream("POST", "/v1/responses", json=body) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: ") and '"response.completed"' in line:
                told = orjson.loads(line.removeprefix("data: "))["response"]
                fetched = await gateway.client.get(f"/v1/responses/{told['id']}")
                assert fetched.json() == told
    assert told["output"][0]["content"][0]["text"] == "Hello, world"


async def test_a_response_is_continued_by_its_id(gateway: RunningGateway) -> None:
    first = await create(gateway, instructions="be short")
    second = await create(gateway, input="and then?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    # Instructions are not carried over.
    assert read_by_engine(gateway) == [
        ("user", "hi"),
        ("assistant", "Hello, world"),
        ("user", "and then?"),
    ]
    await create(gateway, input="more", previous_response_id=second["id"])
    assert [text for _, text in read_by_engine(gateway)] == [
        *("hi", "Hello, world", "and then?", "Hello, world", "more"),
    ]


async def test_a_deleted_ancestor_is_no_silent_cut(gateway: RunningGateway) -> None:
    first = await create(gateway)
    second = await create(gateway, previous_response_id=first["id"])
    deleted = await gateway.client.delete(f"/v1/responses/{first['id']}")
    assert deleted.json() == {"id": first["id"], "object": "response", "deleted": True}
    body = {"model": "demo", "input": "x", "previous_response_id": second["id"]}
    answer = await gateway.client.post("/v1/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "previous_response_not_found")
    assert error["param"] == "previous_response_id"
    assert first["id"] in error["message"]


@pytest.mark.parametrize("name", ["resp_nope", "", "../x", "resp_" + "x" * 300, "a\0b"])
async def test_an_unknown_id_is_none_of_ours(gateway: RunningGateway, name: str) -> None:
    body = {"model": "demo", "input": "x", "previous_response_id": name}
    found = await refusal(gateway, "POST", "/v1/responses", json=body)
    assert found == (400, "previous_response_not_found")


async def test_the_input_is_listed_with_ids_in_pages(gateway: RunningGateway) -> None:
    items = [{"role": "user", "content": f"m{number}"} for number in range(5)]
    made = await create(gateway, input=items)
    path = f"/v1/responses/{made['id']}/input_items"
    page = (await gateway.client.get(path, params={"order": "asc", "limit": 2})).json()
    assert [item["content"][0]["text"] for item in page["data"]] == ["m0", "m1"]
    assert (page["object"], page["has_more"]) == ("list", True)
    assert page["last_id"] == page["data"][-1]["id"]
    params = {"order": "asc", "after": page["last_id"]}
    rest = (await gateway.client.get(path, params=params)).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["m2", "m3", "m4"]
    newest = (await gateway.client.get(path)).json()
    assert newest["data"][0]["content"][0]["text"] == "m4"
    for params in ({"limit": "0"}, {"limit": "101"}, {"order": "up"}, {"limit": "x"}):
        assert (await refusal(gateway, "GET", path, params=params))[0] == 400
    assert (await refusal(gateway, "GET", path, params={"after": "no"}))[0] == 404


async def test_items_of_one_id_are_told_apart_in_a_list(gateway: RunningGateway) -> None:
    """A client that goes on behind the id of the second one would begin behind the first."""
    items = [{"role": "user", "content": f"m{number}", "id": "msg_mine"} for number in range(3)]
    made = await create(gateway, input=items)
    path, after, shown = f"/v1/responses/{made['id']}/input_items", "", list[Any]()
    for _ in items:
        params = {"order": "asc", "limit": "1", **({"after": after} if after else {})}
        page = (await gateway.client.get(path, params=params)).json()
        shown += page["data"]
        assert page["has_more"] == (len(shown) < 3)
        after = page["last_id"]
    assert [item["content"][0]["text"] for item in shown] == ["m0", "m1", "m2"]
    assert shown[0]["id"] == "msg_mine"
    await create(gateway, input=[{"type": "item_reference", "id": shown[2]["id"]}])
    assert [text for _, text in read_by_engine(gateway)] == ["m2"]


async def test_an_item_is_referred_to_by_its_id(gateway: RunningGateway) -> None:
    made = await create(gateway)
    own = (await gateway.client.get(f"/v1/responses/{made['id']}/input_items")).json()["data"][0]
    named = [{"type": "item_reference", "id": one["id"]} for one in (own, made["output"][0])]
    again = await create(gateway, input=[*named, {"role": "user", "content": "?"}])
    assert [text for _, text in read_by_engine(gateway)] == ["hi", "Hello, world", "?"]
    # What is stored are the items, whatever becomes of the first response.
    await gateway.client.delete(f"/v1/responses/{made['id']}")
    await create(gateway, input="!", previous_response_id=again["id"])
    assert [text for _, text in read_by_engine(gateway)][:2] == ["hi", "Hello, world"]


@pytest.mark.parametrize("name", ["msg_1", "msg_0123_1", "x", "msg_\0_1"])
async def test_an_item_that_refers_to_nothing_is_named(gateway: RunningGateway, name: str) -> None:
    body = {"model": "demo", "input": [{"type": "item_reference", "id": name}]}
    assert await refusal(gateway, "POST", "/v1/responses", json=body) == (404, "not_found")


async def test_ten_thousand_items_are_read_and_stored(gateway: RunningGateway) -> None:
    items = [{"role": "user", "content": f"{number}"} for number in range(10_000)]
    made = await create(gateway, input=items)
    await create(gateway, input="last", previous_response_id=made["id"])
    assert len(read_by_engine(gateway)) == 10_002


async def test_a_context_that_is_too_large_says_so(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, store_max_context_bytes=2000) as gateway:
        await gateway.auth()
        await gateway.engine()
        made = await create(gateway, input="x" * 3000)
        body = {"model": "demo", "input": "x", "previous_response_id": made["id"]}
        answer = await gateway.client.post("/v1/responses", json=body)
        assert answer.status_code == 400
        assert "PENSTOCK_STORE_MAX_CONTEXT_BYTES" in answer.json()["error"]["message"]


async def test_the_events_of_a_response_are_told_again_from_any_number(
    gateway: RunningGateway,
) -> None:
    made = await create(gateway)
    path = f"/v1/responses/{made['id']}"
    whole = named_events_of((await gateway.client.get(path, params={"stream": "true"})).text)
    assert whole[-1] == "[DONE]"
    kinds = [event["type"] for event in whole[:-1]]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert [event["sequence_number"] for event in whole[:-1]] == list(range(len(kinds)))
    assert whole[-2]["response"] == made
    params = {"stream": "True", "starting_after": "3"}  # as Python writes it
    rest = named_events_of((await gateway.client.get(path, params=params)).text)
    assert rest == whole[4:]
    # As if the stream that made it had been lost before its end.
    params["starting_after"] = "50"
    end, done = named_events_of((await gateway.client.get(path, params=params)).text)
    assert (end, done) == ({**whole[-2], "sequence_number": 51}, "[DONE]")


async def test_what_was_streamed_is_told_again_by_the_numbers_that_its_client_has(
    gateway: RunningGateway,
) -> None:
    """OpenAI's client asks for all events and passes on those behind `starting_after`."""
    engine_of(gateway).text = ("one ", "two ", "three")
    body = {"model": "demo", "input": "x", "stream": True}
    seen = named_events_of((await gateway.client.post("/v1/responses", json=body)).text)
    path = f"/v1/responses/{seen[0]['response']['id']}"
    again = named_events_of((await gateway.client.get(path, params={"stream": "true"})).text)
    assert again == seen
    params = {"stream": "true", "starting_after": "4"}
    rest = named_events_of((await gateway.client.get(path, params=params)).text)
    assert rest == seen[5:]
    assert (await gateway.client.delete(path)).status_code == 200
    store = gateway.application.store
    assert store is not None
    assert await store.responses.script("", seen[0]["response"]["id"]) == b""


async def test_without_a_store_what_needs_one_is_refused_by_name(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, store_url="none") as gateway:
        await gateway.auth()
        await gateway.engine()
        made = await create(gateway)
        assert made["store"] is False
        for name, value in (
            ("previous_response_id", "resp_1"),
            ("conversation", "conv_1"),
            ("background", True),
        ):
            body = {"model": "demo", "input": "x", name: value}
            answer = await gateway.client.post("/v1/responses", json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, name)
        assert (await refusal(gateway, "GET", f"/v1/responses/{made['id']}"))[0] == 400
        assert (await refusal(gateway, "GET", "/v1/conversations/conv_1"))[0] == 400


async def test_a_foreground_response_is_not_cancelled(gateway: RunningGateway) -> None:
    made = await create(gateway)
    found = await refusal(gateway, "POST", f"/v1/responses/{made['id']}/cancel", json={})
    assert found == (400, "invalid_request")


async def test_a_store_that_fails_is_no_silent_loss(gateway: RunningGateway) -> None:
    store = gateway.application.store
    assert store is not None
    await store.close()
    body = {"model": "demo", "input": "x"}
    found = await refusal(gateway, "POST", "/v1/responses", json=body)
    assert found == (503, "worker_unavailable")
    stream = await gateway.client.post("/v1/responses", json={**body, "stream": True})
    events = named_events_of(stream.text)
    kinds = [event["type"] for event in events[:-1]]
    assert kinds[-2:] == ["error", "response.failed"]
    assert "response.completed" not in kinds
    assert [event["sequence_number"] for event in events[:-1]] == list(range(len(kinds)))
    kept = await gateway.client.post("/v1/responses", json={**body, "store": False})
    assert kept.status_code == 200


async def test_a_context_is_shortened_where_the_client_allows_it(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
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
    items = [{"role": "user", "content": f"{number} " + "x" * 40} for number in range(30)]
    body = {"model": "demo", "input": items}
    found = await refusal(gateway, "POST", "/v1/responses", json=body)
    assert found == (400, "context_length_exceeded")
    made = await create(gateway, input=items, truncation="auto")
    assert made["truncation"] == "auto"
    kept = [text.split()[0] for _, text in read_by_engine(gateway)]
    assert kept[-1] == "29"
    assert 1 < len(kept) < 30
    # One turn alone is never cut.
    one = {"model": "demo", "input": "x" * 600, "truncation": "auto"}
    found = await refusal(gateway, "POST", "/v1/responses", json=one)
    assert found == (400, "context_length_exceeded")


async def test_a_client_that_leaves_stores_nothing(gateway: RunningGateway) -> None:
    engine = engine_of(gateway)
    engine.text = None
    body = {"model": "demo", "input": "x", "stream": True}

    async def ask() -> None:
        await gateway.client.post("/v1/responses", json=body)

    task = asyncio.get_running_loop().create_task(ask())
    await engine.until(lambda: bool(engine.of(Generate)))
    path = f"/v1/responses/resp_{engine.of(Generate)[0].request_id}"
    early = (await gateway.client.get(path)).json()["error"]
    assert early["code"] == "not_found"
    assert "once it has ended" in early["message"]
    task.cancel()
    auth = auth_of(gateway)
    await auth.until(lambda: bool(auth.settled()))
    assert (await refusal(gateway, "GET", path))[0] == 404


async def test_a_compacted_context_is_continued(gateway: RunningGateway) -> None:
    items = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "an answer"},
        {"role": "user", "content": "second"},
    ]
    body = {"model": "demo", "input": items}
    answer = (await gateway.client.post("/v1/responses/compact", json=body)).json()
    assert answer["object"] == "response.compaction"
    assert answer["usage"]["output_tokens"] == 2
    *kept, summary = answer["output"]
    assert [item["content"][0]["text"] for item in kept] == ["first", "second"]
    assert summary["type"] == "compaction"
    await create(gateway, input=[*answer["output"], {"role": "user", "content": "go on"}])
    texts = [text for _, text in read_by_engine(gateway)]
    assert texts[:2] == ["first", "second"]
    assert texts[2].endswith("Hello, world")
    assert texts[3] == "go on"
    for wrong in ({"input": "x"}, {"model": "demo"}):
        answer = await gateway.client.post("/v1/responses/compact", json=wrong)
        assert answer.status_code == 400


async def test_counting_reads_what_is_stored(gateway: RunningGateway) -> None:
    made = await create(gateway)
    body = {"model": "demo", "input": "x", "previous_response_id": made["id"]}
    counted = await gateway.client.post("/v1/responses/input_tokens", json=body)
    assert counted.json()["object"] == "response.input_tokens"
    assert [text for _, text in read_by_engine(gateway)] == ["hi", "Hello, world", "x"]
