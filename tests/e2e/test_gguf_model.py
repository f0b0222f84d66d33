"""The bundled model as a GGUF file, by the real command: it says what its folder's model says."""

from typing import Any

import httpx
import pytest

from tests.e2e.harness import Harness
from tests.e2e.test_chat_with_the_openai_sdk import MODEL, WEATHER, ask

pytestmark = pytest.mark.process


def test_a_chat_and_a_tool_call_are_those_of_the_folder(pair: Harness, harness: Harness) -> None:
    def answer(client: Any, model: str, **options: Any) -> dict[str, Any]:
        message = (
            client.chat.completions.create(model=model, temperature=0, **options)
            .choices[0]
            .message.model_dump()
        )
        for call in message["tool_calls"] or ():
            call.pop("id")
        return dict(message)

    ours, theirs = pair.client(), harness.client()
    chat = answer(theirs, MODEL, messages=ask("What is 12 + 30?"))
    assert "42" in chat["content"]
    assert answer(ours, "tiny-F32", messages=ask("What is 12 + 30?")) == chat
    request = {"messages": ask("What is the weather in Paris?"), "tools": [WEATHER]}
    call = answer(theirs, MODEL, **request)
    assert [one["function"]["name"] for one in call["tool_calls"]] == ["get_weather"]
    assert answer(ours, "tiny-F32", **request) == call
    card = httpx.get(f"{pair.url}/v1/models/tiny-F32", trust_env=False).json()
    assert card["compute"]["stored_as"] == "GGUF F32"
    assert card["compute"]["weights"] == "float32"
