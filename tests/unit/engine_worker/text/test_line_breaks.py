"""What a model wrote comes out of the template as it was, line breaks included."""

import json
from typing import Any

import pytest

from engine_worker.text.chat_messages import parse_messages
from engine_worker.text.chat_template import ChatTemplate
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

CALLS = "{% for call in m.tool_calls %}{{ '\\n' }}({{ call.function.name }}){% endfor %}"
WITH_BREAKS = (
    "{% for m in messages %}<{{ m.role }}>{{ '\\n' }}{% if m.reasoning_content %}"
    "{{ '[\\n' + m.reasoning_content + '\\n]\\n' }}{% endif %}{{ m.content }}"
    + CALLS
    + "{% endfor %}"
)
"""Nemotron 3's around reasoning, Qwen 2.5's before calls."""
WITHOUT = (
    WITH_BREAKS.replace("'[\\n'", "'['").replace("'\\n]\\n'", "']'").replace("{{ '\\n' }}(", "(")
)
USER = {"role": "user", "content": "?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "\nwarm\n"}


def rendered(source: str, **said: Any) -> str:
    messages = [USER, {"role": "assistant", **said}, *([RESULT] if "tool_calls" in said else [])]
    template = ChatTemplate(byte_level_tokenizer(source), "m")
    parsed = parse_messages(json.dumps(messages))
    return str(template.render(parsed, add_generation_prompt=False, template_time=0))


@pytest.mark.parametrize("break_", ["\n", ""], ids=["as written", "stripped by the client"])
def test_breaks_that_the_template_writes_are_not_doubled(break_: str) -> None:
    start = "<user>\n?<assistant>\n"
    said = {"reasoning_content": f"{break_}so\n\nand so{break_}", "content": f"{break_}Four.\n"}
    assert rendered(WITH_BREAKS, **said) == f"{start}[\nso\n\nand so\n]\nFour.\n"
    beside = {"content": f"I look.{break_}", "tool_calls": [CALL]}
    assert rendered(WITH_BREAKS, **beside) == f"{start}I look.\n(f)<tool>\n\nwarm\n"


def test_breaks_stay_where_the_template_writes_none() -> None:
    said = {"reasoning_content": "\nso\n", "content": "\nI look.\n", "tool_calls": [CALL]}
    text = rendered(WITHOUT, **said)
    assert text == "<user>\n?<assistant>\n[\nso\n]\nI look.\n(f)<tool>\n\nwarm\n"
    # Without reasoning before it, a text begins as it does.
    assert rendered(WITH_BREAKS, content="\nFour.") == "<user>\n?<assistant>\n\nFour."


def test_calls_that_become_text_follow_it_on_the_next_line() -> None:
    """Falcon H1's: its template shows no calls, and tells of `<tool_call>` tags."""
    source = (
        "{# <tool_call> #}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if tools %}{{ tools | length }}{% endif %}"
    )
    called = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    for said in ("I look.", "I look.\n"):
        text = rendered(source, content=said, tool_calls=[CALL])
        assert text == f"<user>?<assistant>I look.\n{called}<tool>\nwarm\n"


def test_breaks_between_reasoning_and_text_that_become_one_are_not_the_template_s() -> None:
    """gpt-oss's."""
    source = (
        "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls and m.content and m.reasoning %}"
        "{{ raise_exception('Cannot pass both content and thinking') }}{% endif %}"
        "{% if m.reasoning %}({{ m.reasoning }}){% endif %}{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}"
    )
    text = rendered(source, content="\n\nFour.", reasoning_content="so\n\n")
    assert text == "<user>?<assistant>(so\n\n)\n\nFour."
