"""Files and batches are their tenant's alone: every one by every route and a foreign key."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes.running_gateway import RunningGateway, running_gateway
from tests.integration.test_tenants_of_the_store import (
    COLLEAGUE,
    OWNER,
    STRANGER,
    Attempt,
    blank,
    send,
)

pytestmark = pytest.mark.asyncio
CHAT = "/v1/chat/completions"
UNKNOWN_FILE, UNKNOWN_BATCH = "file-" + "0" * 24, "batch_" + "0" * 24


class Kept(NamedTuple):
    """What the owner has: an input, a batch of it, and what that put out."""

    files: tuple[str, ...]
    batch: str


def batch_of(file_id: str) -> dict[str, str]:
    return {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}


def attempts(file_id: str, batch_id: str) -> Iterator[Attempt]:
    """Every route and field that names a file or a batch."""
    yield Attempt("GET", f"/v1/files/{file_id}")
    yield Attempt("GET", f"/v1/files/{file_id}/content")
    yield Attempt("DELETE", f"/v1/files/{file_id}")
    yield Attempt("GET", f"/v1/files?after={file_id}")
    yield Attempt("POST", "/v1/batches", batch_of(file_id))
    yield Attempt("GET", f"/v1/batches/{batch_id}")
    yield Attempt("POST", f"/v1/batches/{batch_id}/cancel", {})
    yield Attempt("GET", f"/v1/batches?after={batch_id}")


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir, require_keys=True, models=("demo",)) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = (OWNER, COLLEAGUE, STRANGER)
        auth.tenants = {OWNER: "team", COLLEAGUE: "team", STRANGER: "other"}
        await gateway.engine(text=("Hello",))
        yield gateway


@pytest.fixture
async def kept(gateway: RunningGateway) -> Kept:
    body = {"model": "demo", "messages": [{"role": "user", "content": "secret"}]}
    lines = [
        {"custom_id": name, "method": "POST", "url": CHAT, "body": one}
        for name, one in (("good", body), ("bad", {**body, "model": "none"}))
    ]
    content = b"\n".join(json.dumps(line).encode() for line in lines)
    form: Any = {"file": ("in.jsonl", content), "purpose": (None, "batch")}
    headers = {"Authorization": f"Bearer {OWNER}"}
    uploaded = (await gateway.client.post("/v1/files", files=form, headers=headers)).json()["id"]
    _, batch = await send(gateway, OWNER, Attempt("POST", "/v1/batches", batch_of(uploaded)))
    batches = gateway.application.batches
    assert batches is not None
    store, batch_id = batches.store, batch["id"]
    await gateway.until(lambda: store.find("team", batch_id).status == "completed")
    _, ended = await send(gateway, OWNER, Attempt("GET", f"/v1/batches/{batch_id}"))
    return Kept((uploaded, ended["output_file_id"], ended["error_file_id"]), batch_id)


async def seen(gateway: RunningGateway, key: str, kept: Kept) -> list[tuple[int, Any]]:
    """Everything that can be read of it."""
    paths = ["/v1/files", "/v1/batches", f"/v1/batches/{kept.batch}"]
    for file_id in kept.files:
        paths += [f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"]
    return [await send(gateway, key, Attempt("GET", path)) for path in paths]


async def test_a_foreign_key_finds_what_an_unknown_id_finds_and_changes_nothing(
    gateway: RunningGateway, kept: Kept
) -> None:
    before = await seen(gateway, OWNER, kept)
    assert {status for status, _ in before} == {200}
    assert await seen(gateway, COLLEAGUE, kept) == before
    words = {*kept.files, kept.batch, UNKNOWN_FILE, UNKNOWN_BATCH}
    for file_id in kept.files:
        unknown = attempts(UNKNOWN_FILE, UNKNOWN_BATCH)
        for attempt, other in zip(attempts(file_id, kept.batch), unknown, strict=True):
            status, answer = await send(gateway, STRANGER, attempt)
            expected_status, expected = await send(gateway, STRANGER, other)
            if "after=" in attempt.path:
                # An id is no more than a time there, whoever has it.
                assert (status, answer["data"]) == (200, []), attempt
                assert (expected_status, expected) == (status, answer)
                continue
            assert (status, answer["error"]["code"]) == (404, "not_found"), attempt
            assert status == expected_status
            message = blank(answer["error"].pop("message"), words)
            assert message == blank(expected["error"].pop("message"), words)
            assert answer == expected
    for path in ("/v1/files", "/v1/batches"):
        status, listed = await send(gateway, STRANGER, Attempt("GET", path))
        assert (status, listed["data"]) == (200, [])
    assert await seen(gateway, OWNER, kept) == before


async def test_without_a_good_key_nobody_is_told_anything(
    gateway: RunningGateway, kept: Kept
) -> None:
    for attempt in attempts(kept.files[0], kept.batch):
        status, answer = await send(gateway, "psk-unknown", attempt)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), attempt
