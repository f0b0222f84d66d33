"""The shipped chat template through transformers: roles, tools and Hermes calls."""

import json
import random
import re
from typing import Any

import pytest

from engine_worker.demo import demo_model_path
from tests.fakes.late import transformers
from tools.demo_model.grammar import training_conversation
from tools.demo_model.packing import ChatFormat
from tools.demo_model.readme_prompts import GET_WEATHER

WEATHER_SIGNATURE = '{"name": "get_weather", "arguments": {"city": "string"}}'


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(demo_model_path())


def render(tokenizer: Any, messages: list[dict[str, object]], **options: object) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def call_message(
    arguments: object, content: str | None = None, count: int = 1
) -> dict[str, object]:
    call = {"function": {"name": "get_weather", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call] * count}


def test_training_sees_what_transformers_renders(tokenizer: Any) -> None:
    chat_format = ChatFormat(demo_model_path())
    for seed in range(40):
        item = training_conversation(random.Random(seed), max_characters=0)
        rendered = render(tokenizer, list(item.messages), tools=list(item.tools) or None)
        assert rendered == chat_format.render(item)


def test_prompt_ids_are_those_of_transformers(tokenizer: Any) -> None:
    chat_format = ChatFormat(demo_model_path())
    item = training_conversation(random.Random(3), max_characters=0)
    text = render(tokenizer, list(item.messages), tools=None, add_generation_prompt=True)
    rendered_ids = tokenizer.encode(text, add_special_tokens=False)
    prompt = type(item)(item.messages, ())
    assert chat_format.prompt_ids(prompt) == rendered_ids


def test_a_tool_is_shown_in_the_shape_of_its_call(tokenizer: Any) -> None:
    text = render(tokenizer, [user("Hi")], tools=[GET_WEATHER], add_generation_prompt=True)
    assert text == (
        f"<|im_start|>system\n<tools>\n{WEATHER_SIGNATURE}\n</tools><|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_choices_optional_arguments_and_unions_are_shown(tokenizer: Any) -> None:
    properties = {
        "unit": {"enum": ["c", "f"]},
        "limit": {"type": ["integer", "null"]},
        "anything": {},
        "items": {"type": "array"},
    }
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": properties, "required": ["unit"]}},
    }
    text = render(tokenizer, [user("Hi")], tools=[tool])
    assert (
        '{"unit": "c|f", "limit": "integer|null?", "anything": "any?", "items": "array?"}' in text
    )


def test_a_tool_without_parameters_is_shown(tokenizer: Any) -> None:
    tool = {"type": "function", "function": {"name": "ping", "description": "Ping."}}
    assert '{"name": "ping", "arguments": {}}' in render(tokenizer, [user("Hi")], tools=[tool])


@pytest.mark.parametrize("arguments", [{"city": "São Paulo"}, '{"city": "São Paulo"}'])
def test_a_call_in_history_round_trips(tokenizer: Any, arguments: object) -> None:
    text = render(tokenizer, [user("Hi"), call_message(arguments)])
    (body,) = re.findall(r"<tool_call>\n(.*)\n</tool_call>", text)
    assert json.loads(body) == {"name": "get_weather", "arguments": {"city": "São Paulo"}}
    assert body == '{"name": "get_weather", "arguments": {"city": "São Paulo"}}'


def test_several_calls_and_text_are_set_apart_by_line_breaks(tokenizer: Any) -> None:
    message = call_message({"city": "Oslo"}, content="Let me look.", count=2)
    text = render(tokenizer, [user("Hi"), message])
    assert "assistant\nLet me look.\n<tool_call>\n" in text
    assert "</tool_call>\n<tool_call>\n" in text
    assert text.endswith("</tool_call><|im_end|>\n")


def test_a_tool_message_is_a_tool_response(tokenizer: Any) -> None:
    message: dict[str, object] = {"role": "tool", "content": '{"temperature": 18}'}
    text = render(tokenizer, [user("Hi"), call_message({"city": "Oslo"}), message])
    wanted = '<|im_start|>tool\n<tool_response>\n{"temperature": 18}\n</tool_response><|im_end|>\n'
    assert text.endswith(wanted)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_and_developer_are_the_system_turn(tokenizer: Any, role: str) -> None:
    instruction: dict[str, object] = {"role": role, "content": "Be kind."}
    text = render(tokenizer, [instruction, user("Hi")], tools=[GET_WEATHER])
    assert text.startswith(f"<|im_start|>system\nBe kind.\n<tools>\n{WEATHER_SIGNATURE}\n")
    late = render(tokenizer, [user("Hi"), instruction])
    assert late.endswith("<|im_start|>system\nBe kind.<|im_end|>\n")


def test_content_parts_are_joined(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert render(tokenizer, [user(parts)]) == render(tokenizer, [user("Hello")])
