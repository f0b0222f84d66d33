"""The shapes that the grammar produces: exchanges, conversations and evaluation examples."""

import json
from dataclasses import dataclass

from tools.demo_model.draw import Draw

Message = dict[str, object]
Schema = dict[str, object]


@dataclass(frozen=True)
class Exchange:
    """One question and what follows from it.

    Attributes:
        messages: from a user message to an assistant message.
        combination: names the drawn combination; decides training or evaluation.
    """

    messages: tuple[Message, ...]
    combination: str


@dataclass(frozen=True)
class Conversation:
    """Messages and the tools offered with them, as in a chat request."""

    messages: tuple[Message, ...]
    tools: tuple[Schema, ...] = ()


@dataclass(frozen=True)
class Example:
    """One evaluation question: a conversation and the assistant message that must follow."""

    category: str
    prompt: Conversation
    expected: Message


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant message with text."""
    return {"role": "assistant", "content": text}


def assistant_calls(calls: list[tuple[str, dict[str, object]]]) -> Message:
    """An assistant message that calls functions; arguments are objects."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for index, (name, arguments) in enumerate(calls)
        ],
    }


def tool_result(index: int, result: object) -> Message:
    """The message with the result of call `index` of the turn before: plain text, or JSON."""
    content = result if isinstance(result, str) else json.dumps(result)
    return {"role": "tool", "tool_call_id": f"call_{index}", "content": content}


_BEFORE_REQUEST = (
    "Please ",
    "Can you ",
    "Could you ",
    "Could you please ",
    "Hey, ",
    "I need you to ",
    "Now ",
    "Hi! ",
    "Would you ",
)
_BEFORE_QUESTION = ("Hey, ", "Hi! ", "Quick question: ", "So, ", "Tell me: ", "Hello. ", "And ")
_AFTER = (" please", " now", " today", " for me", ", thanks", " right now", ", please")


def lower_first(text: str) -> str:
    """The text with a small first letter, to follow other words."""
    return text[:1].lower() + text[1:]


def dress(draw: Draw, sentence: str) -> tuple[str, bool]:
    """Puts a bare sentence as people do: politeness, punctuation, all small letters.

    Returns:
        The text and whether all of it, values included, was made lower case.
    """
    question = sentence.endswith("?")
    text = sentence.rstrip("?.")
    polite = False
    if draw.chance(0.35) and not text.startswith("I "):
        before = draw.choice(_BEFORE_QUESTION if question else _BEFORE_REQUEST)
        joined = text if before.endswith(("! ", ". ", ": ")) else lower_first(text)
        # A value or a name at the start keeps its case.
        text = before + (joined if text.split(" ")[0].isalpha() else text)
        polite = before.startswith(("Can", "Could", "Would"))
    if draw.chance(0.2) and not text.endswith(('"', "'")):
        text += draw.choice(_AFTER)
    ending = ("?", "?", "?", "") if question or polite else (".", ".", "", "", "!")
    text += draw.choice(ending)
    if draw.chance(0.08):
        return text.lower(), True
    return text, False
