"""Contexts that are summed up while tools are called, a server ends, or nothing can be said."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.http.openresponses.conversation import SUMMARY
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Failure, Generate, OpenParse, Prepare, Prepared
from tests.fakes.fake_workers import FakeParser
from tests.fakes.hosted_harness import CALL, Harness, kinds, listing
from tests.fakes.mcp_server import FakeMcpServer, mcp_server
from tests.fakes.running_gateway import running_gateway
from tests.integration.test_context_management import (
    LONG,
    MANAGED,
    SAID,
    SUMMED,
    CountingEngine,
    begun,
    engine_of,
    events_in_store,
    num_paid,
    opened,
)

pytestmark = pytest.mark.asyncio
FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "f",
    "parameters": {"type": "object", "properties": {}},
}


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "start " + "word " * 40},
    {"role": "assistant", "content": "a " * 20},
    {"role": "user", "content": "And now?"},
]


class ShortEngine(CountingEngine):
    """An engine with a context, whose prompts have a token for each word of a message."""

    context = 100

    def _prepare(self, prepare: Prepare) -> None:
        messages = json.loads(prepare.messages_json or "[]")
        num_words = sum(len((one.get("content") or "").split()) for one in messages)
        room = self.context - num_words
        if prepare.kind != "count" and room < (prepare.max_tokens or 1):
            too_long = ErrorCode.CONTEXT_LENGTH_EXCEEDED
            self.send(Failure(prepare.request_id, too_long, "too long", param="messages"))
            return
        prompt = tuple(range(num_words))
        self.send(Prepared(prepare.request_id, prompt, max_output_tokens=max(0, room)))


@asynccontextmanager
async def short(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    listed = listing(server, calc="/modern/json")
    async with running_gateway(socket_dir, mcp_servers=listed) as gateway:
        await gateway.parser()
        engine = ShortEngine(socket_dir, text=SAID, tool_format="hermes")
        gateway.workers.append(engine)
        engine.start()
        await gateway.until(lambda: gateway.is_known(engine) and bool(engine.worker.gateway_ids()))
        yield Harness(gateway, await gateway.auth(), engine, server)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


@pytest.fixture
async def harness(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    async with opened(socket_dir, server) as harness:
        yield harness


def choices_of(harness: Harness) -> list[str]:
    """The `tool_choice` of each turn whose output was told apart."""
    parser = next(one for one in harness.gateway.workers if isinstance(one, FakeParser))
    return [str(one.tool_choice) for one in parser.of(OpenParse)]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("required", "required"), ({"type": "function", "name": "f"}, "named")],
)
async def test_a_choice_of_tools_holds_for_the_first_turn_that_answers(
    harness: Harness, choice: Any, expected: str
) -> None:
    first = await begun(harness)
    harness.engine.script = [SUMMED, ("<call>", "{}")]
    found = await harness.post(
        input="And now?",
        tools=[FUNCTION],
        tool_choice=choice,
        previous_response_id=first,
        **MANAGED,
    )
    assert kinds(found) == ["compaction", "function_call"]
    assert choices_of(harness)[-1] == expected


async def test_turns_behind_the_first_answer_are_free_to_end(harness: Harness) -> None:
    harness.engine.script = [CALL, SUMMED, SAID]
    question = "2 + 3? " + "so " * 45
    found = await harness.post(input=question, tool_choice="required", **MANAGED)
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "compaction", "message"]
    chosen = choices_of(harness)
    assert (chosen[0], chosen[-1]) == ("required", "auto")


async def test_a_drain_lets_prompts_be_counted_between_turns(harness: Harness) -> None:
    requests = harness.gateway.application.requests
    real = harness.engine.answer

    def answer(command: Any) -> None:
        if isinstance(command, Generate):
            requests.is_draining = True
        real(command)

    harness.engine.answer = answer  # type: ignore[method-assign]
    harness.engine.script = [CALL, SUMMED, SAID]
    found = await harness.post(input="2 + 3? " + "so " * 45, **MANAGED)
    assert found["status"] == "completed"
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "compaction", "message"]
    refused = await harness.post(status=503, input=LONG, tools=[], **MANAGED)
    assert refused["error"]["code"] == "worker_unavailable"


async def test_a_blank_summary_stands_for_nothing(harness: Harness) -> None:
    first = await begun(harness)
    harness.engine.script = [("  ", "\n"), SAID]
    found = await harness.post(input="And now?", tools=[], previous_response_id=first, **MANAGED)
    assert (found["status"], kinds(found)) == ("completed", ["message"])
    assert [text for _, text in engine_of(harness).read()[-1]] == [LONG, "It is so.", "And now?"]
    # What the model was asked for is paid for and told.
    assert found["usage"]["output_tokens"] == 4
    await harness.gateway.until(lambda: num_paid(harness) == 3)
    following = await harness.post(input="Then?", tools=[], previous_response_id=found["id"])
    assert kinds(following) == ["message"]
    assert [text for _, text in engine_of(harness).read()[-1]] == [
        *(LONG, "It is so.", "And now?", "It is so.", "Then?")
    ]


async def test_who_may_make_a_response_may_have_its_prompts_counted(harness: Harness) -> None:
    first = await begun(harness)
    harness.engine.script = [SUMMED, SAID]
    num_before = len(harness.auth.of(Authorize))
    found = await harness.post(input="And now?", tools=[], previous_response_id=first, **MANAGED)
    assert kinds(found) == ["compaction", "message"]
    asked = harness.auth.of(Authorize)[num_before:]
    # A key may have the scope `responses` only.
    assert {one.endpoint for one in asked} == {"/v1/responses", "/v1/responses/compact"}


async def test_a_fallback_counts_the_prompts_that_it_answers(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    async with opened(
        socket_dir, server, models=("away",), model_fallbacks=("away=demo",)
    ) as harness:
        first = await begun(harness)
        harness.engine.script = [SUMMED, SAID]
        asked: dict[str, Any] = {"model": "away", "tools": [], "previous_response_id": first}
        found = await harness.post(input="And now?", **asked, **MANAGED)
        assert kinds(found) == ["compaction", "message"]


async def test_nothing_is_told_of_a_blank_summary(harness: Harness) -> None:
    first = await begun(harness)
    harness.engine.script = [("\n",), SAID]
    events = await harness.stream(input="And now?", tools=[], previous_response_id=first, **MANAGED)
    assert not [event for event in events if "compact" in json.dumps(event)]
    assert kinds(events[-1]["response"]) == ["message"]


async def test_a_model_that_sums_nothing_up_is_asked_once_in_a_response(harness: Harness) -> None:
    harness.engine.script = [CALL, (" ",), CALL, SAID]
    found = await harness.post(input="2 + 3? " + "so " * 45, **MANAGED)
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
    assert len(engine_of(harness).read()) == 4


async def test_a_blank_summary_is_made_and_booked_once_whatever_becomes_of_its_gateway(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    async with opened(socket_dir, server) as harness:
        first = await begun(harness)
        harness.engine.script, harness.engine.text = [("  ", "\n")], None
        asked = {"input": "And now?", "tools": [], "previous_response_id": first, **MANAGED}
        queued = await harness.post(background=True, **asked)
        await harness.engine.until(lambda: len(harness.engine.of(Generate)) == 3)
        begun_answer = harness.engine.of(Generate)[-1]
        harness.engine.emit(begun_answer, "It i")
        await events_in_store(harness, queued["id"], "response.output_text.delta")
        await harness.gateway.until(lambda: num_paid(harness) == 2)
        await harness.gateway.application.drain(5.0)
    async with opened(socket_dir, server) as harness:
        events = await events_in_store(harness, queued["id"], "response.completed")
        assert kinds(events[-1]["response"]) == ["message"]
        (answering,) = engine_of(harness).read()
        assert [text for _, text in answering] == [LONG, "It is so.", "And now?"]
        assert engine_of(harness).num_counted() == 0
        # The same turn as before, so that its text is the same.
        (again,) = harness.engine.of(Generate)
        assert again.sampling.seed == begun_answer.sampling.seed
        await harness.gateway.until(lambda: num_paid(harness) == 1)


async def test_a_blank_summary_is_an_error_of_the_route(harness: Harness) -> None:
    body = {"model": "demo", "input": HISTORY}
    harness.engine.script = [(" ",), (" All ", "of it. ")]
    answer = await harness.gateway.client.post("/v1/responses/compact", json=body)
    assert answer.status_code == 500
    assert "nothing in place of a summary" in answer.json()["error"]["message"]
    answer = await harness.gateway.client.post("/v1/responses/compact", json=body)
    assert [item["type"] for item in answer.json()["output"]] == [
        "message",
        "message",
        "compaction",
    ]


@pytest.mark.parametrize("fields", [{}, {"truncation": "auto"}])
async def test_what_is_too_long_to_be_summed_up_is_answered_as_it_is(
    socket_dir: Path, server: FakeMcpServer, fields: dict[str, Any]
) -> None:
    async with short(socket_dir, server) as harness:
        found = await harness.post(input=HISTORY, tools=[], **MANAGED, **fields)
        assert (found["status"], kinds(found)) == ("completed", ["message"])
        summing, answering = engine_of(harness).read()
        assert summing[-1][1].startswith("Summarize the conversation above")
        assert [text for _, text in answering] == [item["content"] for item in HISTORY]
        plain = await harness.post(input=HISTORY, tools=[], **fields)
        assert kinds(plain) == ["message"]
        assert engine_of(harness).read()[-1] == answering


async def test_what_is_too_long_altogether_is_left_out_as_ever(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    items = [*HISTORY[:2], {"role": "user", "content": "And now? " + "x " * 60}]
    async with short(socket_dir, server) as harness:
        found = await harness.post(input=items, tools=[], truncation="auto", **MANAGED)
        assert kinds(found) == ["message"]
        assert engine_of(harness).read()[-1] == [("user", items[2]["content"])]
        refused = await harness.post(status=400, input=items, tools=[], **MANAGED)
        assert refused["error"]["code"] == "context_length_exceeded"


async def test_a_summary_takes_what_the_context_leaves(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    async with short(socket_dir, server) as harness:
        assert isinstance(harness.engine, ShortEngine)
        harness.engine.context = 500
        harness.engine.script = [SUMMED]
        found = await harness.post(input=HISTORY, tools=[], **MANAGED)
        assert kinds(found) == ["compaction", "message"]


async def test_a_background_response_that_can_not_be_summed_up_is_booked_once(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    async with short(socket_dir, server) as harness:
        queued = await harness.post(input=HISTORY, tools=[], background=True, **MANAGED)
        events = await events_in_store(harness, queued["id"], "response.completed")
        assert kinds(events[-1]["response"]) == ["message"]
        await harness.gateway.until(lambda: num_paid(harness) == 1)
        paid = [one for one in harness.auth.settled() if not one.is_unused]
        assert [one.completion_tokens for one in paid] == [2]


async def test_a_lease_of_an_earlier_attempt_is_left_to_the_turn_that_answers(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    async with short(socket_dir, server) as harness:
        harness.engine.text = None
        queued = await harness.post(input=HISTORY, tools=[], background=True, **MANAGED)
        await harness.engine.until(lambda: len(harness.engine.of(Generate)) == 1)
        harness.engine.emit(harness.engine.of(Generate)[-1], "It i")
        await events_in_store(harness, queued["id"], "response.output_text.delta")
        await harness.gateway.application.drain(5.0)
    async with short(socket_dir, server) as harness:
        events = await events_in_store(harness, queued["id"], "response.completed")
        assert kinds(events[-1]["response"]) == ["message"]
        await harness.gateway.until(lambda: num_paid(harness) == 1)
        booked = [one for one in harness.auth.settled() if not one.is_unused]
        assert [one.completion_tokens for one in booked] == [2]


OPEN_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": LONG},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"role": "user", "content": "Also by train?"},
]
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": "x"}


async def test_a_call_whose_output_stays_is_not_summed_up(harness: Harness) -> None:
    harness.engine.script = [SUMMED, SAID]
    found = await harness.post(input=[*OPEN_CALL, OUTPUT], tools=[], **MANAGED)
    assert (found["status"], kinds(found)) == ("completed", ["compaction", "message"])
    assert engine_of(harness).read()[-1] == [
        ("user", f"{SUMMARY}The user said words."),
        ("assistant", None),
        ("user", "Also by train?"),
        ("tool", "x"),
    ]


async def test_an_output_may_come_behind_a_summary(harness: Harness) -> None:
    harness.engine.script = [SUMMED, SAID, SAID]
    first = await harness.post(input=OPEN_CALL, tools=[], **MANAGED)
    assert kinds(first) == ["compaction", "message"]
    found = await harness.post(input=[OUTPUT], tools=[], previous_response_id=first["id"])
    assert kinds(found) == ["message"]
    assert [role for role, _ in engine_of(harness).read()[-1]] == [
        *("user", "assistant", "user", "assistant", "tool")
    ]


async def test_a_compacted_context_keeps_what_the_system_says(harness: Harness) -> None:
    """It was lost: no item of the answer said it, and the summary is the model's own words."""
    harness.engine.script = [SUMMED, SAID, SUMMED, SAID, SAID]
    system = [
        {"role": "system", "content": "Speak plainly."},
        {"role": "developer", "content": "Be brief."},
    ]
    items: list[dict[str, Any]] = [*system, *HISTORY]
    said = [one for one in HISTORY if one["role"] == "user"]
    # Compacted once more, the first summary is among what the second one stands for.
    for text in ("Then?", "And then?"):
        body = {"model": "demo", "input": items}
        answer = await harness.gateway.client.post("/v1/responses/compact", json=body)
        output = answer.json()["output"]
        assert output[-1]["type"] == "compaction"
        kept = [item["content"][0]["text"] for item in output[:-1]]
        assert kept == [one["content"] for one in said]
        question = {"role": "user", "content": text}
        items = [*output, question]
        await harness.post(input=items, tools=[])
        before = [(one["role"], one["content"]) for one in [*system, *said]]
        summary = ("user", f"{SUMMARY}The user said words.")
        assert engine_of(harness).read()[-1] == [*before, summary, ("user", text)]
        said = [*said, question]
    # Where a client says it again itself, it stands once.
    await harness.post(input=[*system, *items], tools=[])
    assert [text for _, text in engine_of(harness).read()[-1]].count("Be brief.") == 1


