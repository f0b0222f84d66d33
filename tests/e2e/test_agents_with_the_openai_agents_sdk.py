"""OpenAI's Agents SDK with its default API, Responses: tools, memory on the server, streams."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    HostedMCPTool,
    ModelSettings,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from agents.model_settings import MCPToolChoice

from tests.e2e.harness import Harness

pytestmark = pytest.mark.asyncio
MODEL = "penstock-demo"
QUIET = RunConfig(tracing_disabled=True)


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
        city: Its name.
    """
    return f'{{"city": "{city}", "temperature": 18, "condition": "sunny"}}'


@pytest.fixture
async def agent(harness: Harness) -> AsyncIterator[Agent[Any]]:
    async with openai.AsyncOpenAI(base_url=f"{harness.url}/v1", api_key="any") as client:
        yield Agent(
            name="helper",
            model=OpenAIResponsesModel(model=MODEL, openai_client=client),
            model_settings=ModelSettings(temperature=0),
            tools=[get_weather],
        )


async def test_a_tool_is_called_and_its_result_told(agent: Agent[Any]) -> None:
    result = await Runner.run(agent, "What is the weather in Paris?", run_config=QUIET)
    assert "18" in result.final_output
    kinds = [item.type for item in result.new_items]
    assert kinds == ["tool_call_item", "tool_call_output_item", "message_output_item"]


async def test_a_run_is_streamed(agent: Agent[Any]) -> None:
    whole = await Runner.run(agent, "What is the weather in Paris?", run_config=QUIET)
    stream = Runner.run_streamed(agent, "What is the weather in Paris?", run_config=QUIET)
    kinds = [event.type async for event in stream.stream_events()]
    assert "raw_response_event" in kinds
    assert stream.final_output == whole.final_output


async def test_the_server_remembers_by_response_and_by_conversation(
    agent: Agent[Any], harness: Harness
) -> None:
    first = await Runner.run(agent, "What is 2 + 3?", run_config=QUIET)
    second = await Runner.run(
        agent, "Why?", previous_response_id=first.last_response_id, run_config=QUIET
    )
    assert second.last_response_id != first.last_response_id
    client = harness.client()
    conversation = client.conversations.create()
    await Runner.run(
        agent, "What is the weather in Paris?", conversation_id=conversation.id, run_config=QUIET
    )
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert [item.type for item in items] == [
        *("message", "function_call", "function_call_output", "message"),
    ]


@pytest.mark.parametrize("choice", [MCPToolChoice("weather", "get_weather"), "mcp"])
async def test_the_server_calls_the_tools_of_an_mcp_server(agent: Agent[Any], choice: Any) -> None:
    hosted = HostedMCPTool({"type": "mcp", "server_label": "weather", "require_approval": "never"})
    asks = agent.clone(
        tools=[hosted], model_settings=ModelSettings(temperature=0, tool_choice=choice)
    )
    result = await Runner.run(asks, "What is the weather in Paris?", run_config=QUIET)
    listed, call, *_, said = result.new_items
    assert (listed.type, call.type, said.type) == (
        *("mcp_list_tools_item", "tool_call_item", "message_output_item"),
    )
    raw: Any = call.raw_item
    assert "sunny" in raw.output
