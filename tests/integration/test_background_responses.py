"""Responses that outlive their requests: queued, told, taken up again, ended and booked once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import Enum, auto
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.errors import GatewayError, OverloadedError, StoreUnavailableError
from gateway.storage.database import Database, SqliteEngine
from gateway.storage.open_store import FILE_NAME
from gateway.storage.records import Bounds
from gateway.storage.store import Store
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Generate, Settle
from tests.fakes.fake_workers import FakeAuth, FakeEngine
from tests.fakes.running_gateway import RunningGateway, named_events_of, running_gateway

pytestmark = pytest.mark.asyncio


class Harness:
    """A gateway with an auth worker and an engine that says what the test emits."""

    def __init__(self, gateway: RunningGateway, auth: FakeAuth, engine: FakeEngine) -> None:
        self.gateway = gateway
        self.auth = auth
        self.engine = engine

    async def create(self, **fields: Any) -> dict[str, Any]:
        body = {"model": "demo", "input": "hi", "background": True, **fields}
        answer = await self.gateway.client.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def get(self, response_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (
            await self.gateway.client.get(f"/v1/responses/{response_id}")
        ).json()
        return found

    async def ended(self, response_id: str) -> dict[str, Any]:
        return await self.until(
            response_id, lambda found: found["status"] not in ("queued", "in_progress")
        )

    async def until(
        self, response_id: str, fact: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        async with asyncio.timeout(60):
            # Polling is how clients learn of it.
            while not fact(found := await self.get(response_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found

    async def events(self, response_id: str, after: int = -1) -> list[dict[str, Any]]:
        params = (
            {"stream": "true", "starting_after": str(after)} if after >= 0 else {"stream": "true"}
        )
        answer = await self.gateway.client.get(f"/v1/responses/{response_id}", params=params)
        *events, done = named_events_of(answer.text)
        assert done == "[DONE]"
        return events

    async def told(self, response_id: str, kind: str) -> None:
        """Until an event of a kind is written down."""
        path = f"/v1/responses/{response_id}?stream=true"
        async with self.gateway.client.stream("GET", path) as stream:
            async for line in stream.aiter_lines():
                if line == f"event: {kind}":
                    return

    async def generate(self, number: int = 1) -> Generate:
        await self.engine.until(lambda: len(self.engine.of(Generate)) >= number)
        found: Generate = self.engine.of(Generate)[number - 1]
        return found

    def booked(self) -> list[Settle]:
        """What was settled as used."""
        return [one for one in self.auth.settled() if not one.is_unused]


@pytest.fixture
async def harness(socket_dir: Path) -> AsyncIterator[Harness]:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        yield Harness(gateway, auth, await gateway.engine(text=None))


def text_of(response: dict[str, Any]) -> str:
    found: str = response["output"][0]["content"][0]["text"]
    return found


def told_text(events: list[dict[str, Any]]) -> str:
    return "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")


async def test_it_is_queued_then_made_then_there(harness: Harness) -> None:
    made = await harness.create(metadata={"k": "v"})
    assert (made["status"], made["background"], made["output"]) == ("queued", True, [])
    generate = await harness.generate()
    harness.engine.emit(generate, "Hello")
    running = await harness.until(made["id"], lambda found: found["status"] == "in_progress")
    assert running["metadata"] == {"k": "v"}
    harness.engine.finish(generate)
    ended = await harness.ended(made["id"])
    assert (ended["status"], text_of(ended)) == ("completed", "Hello")
    assert ended["usage"]["output_tokens"] == 2
    events = await harness.events(made["id"])
    assert [event["type"] for event in events[:3]] == [
        *("response.created", "response.queued", "response.in_progress"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == ended
    assert await harness.events(made["id"], after=4) == events[5:]
    assert len(harness.booked()) == 1


async def test_the_head_of_its_stream_waits_for_no_end(harness: Harness) -> None:
    made = await harness.create()
    path = f"/v1/responses/{made['id']}?stream=true"
    head = await harness.gateway.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert (await harness.get(made["id"]))["status"] in ("queued", "in_progress")
    store = harness.gateway.application.store
    assert store is not None
    read = await store._database.run(lambda one: one.execute("SELECT is_read FROM event_logs"))
    assert read == [(0,)]  # nobody was told of its events


async def test_a_stream_of_it_goes_on_where_it_was_lost(harness: Harness) -> None:
    body = {"model": "demo", "input": "hi", "background": True, "stream": True}
    seen: list[dict[str, Any]] = []
    async with harness.gateway.client.stream("POST", "/v1/responses", json=body) as stream:
        generate = await harness.generate()
        harness.engine.emit(generate, "Hello")
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                seen.append(orjson.loads(line.removeprefix("data: ")))
                if seen[-1]["type"] == "response.output_text.delta":
                    break
    # The client has left; nobody minds.
    harness.engine.emit(generate, ", world")
    harness.engine.finish(generate)
    name = seen[0]["response"]["id"]
    rest = await harness.events(name, after=seen[-1]["sequence_number"])
    assert told_text(seen) + told_text(rest) == "Hello, world"
    assert rest[-1]["type"] == "response.completed"
    numbers = [event["sequence_number"] for event in (*seen, *rest)]
    assert numbers == list(range(len(numbers)))


class Reader(Enum):
    """Who reads the events of a response that is begun and can't be gone on with."""

    ITS_CLIENT = auto()
    ANOTHER = auto()
    NOBODY = auto()


