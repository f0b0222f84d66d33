"""Reasoning that an engine ends is reasoning up to there, and content behind, in every format."""

from typing import Any

import pytest

from engine_worker.text.thoughts import ThoughtLimit
from protocol.wire.messages import OpenParse, ParseDelta, Thought
from toolparser_worker.formats import REASONING_FORMATS
from toolparser_worker.machine.declarations import ReasoningFormat
from toolparser_worker.sessions import Session, SessionStore

FORMATS = {declared.name: declared for declared in REASONING_FORMATS.values()}
CLOSABLE = sorted(name for name, one in FORMATS.items() if one.closing and one.framing is None)
MUSINGS = "so and so " * 9
BUDGET = 35


def session(reasoning_format: str | None, **fields: Any) -> Session:
    store = SessionStore(max_sessions=9, idle_timeout_s=9.0, clock=lambda: 0.0)
    opening = OpenParse(request_id="r", attempt=1, reasoning_format=reasoning_format, **fields)
    return store.open(("g", "r", 1), opening)


def thought_of(declared: ReasoningFormat, **fields: Any) -> Thought:
    thought = session(declared.name, **fields).thought
    assert thought is not None
    return thought


def opened_prompt(declared: ReasoningFormat) -> str:
    return "assistant\n" + next(iter(declared.starts), "")


def ended(thought: Thought, drawn: str) -> str:
    """What an engine writes when the model draws these characters."""
    limit = ThoughtLimit(thought, BUDGET, lambda text: list(map(ord, text)))
    text, draws = "", list(drawn)
    while draws or limit.has_forced:
        character = chr(limit.next_forced()) if limit.has_forced else draws.pop(0)
        limit.push(ord(character), character, is_whole=True)
        text += character
    return text


def parsed(opened: Session, text: str) -> tuple[str, str]:
    """Reasoning and content, of a text that comes character by character."""
    found = {"reasoning": "", "content": ""}
    for end, character in enumerate(text, start=1):
        delta = ParseDelta("r", 0, 1, character, (end,), final=end == len(text))
        for event in opened.parse(delta).events:
            found[event.kind] += event.text
    return found["reasoning"], found["content"]


@pytest.mark.parametrize("name", CLOSABLE)
@pytest.mark.parametrize("writes_marker", [False, True])
def test_what_the_engine_ends_is_told_apart_there(name: str, writes_marker: bool) -> None:
    declared = FORMATS[name]
    start = declared.rendered_start or next(iter(declared.starts), "")
    if writes_marker and (declared.opens == "prompted" or not start):
        pytest.skip("only a prompt begins its reasoning")
    fields = {} if writes_marker else {"prompt_tail": opened_prompt(declared)}
    opened = session(name, **fields)
    thought = thought_of(declared, **fields)
    text = ended(thought, (start if writes_marker else "") + MUSINGS)
    reasoning, content = parsed(opened, text)
    # Where the text begins in reasoning, its own marker is counted, too.
    assert 0 < len(reasoning) <= BUDGET
    assert MUSINGS.startswith(reasoning.strip())
    assert content.strip()
    assert (reasoning.strip() + content.strip()).replace(" ", "") == MUSINGS.replace(" ", "")


@pytest.mark.parametrize("name", CLOSABLE)
def test_a_prompt_that_closed_it_leaves_none(name: str) -> None:
    declared = FORMATS[name]
    tail = f"assistant\n{next(iter(declared.starts), '')}\n\n{declared.closing}\n\n"
    assert thought_of(declared, prompt_tail=tail).begins == "no"


def test_where_it_begins_is_what_the_request_says() -> None:
    assert thought_of(FORMATS["qwen3"], thinking=False).begins == "marked"
    assert thought_of(FORMATS["qwen3"]).begins == "open"
    assert thought_of(FORMATS["deepseek_v3"]).begins == "no"


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - set(CLOSABLE)))
def test_a_format_without_a_marker_for_it_says_so(name: str) -> None:
    assert session(name).thought is None


def test_without_a_format_there_is_nothing_to_end() -> None:
    assert session(None).thought is None


def test_calls_end_it_where_the_format_says_so() -> None:
    tools = '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'
    with_tools = thought_of(FORMATS["glm45"], tool_format="hermes", tools_json=tools)
    assert "<tool_call>" in with_tools.ends
    assert "<tool_call>" not in thought_of(FORMATS["glm45"]).ends
    never = thought_of(FORMATS["deepseek_r1"], tool_format="hermes", tools_json=tools)
    assert "<tool_call>" not in never.ends
