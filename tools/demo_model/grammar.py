"""The mix: which conversations training sees, and which examples evaluation asks."""

import random
from collections.abc import Callable

from tools.demo_model.conversation import (
    Conversation,
    Example,
    Exchange,
    Message,
    assistant,
    assistant_calls,
)
from tools.demo_model.draw import Draw, Split
from tools.demo_model.readme_prompts import README_PROMPTS, ReadmePrompt
from tools.demo_model.talk import TALK, missing_tool
from tools.demo_model.tool_talk import (
    OfferedTool,
    call_exchange,
    offer_tools,
    several_calls_exchange,
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Answer in one short sentence.",
    "You are penstock-demo.",
    "Be concise.",
    "You can call tools.",
    "Use the tools when they help.",
    "You are a helpful assistant that can use tools. Call a function when it is needed.",
    "You are an assistant with access to the following functions.",
    "Today is a good day. Help the user.",
)

_TALK_WEIGHTS = {
    "talk": 13,
    "beyond": 5,
    "arithmetic": 44,
    "copy": 18,
    "count": 12,
    "sort": 14,
    "facts": 12,
    "json": 12,
}

TOOL_CATEGORIES = (
    "call, one tool",
    "call, two tools",
    "call, three tools",
    "call, four tools",
    "several calls",
    "call in a later turn",
)
LATE_CALL = "call late in a full context"
CATEGORIES = (
    *TOOL_CATEGORIES,
    LATE_CALL,
    "tools offered, none needed",
    "tools offered, none fits",
    "answer from a result",
    *(f"{name}" for name in TALK),
)
_MAX_DRAWS = 2_000
_NUM_TOOLS = {category: count for count, category in enumerate(TOOL_CATEGORIES[:4], start=1)}


def pinned_conversation(prompt: ReadmePrompt) -> Conversation:
    """A README prompt with the answer that is promised for it."""
    if prompt.call is not None:
        answer = assistant_calls([prompt.call])
    else:
        answer = assistant(prompt.answer or "")
    return Conversation((*prompt.messages, answer), prompt.tools)


def training_conversation(rng: random.Random, *, max_characters: int) -> Conversation:
    """One conversation for training; only combinations that evaluation never asks.

    Args:
        rng: the only source of randomness.
        max_characters: exchanges are added until about here, when above 2,000; shorter
            conversations have one to three exchanges.
    """
    draw = Draw(rng, "train")
    if draw.chance(0.02):
        return pinned_conversation(draw.choice(README_PROMPTS))
    offered = offer_tools(draw, draw.choice((1, 1, 2, 2, 2, 3, 3, 4))) if draw.chance(0.66) else []
    messages: list[Message] = []
    if draw.chance(0.25):
        messages.append({"role": "system", "content": _system_prompt(draw)})
    num_exchanges = draw.choice((1, 1, 1, 2, 2, 3))
    is_long = max_characters > 2_000
    num_characters = 0
    while num_characters < max_characters if is_long else num_exchanges > 0:
        exchange = _accepted(draw, lambda: _training_exchange(draw, offered))
        messages += exchange.messages
        num_characters = _num_characters(messages)
        num_exchanges -= 1
    return Conversation(tuple(messages), tuple(tool.schema for tool in offered))


def _num_characters(messages: list[Message]) -> int:
    """Roughly, with the words around a turn."""
    return sum(40 + len(str(message["content"])) for message in messages)


def _system_prompt(draw: Draw) -> str:
    """One of the usual ones, or one that says something of its own, which changes no answer."""
    if draw.chance(0.6):
        return draw.choice(SYSTEM_PROMPTS)
    pattern = draw.choice(
        (
            "You are a {0} assistant.",
            "You are {1}, the {0} helper of {2}.",
            "Your name is {1}. You talk about {0} and {3}.",
            "You work for {2}. The user likes {3}. Never mention {0}.",
            "The user is {1} and lives in {4}. {3} is the topic.",
        )
    )
    kinds = ("word", "person", "company", "topic", "city")
    return pattern.format(*(draw.listed(kind) for kind in kinds))


def _training_exchange(draw: Draw, offered: list[OfferedTool]) -> Exchange:
    if offered:
        kind = draw.rng.random()
        with_result = draw.chance(0.35)
        if kind < 0.62:
            return call_exchange(draw, offered, with_result=with_result)
        if kind < 0.80:
            return several_calls_exchange(draw, offered, with_result=with_result)
        if kind < 0.88:
            return _missing(draw, offered)
    elif draw.chance(0.03):
        return missing_tool(draw)
    names = list(_TALK_WEIGHTS)
    (name,) = draw.rng.choices(names, [_TALK_WEIGHTS[name] for name in names])
    return TALK[name](draw)


def _missing(draw: Draw, offered: list[OfferedTool]) -> Exchange:
    """A request that no offered tool fits: drawn again while one of the same kind is there."""
    while True:
        exchange = missing_tool(draw)
        pattern = exchange.combination.split("|")[1]
        if not any(tool.answers(pattern) for tool in offered):
            return exchange


class _ExhaustedError(Exception):
    """The offered tools have no combination that belongs to the split."""


def _accepted(draw: Draw, make: Callable[[], Exchange]) -> Exchange:
    """Draws until the combination belongs to the split.

    Raises:
        _ExhaustedError: None of `_MAX_DRAWS` did: tools without arguments have few combinations.
    """
    pinned = {prompt.question for prompt in README_PROMPTS}
    for _ in range(_MAX_DRAWS):
        exchange = make()
        is_pinned = draw.split != "train" and exchange.messages[0]["content"] in pinned
        if draw.accepts(exchange.combination) and not is_pinned:
            return exchange
    raise _ExhaustedError


def example(rng: random.Random, category: str, split: Split) -> Example:
    """One evaluation example of a category at the `closed` or the `open` level."""
    draw = Draw(rng, split)
    while True:
        try:
            return _example(draw, category)
        except _ExhaustedError:
            continue


def _example(draw: Draw, category: str) -> Example:
    before: list[Message] = []
    offered: list[OfferedTool] = []
    if category in TALK:
        exchange = _accepted(draw, lambda: TALK[category](draw))
    else:
        offered = offer_tools(draw, _NUM_TOOLS.get(category) or draw.integer(1, 3))
        if category == "call in a later turn":
            for _ in range(draw.integer(1, 3)):
                before += _accepted(draw, lambda: _earlier_exchange(draw, offered)).messages
        elif category == LATE_CALL:
            # About 1,500 tokens.
            while _num_characters(before) < 4_000:
                before += _accepted(draw, lambda: _earlier_exchange(draw, offered)).messages
        exchange = _accepted(draw, lambda: _tool_exchange(draw, category, offered))
    *asked, expected = exchange.messages
    prompt = Conversation((*before, *asked), tuple(tool.schema for tool in offered))
    return Example(category, prompt, expected)


def _earlier_exchange(draw: Draw, offered: list[OfferedTool]) -> Exchange:
    if draw.chance(0.5):
        return call_exchange(draw, offered, with_result=True)
    return TALK[draw.choice(("arithmetic", "copy", "facts", "talk"))](draw)


def _tool_exchange(draw: Draw, category: str, offered: list[OfferedTool]) -> Exchange:
    if category == "several calls":
        return several_calls_exchange(draw, offered, with_result=False)
    if category == "tools offered, none needed":
        return TALK[draw.choice(("arithmetic", "copy", "facts", "talk", "sort"))](draw)
    if category == "tools offered, none fits":
        return _missing(draw, offered)
    return call_exchange(draw, offered, with_result=category == "answer from a result")