@pytest.mark.parametrize(
    ("reader", "has_output", "status"),
    [
        (Reader.ITS_CLIENT, True, "failed"),
        (Reader.ITS_CLIENT, False, "completed"),
        (Reader.ANOTHER, True, "failed"),
        (Reader.ANOTHER, False, "completed"),
        (Reader.NOBODY, True, "completed"),
    ],
)
async def test_when_its_weights_are_gone_it_is_made_anew_unless_somebody_has_read_some(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    reader: Reader,
    has_output: bool,
    status: str,
) -> None:
    monkeypatch.setattr("gateway.http.background.background_take.RETRY_S", 0.0)
    is_streaming = reader is Reader.ITS_CLIENT
    body = {"model": "demo", "input": "hi", "background": True, "stream": is_streaming}
    asking = asyncio.ensure_future(harness.gateway.client.post("/v1/responses", json=body))
    generate = await harness.generate()
    name = "resp_" + generate.request_id.partition("-")[0]
    await harness.until(name, lambda found: found["status"] == "in_progress")
    if reader is Reader.ANOTHER:
        await harness.told(name, "response.in_progress")
    if has_output:
        harness.engine.emit(generate, "Hello")
        await told(harness.gateway, name, "Hello")
    await harness.gateway.engine(fingerprint="new", text=("Other",))
    await harness.gateway.departure(harness.engine)
    ended = await harness.ended(name)
    assert ended["status"] == status
    events = await harness.events(name)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == ended
    if status == "failed":
        assert "another one now" in ended["error"]["message"]
        assert (ended["output"], told_text(events)) == ([], "Hello")
    else:
        assert text_of(ended) == told_text(events) == "Other"
    answer = await asking
    if is_streaming:
        *streamed, done = named_events_of(answer.text)
        assert (streamed, done) == (events, "[DONE]")
    await harness.auth.until(lambda: bool(harness.booked()))
    # An auth worker books a lease once, however often it is settled.
    assert len({settle.lease_id for settle in harness.booked()}) == 1


