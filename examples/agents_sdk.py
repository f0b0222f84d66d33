"""OpenAI's Agents SDK with its default API, Responses: an agent that calls a Python function.

make serve                                     # in another terminal
.venv/bin/pip install openai-agents
.venv/bin/python examples/agents_sdk.py "What is the weather in Berlin?"
"""

import asyncio
import os
import sys

from agents import Agent, OpenAIResponsesModel, RunConfig, Runner, function_tool
from openai import AsyncOpenAI


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
        city: Its name.
    """
    return f'{{"city": "{city}", "temperature": {10 + len(city)}, "condition": "sunny"}}'


async def main() -> None:
    """Let the agent answer one question."""
    client = AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "not-needed-on-loopback"),
    )
    agent = Agent(
        name="helper",
        model=OpenAIResponsesModel(model="penstock-demo", openai_client=client),
        tools=[get_weather],
    )
    question = " ".join(sys.argv[1:]) or "What is the weather in Berlin?"
    # The SDK's own traces go to OpenAI.
    result = await Runner.run(agent, question, run_config=RunConfig(tracing_disabled=True))
    print(result.final_output)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
