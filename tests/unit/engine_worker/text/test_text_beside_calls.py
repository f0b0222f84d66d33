"""What an assistant says beside calls of tools, under templates that show one or the other."""

import json
from typing import Any

import pytest

from engine_worker.text.chat_messages import parse_messages
from engine_worker.text.chat_template import ChatTemplate
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

CALLS = "{% for call in m.tool_calls %}({{ call.function.name }}){% endfor %}"
ONE_OR_THE_OTHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}"
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""Llama 3.1's."""
ALTERNATING = (
    "{% set ns = namespace(index=0) %}"
    "{% for m in messages %}{% if not (m.role == 'tool' or m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.index % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, roles must alternate') }}{% endif %}"
    "{% set ns.index = ns.index + 1 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""Mistral's, up to Small 3.1."""
AS_REASONING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}"
    "{% if not messages[loop.index:] | rejectattr('tool_calls')"
    " | selectattr('role', 'equalto', 'assistant') | list %}"
    "{{ m.content }}{% endif %}" + CALLS + "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""gpt-oss's: shown until an answer follows."""
CALLS_WITHOUT_TEXT = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and m['content'] is none %}"
    + CALLS
    + "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
"""DeepSeek R1's, which leaves out the calls beside a text."""
ONCE = (
    "{% set ns = namespace(called=false) %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.tool_calls %}{% if not ns.called and m['content'] is not none %}{{ m['content'] }}"
    "{% endif %}{% set ns.called = true %}"
    + CALLS
    + "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
"""DeepSeek V3's, which shows text beside the first calls of a conversation alone."""
BOTH = "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + CALLS + "{% endfor %}"


def rendered(source: str, *messages: dict[str, Any]) -> str:
    template = ChatTemplate(byte_level_tokenizer(source), "m")
    parsed = parse_messages(json.dumps(messages))
    return str(template.render(parsed, add_generation_prompt=False, template_time=0))


def asked(content: str | None, *names: str, **fields: Any) -> dict[str, Any]:
    calls = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in names
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **fields}


def result(name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{name}", "content": content}


USER = {"role": "user", "content": "?"}
ANSWER = {"role": "assistant", "content": "Warm."}
AGAIN = {"role": "user", "content": "So?"}
TURN = [USER, asked("I look.", "f"), result("f", "warm"), ANSWER, AGAIN]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (BOTH, "<user>?<assistant>I look.(f)<tool>warm<assistant>Warm.<user>So?"),
        (
            ONE_OR_THE_OTHER,
            "<user>?<assistant>I look.<assistant>(f)<tool>warm<assistant>Warm.<user>So?",
        ),
        (
            ONCE,
            "<user>?<assistant>I look.<assistant>(f)<tool>warm<assistant>Warm.<user>So?",
        ),
        (
            CALLS_WITHOUT_TEXT,
            "<user>?<assistant>I look.<assistant>(f)<tool>warm<assistant>Warm.<user>So?",
        ),
        (ALTERNATING, "<user>?<assistant>(f)<tool>warm<assistant>I look.\n\nWarm.<user>So?"),
        (AS_REASONING, "<user>?<assistant>(f)<tool>warm<assistant>Warm.<user>So?"),
    ],
    ids=["both", "one or the other", "once", "text alone", "alternating", "as reasoning"],
)
def test_text_and_calls_are_kept_where_the_template_would_leave_one_out(
    source: str, text: str
) -> None:
    assert rendered(source, *TURN) == text


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_calls_beside_an_empty_text_are_calls_beside_none(content: str | None) -> None:
    turn = [USER, asked(content, "f"), result("f", "warm")]
    assert rendered(CALLS_WITHOUT_TEXT, *turn) == "<user>?<assistant>(f)<tool>warm"


def test_what_was_said_before_is_said_before_each_of_several_calls_once() -> None:
    text = rendered(
        ONE_OR_THE_OTHER,
        USER,
        asked("I look.", "f", "g", reasoning_content="hm"),
        result("f", "warm"),
        result("g", "dry"),
        asked(" ", "f"),
        result("f", "hot"),
    )
    assert text == (
        "<user>?<assistant>I look.<assistant>(f)<tool>warm<assistant>(g)<tool>dry"
        "<assistant>(f)<tool>hot"
    )


def test_where_roles_alternate_the_next_answer_says_what_was_said() -> None:
    loop = [USER, asked("I look.", "f"), result("f", "warm"), asked("Again.", "g")]
    answered = rendered(ALTERNATING, *loop, result("g", "dry"), ANSWER)
    assert answered == (
        "<user>?<assistant>(f)<tool>warm<assistant>(g)<tool>dry"
        "<assistant>I look.\n\nAgain.\n\nWarm."
    )
    # A person interrupts: that is the answer.
    stopped = rendered(ALTERNATING, *loop, AGAIN)
    assert stopped == (
        "<user>?<assistant>(f)<tool>warm<assistant>(g)<assistant>I look.\n\nAgain.<user>So?"
    )


def test_where_roles_alternate_the_first_text_is_an_answer_until_one_follows() -> None:
    """What the model said before its calls was left out while they were answered."""
    once = [USER, asked("I look.", "f"), result("f", "warm")]
    first = rendered(ALTERNATING, *once)
    assert first == "<user>?<assistant>I look.<assistant>(f)<tool>warm"
    # What follows leaves it where it is, for the cache's sake.
    again = rendered(ALTERNATING, *once, asked("Again.", "g"), result("g", "dry"))
    assert again == f"{first}<assistant>(g)<tool>dry"
    later = rendered(ALTERNATING, *TURN, asked("Now g.", "g", reasoning_content="hm"))
    assert later == (
        "<user>?<assistant>(f)<tool>warm<assistant>I look.\n\nWarm.<user>So?"
        "<assistant>Now g.<assistant>(g)"
    )


def test_an_answer_right_before_calls_is_what_was_said_beside_them() -> None:
    """Clients of the Responses API send them apart; joined, the text was left out."""
    apart = [USER, {"role": "assistant", "content": "I look."}, asked(None, "f")]
    loop = [*apart, result("f", "warm")]
    assert rendered(ALTERNATING, *loop) == "<user>?<assistant>I look.<assistant>(f)<tool>warm"
    assert rendered(ALTERNATING, *loop, ANSWER) == (
        "<user>?<assistant>(f)<tool>warm<assistant>I look.\n\nWarm."
    )
