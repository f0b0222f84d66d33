"""Contexts that are summed up while tools are called, a server ends, or nothing can be said."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.wire.messages import Generate, OpenParse
from tests.fakes.fake_workers import FakeParser
from tests.fakes.hosted_harness import CALL, Harness, kinds
from tests.fakes.mcp_server import FakeMcpServer, mcp_server
from tests.integration.test_context_management import (
    LONG,
    MANAGED,
    SAID,
    SUMMED,
    begun,
    opened,
)

pytestmark = pytest.mark.asyncio
FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "f",
    "parameters": {"type": "object", "properties": {}},
}


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