async def test_what_is_before_a_compaction_may_be_left_out(harness: Harness) -> None:
    """As OpenAI's guide allows it: the question and what the system says aren't lost."""
    harness.engine.script = [SUMMED, SAID, SAID, SAID]
    before = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "It is so."},
        {"role": "user", "content": "And now?"},
    ]
    first = await harness.post(input=before, tools=[], **MANAGED)
    assert kinds(first) == ["compaction", "message"]
    told = [*first["output"], {"role": "user", "content": "Then?"}]
    for items in ([*before, *told], told):
        await harness.post(input=items, tools=[])
        assert engine_of(harness).read()[-1] == [
            ("developer", "Be brief."),
            ("user", f"{SUMMARY}The user said words."),
            ("user", "And now?"),
            ("assistant", "It is so."),
            ("user", "Then?"),
        ]


async def test_a_loop_of_calls_may_drop_what_is_before_its_compaction(harness: Harness) -> None:
    harness.engine.script = [SUMMED, ("<call>", "{}"), SAID]
    before = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "It is so."},
        {"role": "user", "content": "And now?"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        OUTPUT,
    ]
    first = await harness.post(input=before, tools=[FUNCTION], **MANAGED)
    assert kinds(first) == ["compaction", "function_call"]
    second = {**OUTPUT, "call_id": first["output"][1]["call_id"], "output": "y"}
    await harness.post(input=[*first["output"], second], tools=[FUNCTION])
    assert engine_of(harness).read()[-1] == [
        ("user", f"{SUMMARY}The user said words."),
        ("user", "And now?"),
        *(("assistant", None), ("tool", "x")),
        *(("assistant", None), ("tool", "y")),
    ]
