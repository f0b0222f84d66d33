"""A tool loop: the model calls Python functions until it answers.

make serve                                     # in another terminal
.venv/bin/pip install openai
.venv/bin/python examples/tool_loop.py "What is the weather in Berlin?"
"""

import json
import os
import sys
from typing import Any

from openai import OpenAI

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
MAX_ROUNDS = 4


def get_weather(city: str) -> dict[str, Any]:
    """A stand-in for a weather service."""
    return {"temperature": 10 + len(city), "condition": "sunny"}


def main() -> None:
    """Ask, run what the model calls, hand the results back, print the answer."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "not-needed-on-loopback"),
    )
    question = " ".join(sys.argv[1:]) or "What is the weather in Berlin?"
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(MAX_ROUNDS):
        completion = client.chat.completions.create(
            model="penstock-demo", messages=messages, tools=TOOLS
        )
        message = completion.choices[0].message
        if not message.tool_calls:
            print(message.content)
            return
        messages.append(message)
        for call in message.tool_calls:
            if call.type != "function":
                continue
            result = get_weather(**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) -> {result}")
            messages.append(
                {"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)}
            )


if __name__ == "__main__":
    main()
