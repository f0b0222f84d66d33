"""A response whose context has grown too long sums its beginning up by itself, and goes on."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import connect

from gateway.http.openresponses.conversation import SUMMARY
from gateway.http.response_turns.compactor import threshold_of
from protocol.errors import ErrorCode
from protocol.wire.messages import Generate, Prepare, Prepared
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.hosted_harness import CALL, Harness, kinds, listing
from tests.fakes.mcp_server import FakeMcpServer, mcp_server
from tests.fakes.running_gateway import named_events_of, running_gateway

pytestmark = pytest.mark.asyncio
LONG = "word " * 60
SUMMED = ("The user ", "said words.")
SAID = ("It is ", "so.")
MANAGED: dict[str, Any] = {"context_management": [{"type": "compaction", "compact_threshold": 50}]}


class CountingEngine(FakeEngine):
    """An engine whose prompts have a token for each word."""

    def _prepare(self, prepare: Prepare) -> None:
        num_words = len((prepare.messages_json or "").split())
        prompt = tuple(range(num_words))
        prepared = Prepared(prepare.request_id, prompt, max_output_tokens=4096, template_time=7)
        self.send(prepared)

    def read(self) -> list[list[tuple[str, str]]]:
        """Roles and texts of the prompts that were generated from, in order."""
        made = [one for one in self.of(Prepare) if one.kind == "chat"]
        return [
            [(one["role"], one.get("content")) for one in json.loads(prepare.messages_json)]
            for prepare in made
        ]

    def num_counted(self) -> int:
        return sum(one.kind == "count" for one in self.of(Prepare))


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


@asynccontextmanager
async def opened(
    socket_dir: Path, server: FakeMcpServer, **settings: Any
) -> AsyncIterator[Harness]:
    listed = listing(server, calc="/modern/json")
    async with running_gateway(socket_dir, mcp_servers=listed, **settings) as gateway:
        await gateway.parser()
        engine = CountingEngine(socket_dir, text=SAID, tool_format="hermes")
        gateway.workers.append(engine)
        engine.start()
        await gateway.until(lambda: gateway.is_known(engine) and bool(engine.worker.gateway_ids()))
        yield Harness(gateway, await gateway.auth(), engine, server)


@pytest.fixture
async def harness(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    async with opened(socket_dir, server) as harness:
        yield harness


def engine_of(harness: Harness) -> CountingEngine:
    assert isinstance(harness.engine, CountingEngine)
    return harness.engine


async def begun(harness: Harness) -> str:
    """A stored response that others go on from."""
    found = await harness.post(input=LONG, tools=[])
    name: str = found["id"]
    return name


def num_paid(harness: Harness) -> int:
    return sum(one.completion_tokens > 0 for one in harness.auth.settled())


async def test_what_is_before_the_last_message_is_summed_up(harness: Harness) -> None:
    first = await begun(harness)
    harness.engine.script = [SUMMED]
    found = await harness.post(input="And now?", tools=[], previous_response_id=first, **MANAGED)
    assert kinds(found) == ["compaction", "message"]
    assert found["output"][0]["id"].startswith("cmp_")
    asked, summing, answering = engine_of(harness).read()
    assert asked == [("user", LONG)]
    assert [text for _, text in summing[:2]] == [LONG, "It is so."]
    assert summing[2][1].startswith("Summarize the conversation above")
    assert answering == [("user", f"{SUMMARY}The user said words."), ("user", "And now?")]
    # Both turns of the model are paid for and told.
    assert found["usage"]["output_tokens"] == 4
    await harness.gateway.until(lambda: num_paid(harness) == 3)


async def test_later_turns_go_on_from_the_summary(harness: Harness) -> None:
    harness.engine.script = [SAID, SUMMED, SAID, SAID]
    second = await harness.post(
        input="And now?", tools=[], previous_response_id=await begun(harness), **MANAGED
    )
    third = await harness.post(
        input="Then?", tools=[], previous_response_id=second["id"], **MANAGED
    )
    assert kinds(third) == ["message"]
    told = [
        ("user", f"{SUMMARY}The user said words."),
        ("user", "And now?"),
        ("assistant", "It is so."),
        ("user", "Then?"),
    ]
    assert engine_of(harness).read()[-1] == told
    # The same from a client that sends everything itself.
    items = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "It is so."},
        {"role": "user", "content": "And now?"},
        *second["output"],
        {"role": "user", "content": "Then?"},
    ]
    await harness.post(input=items, tools=[])
    assert engine_of(harness).read()[-1] == told
    listed = await harness.gateway.client.get(f"/v1/responses/{third['id']}/input_items")
    assert [item["content"][0]["text"] for item in listed.json()["data"]] == ["Then?"]


async def test_its_events_come_in_order(harness: Harness) -> None:
    first = await begun(harness)
    harness.engine.script = [SUMMED]
    events = await harness.stream(input="And now?", tools=[], previous_response_id=first, **MANAGED)
    told = [event["type"].removeprefix("response.") for event in events]
    assert told[:6] == [
        *("created", "in_progress", "output_item.added", "compaction.compacting"),
        *("output_item.done", "output_item.added"),
    ]
    assert told[-1] == "completed"
    added, compacting, done = events[2:5]
    assert added["item"] == {**done["item"], "encrypted_content": ""}
    assert compacting["item_id"] == done["item"]["id"]
    assert compacting["output_index"] == 0
    output = events[-1]["response"]["output"]
    assert output[0] == done["item"]
    assert [item["type"] for item in output] == ["compaction", "message"]
    kept = await harness.gateway.client.get(f"/v1/responses/{events[-1]['response']['id']}")
    assert kept.json()["output"] == output
    again = await harness.gateway.client.get(
        f"/v1/responses/{events[-1]['response']['id']}", params={"stream": "true"}
    )
    *replayed, _ = named_events_of(again.text)
    assert [event["type"] for event in replayed][:5] == [event["type"] for event in events][:5]


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "short", "context_management": []},
        {"input": "short", "context_management": None},
        {"input": "short", **MANAGED},
        # There is nothing but what is to be answered.
        {"input": LONG, **MANAGED},
        {
            "input": [{"role": "system", "content": LONG}, {"role": "user", "content": "?"}],
            **MANAGED,
        },
    ],
)
async def test_what_is_short_or_can_not_be_shorter_is_left_alone(
    harness: Harness, fields: dict[str, Any]
) -> None:
    found = await harness.post(tools=[], **fields)
    assert kinds(found) == ["message"]
    assert len(engine_of(harness).read()) == 1


async def test_a_prompt_is_counted_where_it_could_be_shorter(harness: Harness) -> None:
    items = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert kinds(await harness.post(input=items, tools=[], **MANAGED)) == ["message"]
    assert engine_of(harness).num_counted() == 1


@pytest.mark.parametrize("entry", [{}, {"compact_threshold": None}])
async def test_without_a_threshold_the_context_of_the_model_says_it(
    harness: Harness, entry: dict[str, None]
) -> None:
    """Of 4,096 tokens 1,152 are kept for the summary and what asks for it."""
    managed: dict[str, Any] = {"context_management": [{"type": "compaction", **entry}]}
    wanted = [["message"], ["compaction", "message"]]
    for num_words, kinds_wanted in zip((2900, 2950), wanted, strict=True):
        first = (await harness.post(input="word " * num_words, tools=[]))["id"]
        harness.engine.script = [SUMMED] if len(kinds_wanted) > 1 else [SAID]
        found = await harness.post(input="?", tools=[], previous_response_id=first, **managed)
        assert kinds(found) == kinds_wanted


@pytest.mark.parametrize(
    ("context", "output", "threshold"),
    [
        (131_072, None, 98_304),
        (131_072, 50_000, 81_072),
        (4096, None, 2944),
        (2048, None, 896),
        (2048, 2048, 512),
    ],
)
async def test_the_threshold_leaves_room_for_the_answer_and_for_the_summary(
    context: int, output: int | None, threshold: int
) -> None:
    assert threshold_of(context, output) == threshold


async def test_what_tools_have_said_is_summed_up_between_turns(harness: Harness) -> None:
    """A loop of an agent: the question stays, and what came of the calls becomes a summary."""
    harness.engine.script = [CALL, SUMMED, SAID]
    question = "2 + 3? " + "so " * 45
    found = await harness.post(input=question, **MANAGED)
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "compaction", "message"]
    summing, answering = engine_of(harness).read()[1:]
    assert [role for role, _ in summing] == ["user", "assistant", "tool", "user"]
    assert answering == [("user", f"{SUMMARY}The user said words."), ("user", question)]


async def test_conversations_keep_the_summary(harness: Harness) -> None:
    client = harness.gateway.client
    made = (await client.post("/v1/conversations", json={})).json()
    harness.engine.script = [SAID, SUMMED, SAID, SAID]
    for text in (LONG, "And now?", "Then?"):
        await harness.post(input=text, tools=[], conversation=made["id"], **MANAGED)
    assert [text for _, text in engine_of(harness).read()[-1]] == [
        f"{SUMMARY}The user said words.",
        *("And now?", "It is so.", "Then?"),
    ]
    items = await client.get(f"/v1/conversations/{made['id']}/items", params={"order": "asc"})
    assert [item["type"] for item in items.json()["data"]].count("compaction") == 1


async def test_over_a_websocket_it_is_the_same(harness: Harness) -> None:
    url = f"ws://127.0.0.1:{harness.gateway.client.base_url.port}/v1/responses"
    first = await begun(harness)
    harness.engine.script = [SUMMED]
    body = {
        "type": "response.create",
        "model": "demo",
        "input": "And now?",
        "store": False,
        "previous_response_id": first,
        **MANAGED,
    }
    async with connect(url, proxy=None) as socket:
        events = await told_by(socket, body)
        assert [item["type"] for item in events[-1]["response"]["output"]] == [
            *("compaction", "message")
        ]
        following = {**body, "input": "Then?", "previous_response_id": events[-1]["response"]["id"]}
        await told_by(socket, following)
    assert [text for _, text in engine_of(harness).read()[-1]] == [
        f"{SUMMARY}The user said words.",
        *("And now?", "It is so.", "Then?"),
    ]


async def told_by(socket: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    await socket.send(json.dumps(body))
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != "response.completed":
        found.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
    return found


async def events_in_store(harness: Harness, name: str, kind: str) -> list[dict[str, Any]]:
    store = harness.gateway.application.store
    assert store is not None
    async with asyncio.timeout(20):
        while True:
            pieces = await store.jobs.told(name, -1)
            events = [event for piece in pieces for event in orjson.loads(piece.body)]
            if kind in [event["type"] for event in events]:
                return events
            await asyncio.sleep(0.01)


async def test_a_summary_is_made_once_whatever_becomes_of_its_gateway(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    async with opened(socket_dir, server) as harness:
        first = await begun(harness)
        harness.engine.script, harness.engine.text = [SUMMED], None
        body: dict[str, Any] = {
            "input": "And now?",
            "tools": [],
            "previous_response_id": first,
            **MANAGED,
        }
        queued = await harness.post(background=True, **body)
        await harness.engine.until(lambda: len(harness.engine.of(Generate)) == 3)
        harness.engine.emit(harness.engine.of(Generate)[-1], "It i")
        before = await events_in_store(harness, queued["id"], "response.output_text.delta")
        await harness.gateway.application.drain(5.0)
    async with opened(socket_dir, server) as harness:
        client = harness.gateway.client
        answer = await client.get(f"/v1/responses/{queued['id']}", params={"stream": "true"})
        *events, _ = named_events_of(answer.text)
        assert events[: len(before)] == before
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        found = events[-1]["response"]
        assert kinds(found) == ["compaction", "message"]
        assert found["output"][1]["content"][0]["text"] == "It is so."
        (answering,) = engine_of(harness).read()
        assert answering == [("user", f"{SUMMARY}The user said words."), ("user", "And now?")]
        assert engine_of(harness).num_counted() == 0


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([{"type": "other", "compact_threshold": 5}], "context_management[0].type"),
        (
            [{"type": "compaction", "compact_threshold": "5"}],
            "context_management[0].compact_threshold",
        ),
        (
            [{"type": "compaction", "compact_threshold": 0}],
            "context_management[0].compact_threshold",
        ),
        ([{"type": "compaction", "compact_threshold": 5}] * 2, "context_management"),
        ({"type": "compaction"}, "context_management"),
    ],
)
async def test_a_wrong_value_names_its_field(harness: Harness, value: object, param: str) -> None:
    found = await harness.post(status=400, tools=[], context_management=value)
    assert found["error"]["param"] == param


async def test_a_summary_that_fails_fails_the_response(harness: Harness) -> None:
    first = await begun(harness)
    harness.engine.generate_failure = ErrorCode.INTERNAL_ERROR
    body: dict[str, Any] = {
        "input": "And now?",
        "tools": [],
        "previous_response_id": first,
        **MANAGED,
    }
    found = await harness.post(status=500, **body)
    assert found["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"role": "nobody", "content": "x"}, "input[0].role"),
        ({"type": "function_call_output", "call_id": "c", "output": "x"}, "input[0].call_id"),
    ],
)
async def test_what_a_summary_stands_for_has_to_be_right_too(
    harness: Harness, wrong: dict[str, Any], param: str
) -> None:
    summary = {"type": "compaction", "encrypted_content": "eA=="}
    items = [
        wrong,
        {"role": "assistant", "content": "a"},
        summary,
        {"role": "user", "content": "?"},
    ]
    found = await harness.post(status=400, tools=[], input=items)
    assert found["error"]["param"] == param


async def test_an_output_behind_a_summary_needs_its_call(harness: Harness) -> None:
    items = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "a"},
        {"type": "compaction", "encrypted_content": "eA=="},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    found = await harness.post(status=400, tools=[], input=items)
    assert found["error"]["param"] == "input[3].call_id"