async def test_a_text_that_finished_and_is_taken_back_is_not_what_is_booked(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http.background.background_take.RETRY_S", 0.0)
    made = await harness.create()
    first = await harness.generate()
    harness.engine.emit(first, "Hello")
    await told(harness.gateway, made["id"], "Hello")
    other = await harness.gateway.engine(fingerprint="new", text=None)
    # A part of what was told: only its end shows that it is another text.
    other.script = [("Hell",), ("An", "other", " ", "text")]
    await harness.gateway.departure(harness.engine)
    ended = await harness.ended(made["id"])
    assert (ended["status"], text_of(ended)) == ("completed", "Another text")
    assert ended["usage"]["output_tokens"] == 4
    leases = [first.lease_id, *(one.lease_id for one in other.of(Generate))]
    assert len(set(leases)) == 3
    await harness.auth.until(lambda: len(harness.auth.settled()) >= 3)
    settled = [
        (one.lease_id, one.completion_tokens, one.is_unused) for one in harness.auth.settled()
    ]
    assert settled == [(leases[0], 4, False), (leases[1], 0, True), (leases[2], 0, True)]


async def test_another_model_that_stands_in_tells_nothing_behind_what_was_read(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http.background.background_take.RETRY_S", 0.0)
    # Until its request's time is up, an answer waits for another engine of its own model.
    settings: dict[str, Any] = {"model_fallbacks": ("demo=other",), "request_timeout_s": 5.0}
    async with running_gateway(socket_dir, **settings) as gateway:
        harness = Harness(gateway, await gateway.auth(), await gateway.engine(text=None))
        await gateway.engine(model="other", text=("Other",))
        read, unread = await harness.create(), await harness.create()
        for number in (1, 2):
            harness.engine.emit(await harness.generate(number), "Hello")
        for made in (read, unread):
            await told(gateway, made["id"], "Hello")
        await harness.told(read["id"], "response.output_text.delta")
        await gateway.departure(harness.engine)
        ended = await harness.ended(unread["id"])
        assert text_of(ended) == told_text(await harness.events(unread["id"])) == "Other"
        assert (await harness.get(read["id"]))["status"] == "in_progress"
        await gateway.engine(text=("Hello", ", world"))
        ended = await harness.ended(read["id"])
        assert text_of(ended) == told_text(await harness.events(read["id"])) == "Hello, world"


@pytest.mark.parametrize("is_first", [True, False])
async def test_its_stream_ends_with_its_key(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    monkeypatch.setattr("gateway.http.background.event_log.JUDGED_S", 0.0)
    body = {"model": "demo", "input": "hi", "background": True, "stream": True}
    if is_first:
        opened = harness.gateway.client.stream("POST", "/v1/responses", json=body)
    else:
        made = await harness.create()
        opened = harness.gateway.client.stream("GET", f"/v1/responses/{made['id']}?stream=true")
    async with opened as stream:
        assert stream.status_code == 200
        harness.engine.emit(await harness.generate(), "Hello")
        lines = stream.aiter_lines()
        async for line in lines:
            if "response.output_text.delta" in line:
                break
        harness.auth.denial = ErrorCode.INVALID_API_KEY
        *events, done = named_events_of("\n".join([line async for line in lines]))
    assert done == "[DONE]"
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "invalid_api_key")


async def test_cancelling_ends_it_once_and_books_what_was_used(harness: Harness) -> None:
    made = await harness.create()
    generate = await harness.generate()
    harness.engine.emit(generate, "Hello")
    await harness.until(made["id"], lambda found: found["status"] == "in_progress")
    path = f"/v1/responses/{made['id']}/cancel"
    cancelled = (await harness.gateway.client.post(path, json={})).json()
    assert cancelled["status"] == "cancelled"
    await harness.auth.until(lambda: len(harness.booked()) == 1)
    (booked,) = harness.booked()
    used = cancelled["usage"]
    assert (used["input_tokens"], used["output_tokens"]) == (
        booked.prompt_tokens,
        booked.completion_tokens,
    )
    assert used["output_tokens"] > 0
    assert await harness.get(made["id"]) == cancelled
    again = (await harness.gateway.client.post(path, json={})).json()
    assert again == cancelled
    events = await harness.events(made["id"])
    assert events[-1]["response"] == cancelled
    body = {"model": "demo", "input": "x", "previous_response_id": made["id"]}
    answer = await harness.gateway.client.post("/v1/responses", json=body)
    assert answer.status_code == 400


async def test_deleting_ends_it(harness: Harness) -> None:
    made = await harness.create()
    await harness.generate()
    path = f"/v1/responses/{made['id']}"
    assert (await harness.gateway.client.delete(path)).status_code == 200
    await harness.auth.until(lambda: len(harness.booked()) == 1)
    assert (await harness.gateway.client.get(path)).status_code == 404


async def test_a_server_that_is_full_is_waited_for(harness: Harness) -> None:
    harness.engine.text = ("Hello",)
    await harness.create(store=None)  # who calls is known from now on
    harness.auth.denial = ErrorCode.RATE_LIMIT_EXCEEDED
    harness.auth.retry_after_s = 0.01
    made = await harness.create()
    await harness.auth.until(lambda: len(harness.auth.of(Authorize)) >= 4)
    harness.auth.denial = None
    ended = await harness.ended(made["id"])
    assert (ended["status"], text_of(ended)) == ("completed", "Hello")
    await harness.auth.until(lambda: len(harness.booked()) == 2)


async def test_limits_that_no_wait_helps_are_an_end(harness: Harness) -> None:
    harness.engine.text = ("Hello",)
    await harness.create()
    harness.auth.denial = ErrorCode.INSUFFICIENT_QUOTA
    made = await harness.create()
    await harness.auth.until(lambda: len(harness.auth.of(Authorize)) >= 3)
    harness.auth.denial = None
    ended = await harness.ended(made["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "rate_limit_exceeded")
    events = await harness.events(made["id"])
    assert [event.get("code") for event in events[-2:]] == ["insufficient_quota", None]


async def test_what_is_wrong_fails_and_says_why(harness: Harness) -> None:
    harness.engine.generate_failure = ErrorCode.UNSUPPORTED_GRAMMAR
    made = await harness.create()
    ended = await harness.ended(made["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "invalid_prompt")
    events = await harness.events(made["id"])
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]


async def test_a_gateway_that_stops_hands_it_back_and_the_next_goes_on(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        harness = Harness(gateway, await gateway.auth(), await gateway.engine(text=None))
        made = await harness.create()
        generate = await harness.generate()
        harness.engine.emit(generate, "Hello, w")
        await harness.until(made["id"], lambda found: found["status"] == "in_progress")
        before = await told(gateway, made["id"], "Hello, w")
        await gateway.application.drain(5.0)
        assert harness.booked() == []
        first_lease = generate.lease_id
    async with running_gateway(socket_dir) as gateway:
        harness = Harness(gateway, await gateway.auth(), await gateway.engine(text=None))
        generate = await harness.generate()
        for piece in ("Hel", "lo, wor", "ld"):
            harness.engine.emit(generate, piece)
        harness.engine.finish(generate, completion_tokens=7)
        ended = await harness.ended(made["id"])
        assert text_of(ended) == "Hello, world"
        events = await harness.events(made["id"])
        assert events[: len(before)] == before
        assert told_text(events) == "Hello, world"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events].count("response.in_progress") == 1
        await harness.auth.until(lambda: len(harness.auth.settled()) >= 2)
        assert [(one.lease_id, one.completion_tokens) for one in harness.booked()] == [
            (first_lease, 7)
        ]


async def told(gateway: RunningGateway, response_id: str, text: str) -> list[dict[str, Any]]:
    """The events in the store, once they tell a text; nobody has read them by that."""
    store = gateway.application.store
    assert store is not None
    async with asyncio.timeout(60):
        while True:
            pieces = await store.jobs.told(response_id, -1)
            events = [event for piece in pieces for event in orjson.loads(piece.body)]
            if told_text(events) == text:
                return events
            await asyncio.sleep(0.01)


async def test_what_its_gateways_die_of_is_given_up(socket_dir: Path) -> None:
    """A row that five gateways took and none put back."""
    async with running_gateway(socket_dir) as gateway:
        harness = Harness(gateway, await gateway.auth(), await gateway.engine(text=None))
        background = gateway.application.background
        assert background is not None
        await background.stop()
        made = await harness.create()
    for number in range(5):
        database = Database(SqliteEngine(socket_dir / "data" / FILE_NAME))
        dead = Store(database, f"dead-{number}", Bounds())
        job = await dead.jobs.claim()
        assert job is not None
        assert job.takes == number + 1
        await dead.close()
    async with running_gateway(socket_dir) as gateway:
        harness = Harness(gateway, await gateway.auth(), await gateway.engine(text=None))
        ended = await harness.ended(made["id"])
        assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")
        assert harness.engine.of(Generate) == []


@pytest.mark.parametrize("kind", [StoreUnavailableError, OverloadedError])
async def test_a_store_in_passing_trouble_fails_no_response_that_is_made(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kind: type[GatewayError]
) -> None:
    monkeypatch.setattr("gateway.http.background.background_take._END_PAUSES_S", (0.0, 0.0, 0.0))
    store = harness.gateway.application.store
    assert store is not None
    real, num_failures = store.jobs.finish, 0

    async def finish(*args: Any) -> bool:
        nonlocal num_failures
        if num_failures < 3:
            num_failures += 1
            raise kind("It is away for a moment.")
        return await real(*args)

    monkeypatch.setattr(store.jobs, "finish", finish)
    made = await harness.create()
    generate = await harness.generate()
    harness.engine.emit(generate, "Hello")
    harness.engine.finish(generate)
    ended = await harness.ended(made["id"])
    assert (ended["status"], text_of(ended)) == ("completed", "Hello")
    assert num_failures == 3
    assert len(harness.engine.of(Generate)) == 1


async def test_a_store_that_answers_nothing_holds_up_no_stop(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.http.background.background_responses.STOP_S", 0.0)
    background = harness.gateway.application.background
    assert background is not None
    stuck, freed = asyncio.Event(), asyncio.Event()
    claim = background.store.jobs.claim

    async def waits() -> Any:
        stuck.set()
        await freed.wait()
        return await claim()

    monkeypatch.setattr(background.store.jobs, "claim", waits)
    background.look()
    await stuck.wait()
    await asyncio.wait_for(background.stop(), 60)
    assert "the store has not answered" in caplog.text
    freed.set()


async def test_a_store_that_is_away_is_told_by_ready_until_it_is_back(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away() -> Any:
        raise StoreUnavailableError("It is away.")

    await harness.gateway.parser()
    application = harness.gateway.application
    store, housekeeping = application.store, application._housekeeping
    assert store is not None
    (chore,) = (one for one in housekeeping._chores if one.name == "making background responses")
    housekeeping.stop()
    with monkeypatch.context() as patch:
        patch.setattr(store.jobs, "claim", away)
        for num_looks in range(1, 4):
            housekeeping._do(chore)
            await harness.gateway.until(lambda num=num_looks: chore.num_failures == num)
        health = await harness.gateway.client.get("/ready")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["missing"] == ["housekeeping: making background responses"]
        assert caplog.messages.count("background responses wait: It is away.") == 3
        assert not [one for one in caplog.records if one.exc_info]
    made = await harness.create()  # its look finds the store again
    await harness.generate()
    housekeeping._do(chore)
    await harness.gateway.until(lambda: chore.num_failures == 0)
    assert (await harness.gateway.client.get("/ready")).json()["status"] == "ready"
    await harness.gateway.client.delete(f"/v1/responses/{made['id']}")
