"""Whatever is stored is its tenant's alone: every stored thing by every route and a foreign key."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes.running_gateway import RunningGateway, running_gateway

pytestmark = pytest.mark.asyncio
OWNER, COLLEAGUE, STRANGER = "psk-owner", "psk-colleague", "psk-stranger"
UNKNOWN = {"response": "resp_0123", "conversation": "conv_0123", "item": "msg_0123_i0"}


class Attempt(NamedTuple):
    """One way to reach a stored thing."""

    method: str
    path: str
    body: dict[str, Any] | None = None


def attempts(response: str, conversation: str, item: str, own_item: str) -> Iterator[Attempt]:
    """Every route and field that names something stored."""
    one = f"/v1/responses/{response}"
    yield Attempt("GET", one)
    yield Attempt("GET", f"{one}?stream=true")
    yield Attempt("GET", f"{one}/input_items")
    yield Attempt("POST", f"{one}/cancel", {})
    yield Attempt("DELETE", one)
    there = f"/v1/conversations/{conversation}"
    hi = {"role": "user", "content": "hi"}
    yield Attempt("GET", there)
    yield Attempt("POST", there, {"metadata": {"stolen": "yes"}})
    yield Attempt("GET", f"{there}/items")
    yield Attempt("POST", f"{there}/items", {"items": [hi]})
    yield Attempt("GET", f"{there}/items/{item}")
    yield Attempt("DELETE", f"{there}/items/{item}")
    yield Attempt("DELETE", there)
    for path in ("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact"):
        ask = {"model": "demo", "input": "x"}
        yield Attempt("POST", path, {**ask, "previous_response_id": response})
        for named in (item, own_item):
            reference = [{"type": "item_reference", "id": named}]
            yield Attempt("POST", path, {**ask, "input": reference})
        if not path.endswith("compact"):
            yield Attempt("POST", path, {**ask, "conversation": conversation})
    for more in ({"background": True}, {"stream": True}, {"store": False}):
        yield Attempt(
            "POST",
            "/v1/responses",
            {"model": "demo", "input": "x", "previous_response_id": response, **more},
        )


class Stored(NamedTuple):
    """What the owner has."""

    response: str
    background: str
    conversation: str
    item: str
    own_item: str


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = (OWNER, COLLEAGUE, STRANGER)
        auth.tenants = {OWNER: "team", COLLEAGUE: "team", STRANGER: "other"}
        await gateway.engine(text=("Hello",))
        yield gateway


async def send(gateway: RunningGateway, key: str, attempt: Attempt) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    answer = await gateway.client.request(
        attempt.method, attempt.path, headers=headers, json=attempt.body
    )
    is_json = answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json() if is_json else answer.text


async def made(gateway: RunningGateway, path: str, **body: Any) -> Any:
    status, found = await send(gateway, OWNER, Attempt("POST", path, body))
    assert status == 200, found
    return found


@pytest.fixture
async def stored(gateway: RunningGateway) -> Stored:
    hi = {"role": "user", "content": "secret"}
    conversation = (await made(gateway, "/v1/conversations", items=[hi]))["id"]
    response = await made(gateway, "/v1/responses", model="demo", input="secret")
    background = gateway.application.background
    assert background is not None
    await background.stop()  # it stays queued
    queued = await made(gateway, "/v1/responses", model="demo", input="x", background=True)
    path = f"/v1/conversations/{conversation}/items"
    _, items = await send(gateway, OWNER, Attempt("GET", path))
    return Stored(
        response["id"],
        queued["id"],
        conversation,
        items["data"][0]["id"],
        response["output"][0]["id"],
    )


async def seen(gateway: RunningGateway, key: str, stored: Stored) -> list[tuple[int, Any]]:
    """Everything that can be read of it."""
    paths = (
        f"/v1/responses/{stored.response}",
        f"/v1/responses/{stored.background}",
        f"/v1/responses/{stored.response}/input_items",
        f"/v1/conversations/{stored.conversation}",
        f"/v1/conversations/{stored.conversation}/items",
    )
    return [await send(gateway, key, Attempt("GET", path)) for path in paths]


async def test_a_foreign_key_finds_what_an_unknown_id_finds_and_changes_nothing(
    gateway: RunningGateway, stored: Stored
) -> None:
    before = await seen(gateway, OWNER, stored)
    assert [status for status, _ in before] == [200] * 5
    assert await seen(gateway, COLLEAGUE, stored) == before
    for response in (stored.response, stored.background):
        foreign = attempts(response, stored.conversation, stored.item, stored.own_item)
        unknown = attempts(
            UNKNOWN["response"], UNKNOWN["conversation"], UNKNOWN["item"], UNKNOWN["item"]
        )
        for attempt, other in zip(foreign, unknown, strict=True):
            status, answer = await send(gateway, STRANGER, attempt)
            expected_status, expected = await send(gateway, STRANGER, other)
            assert (status, answer["error"]["code"]) in (
                (404, "not_found"),
                (400, "previous_response_not_found"),
            ), attempt
            assert (status, answer["error"]["type"], answer["error"]["param"]) == (
                expected_status,
                expected["error"]["type"],
                expected["error"]["param"],
            )
            words = {stored.response, stored.background, stored.conversation, stored.item}
            words |= {stored.own_item, *UNKNOWN.values()}
            assert blank(answer["error"]["message"], words) == blank(
                expected["error"]["message"], words
            )
    assert await seen(gateway, OWNER, stored) == before


def blank(message: str, words: set[str]) -> str:
    """A message without the ids that the client itself gave."""
    for word in words:
        message = message.replace(word, "…")
    return message


async def test_without_a_good_key_nobody_is_told_anything(
    gateway: RunningGateway, stored: Stored
) -> None:
    for attempt in attempts(stored.response, stored.conversation, stored.item, stored.own_item):
        status, answer = await send(gateway, "psk-unknown", attempt)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), attempt
