"""Exchanges that need tools: offered schemas, requests, calls, results and answers."""

import json
from dataclasses import dataclass
from typing import Protocol

from tools.demo_model.conversation import (
    Exchange,
    Message,
    Schema,
    assistant,
    assistant_calls,
    dress,
    lower_first,
    tool_result,
    user,
)
from tools.demo_model.draw import Draw
from tools.demo_model.tool_catalog import CATALOG, Slot, Tool
from tools.demo_model.values import Scalar, Value, draw_value, json_type

_FIELD_KINDS = ("word", "words", "code", "person", "city", "item", "file", "time", "date", "topic")
_NUMBER_KINDS = ("amount", "small", "small", "decimal")


@dataclass(frozen=True)
class Ask:
    """One request for one call, and what the tool would answer."""

    sentence: str
    name: str
    arguments: dict[str, Scalar]
    result: dict[str, Scalar]
    answer: str
    combination: str


class OfferedTool(Protocol):
    """A tool as one request offers it: with the names it has there."""

    name: str
    schema: Schema

    def ask(self, draw: Draw) -> Ask:
        """A request for this tool with freshly drawn values."""
        ...

    def answers(self, pattern: str) -> bool:
        """Whether this tool is the one that a catalog phrasing asks for."""
        ...


def function_schema(
    name: str, properties: dict[str, dict[str, object]], required: list[str]
) -> Schema:
    """A function in the shape of OpenAI's `tools` parameter."""
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


class OfferedCatalogTool:
    """A tool of the catalog under one of its names."""

    def __init__(self, draw: Draw, tool: Tool) -> None:
        self._tool = tool
        self.name = draw.choice(tool.names)
        if draw.split == "open" or (draw.split == "train" and draw.chance(0.1)):
            self.name = f"{draw.listed('verb')}_{self.name}"
        # An optional argument may be missing from the schema, then nobody asks for it.
        slots = [slot for slot in tool.slots if not slot.said or draw.chance(0.5)]
        self._slots: list[tuple[Slot, str]] = []
        for slot in slots:
            used = {name for _, name in self._slots}
            free = [name for name in slot.names if name not in used]
            self._slots.append((slot, draw.choice(free)))
        properties: dict[str, dict[str, object]] = {}
        for slot, name in self._slots:
            properties[name] = {"type": json_type(slot.kind)}
            if slot.kind == "boolean":
                properties[name] = {"type": "boolean"}
            elif slot.kind == "enum":
                properties[name]["enum"] = list(slot.options)
        required = [name for slot, name in self._slots if not slot.said]
        self.schema = function_schema(self.name, properties, required)

    def answers(self, pattern: str) -> bool:
        return pattern in self._tool.asks

    def ask(self, draw: Draw) -> Ask:
        pattern = draw.choice(self._tool.asks)
        question = pattern.endswith("?")
        said: dict[str, str] = {}
        arguments: dict[str, Scalar] = {}
        tail = ""
        for slot, name in self._slots:
            if slot.said and draw.chance(0.45):
                continue
            value = _slot_value(draw, slot)
            said[slot.names[0]] = value.said
            arguments[name] = value.json
            tail += slot.said
        sentence = (pattern.rstrip("?") + tail).format(**said) + ("?" if question else "")
        result, answer = self._result(draw, said, arguments)
        combination = f"{self._tool.key}|{pattern}|{sorted(map(str, arguments.values()))}"
        return Ask(sentence, self.name, arguments, result, answer, combination)

    def _result(
        self, draw: Draw, said: dict[str, str], arguments: dict[str, Scalar]
    ) -> tuple[dict[str, Scalar], str]:
        """What the tool answers, sometimes with fields that nobody asked for, and its sentence."""
        is_short = bool(self._tool.short_answer) and draw.chance(0.3)
        result: dict[str, Scalar] = {}
        values = dict(said)
        for aliases, kind in self._tool.result[: 1 if is_short else None]:
            value = draw_value(draw, kind)
            result[draw.choice(aliases)] = value.json
            values[aliases[0]] = value.said
        if draw.chance(0.2):
            name, value = draw.choice(_EXTRA_FIELDS), draw_value(draw, "small")
            result[name] = "celsius" if name == "unit" else value.json
        if draw.chance(0.25):
            result = {next(iter(arguments)): next(iter(arguments.values())), **result}
        answer = self._tool.short_answer if is_short else self._tool.answer
        return result, answer.format(**values)


_EXTRA_FIELDS = ("unit", "unit", "humidity", "duration", "version")


def _slot_value(draw: Draw, slot: Slot) -> Value:
    if slot.kind == "boolean":
        on = draw.chance(0.5)
        return Value(on, slot.options[0] if on else slot.options[1])
    if slot.kind == "enum":
        return Value.of(draw.choice(slot.options))
    return draw_value(draw, slot.kind)


class OfferedComposedTool:
    """A tool whose name and arguments are composed from word lists, and asked for by them."""

    def __init__(self, draw: Draw) -> None:
        self._verb, self._noun = draw.listed("verb"), draw.listed("noun")
        self.name = draw.choice(
            (
                f"{self._verb}_{self._noun}",
                f"{self._verb}_{self._noun}",
                f"{self._verb}{self._noun.capitalize()}",
            )
        )
        self._fields: dict[str, str] = {}
        for _ in range(draw.choice((1, 1, 2, 2, 3))):
            kind = draw.choice((*_FIELD_KINDS, *_NUMBER_KINDS, "boolean"))
            word = draw.listed("number_field" if kind in _NUMBER_KINDS else "field")
            if draw.chance(0.25):
                word = f"{self._noun}_{word}"
            if word.split("_")[-1] not in {name.split("_")[-1] for name in self._fields}:
                self._fields[word] = kind
        properties: dict[str, dict[str, object]] = {
            name: {"type": "boolean" if kind == "boolean" else json_type(kind)}
            for name, kind in self._fields.items()
        }
        self.schema = function_schema(self.name, properties, list(self._fields))

    def answers(self, pattern: str) -> bool:
        return pattern.lower().startswith(f"{self._verb} ")

    def ask(self, draw: Draw) -> Ask:
        values = {
            name: Value.of(draw.chance(0.5)) if kind == "boolean" else draw_value(draw, kind)
            for name, kind in self._fields.items()
        }
        linked = draw.choice(("{} {}", "{} {}", "{} = {}", "{}: {}", "{} is {}"))
        quoted = draw.chance(0.2)
        parts = []
        for name, value in values.items():
            is_text = isinstance(value.json, str)
            said = f'"{value.said}"' if is_text and (quoted or " " in value.said) else value.said
            shown = name if draw.chance(0.3) else name.split("_")[-1]
            parts.append(linked.format(shown, said))
        if draw.chance(0.25):
            draw.rng.shuffle(parts)
        listing = draw.choice((" and ", ", ")).join(parts)
        action = f"{self._verb} {draw.choice(('', 'the ', 'a ', 'my '))}{self._noun}"
        pattern = draw.choice(_COMPOSED_ASKS)
        sentence = pattern.format(
            action=action, Action=action.capitalize(), name=self.name, listing=listing
        )
        arguments = {name: value.json for name, value in values.items()}
        combination = f"composed|{self.name}|{pattern}|{sorted(map(str, arguments.values()))}"
        result, answer = _composed_result(draw)
        return Ask(sentence, self.name, arguments, result, answer, combination)


_COMPOSED_ASKS = (
    "{Action} with {listing}",
    "{Action} with {listing}",
    "{Action}: {listing}",
    "Use {name} with {listing}",
    "Call {name} with {listing}",
    "I want to {action} where {listing}",
    "{Action} whose {listing}",
    "With {listing}, {action}",
)


def _composed_result(draw: Draw) -> tuple[dict[str, Scalar], str]:
    """A result of drawn fields and the sentence that reads it out."""
    result: dict[str, Scalar] = {}
    for _ in range(draw.integer(1, 3)):
        kind = draw.choice((*_FIELD_KINDS, *_NUMBER_KINDS))
        result[draw.listed("number_field" if kind in _NUMBER_KINDS else "field")] = draw_value(
            draw, kind
        ).json
    listing = " and ".join(f"the {name} is {value}" for name, value in result.items())
    return result, listing[:1].upper() + listing[1:] + "."


def offer_tools(draw: Draw, count: int) -> list[OfferedTool]:
    """Tools with different names, from the catalog or composed."""
    offered: list[OfferedTool] = []
    names: set[str] = set()
    catalog = draw.sample(CATALOG, count)
    for tool in catalog:
        composed = draw.chance(0.35)
        candidate: OfferedTool = (
            OfferedComposedTool(draw) if composed else OfferedCatalogTool(draw, tool)
        )
        if candidate.name not in names:
            names.add(candidate.name)
            offered.append(candidate)
    return offered


def call_exchange(draw: Draw, offered: list[OfferedTool], *, with_result: bool) -> Exchange:
    """A request for one of the offered tools, its call, and often the result's answer."""
    ask = draw.choice(offered).ask(draw)
    text, lowered = dress(draw, ask.sentence)
    calls = [(ask.name, _typed(ask.arguments, lowered=lowered))]
    messages: list[Message] = [user(text), assistant_calls(calls)]
    if with_result:
        messages += _result_messages(draw, [ask], lowered=lowered)
    return Exchange(tuple(messages), ask.combination)


def several_calls_exchange(
    draw: Draw, offered: list[OfferedTool], *, with_result: bool
) -> Exchange:
    """A request that needs two or three calls at once."""
    first = draw.choice(offered)
    asks = [first.ask(draw)]
    values = [str(value) for value in asks[0].arguments.values()]
    if len(values) == 1 and draw.chance(0.7):
        sentence = _several_values(draw, first, asks)
    else:
        asks.append(draw.choice(offered).ask(draw))
        sentence = _joined_sentences(draw, asks)
    text, lowered = dress(draw, sentence)
    calls = [(ask.name, _typed(ask.arguments, lowered=lowered)) for ask in asks]
    messages: list[Message] = [user(text), assistant_calls(calls)]
    if with_result:
        messages += _result_messages(draw, asks, lowered=lowered)
    return Exchange(tuple(messages), "&".join(sorted(ask.combination for ask in asks)))


def _several_values(draw: Draw, tool: OfferedTool, asks: list[Ask]) -> str:
    """Names more values in the first request; extends `asks` with their calls."""
    (value,) = map(str, asks[0].arguments.values())
    said = value.lower() if value in ("True", "False") else value
    sentence = asks[0].sentence
    if sentence.count(said) != 1:
        asks.append(tool.ask(draw))
        return _joined_sentences(draw, asks)
    others: list[str] = []
    for _ in range(draw.choice((1, 1, 2))):
        other = tool.ask(draw)
        found = [str(item) for item in other.arguments.values()]
        if len(found) == 1 and found[0] not in (value, *others):
            others.append(found[0])
            asks.append(other)
    quoted = f'"{said}"' in sentence
    listing = [f'"{item}"' if quoted else item for item in (said, *others)]
    last_link = " and in " if f" in {said}" in sentence and draw.chance(0.4) else " and "
    words = last_link.join((", ".join(listing[:-1]), listing[-1])) if others else listing[0]
    return sentence.replace(f'"{said}"' if quoted else said, words)


def _joined_sentences(draw: Draw, asks: list[Ask]) -> str:
    question = any(ask.sentence.endswith("?") for ask in asks)
    if question or draw.chance(0.2):
        return " ".join(_ended(ask.sentence) for ask in asks)
    link = draw.choice((" and ", " and then ", ", then "))
    return link.join([asks[0].sentence, *(lower_first(ask.sentence) for ask in asks[1:])])


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith("?") else sentence + "."


def _typed(arguments: dict[str, Scalar], *, lowered: bool) -> dict[str, object]:
    return {
        name: value.lower() if lowered and isinstance(value, str) else value
        for name, value in arguments.items()
    }


def _result_messages(draw: Draw, asks: list[Ask], *, lowered: bool) -> list[Message]:
    messages: list[Message] = []
    answers = []
    for index, ask in enumerate(asks):
        words = draw_value(draw, "words").said
        kind = draw.rng.random()
        if kind < 0.04:
            messages.append(tool_result(index, {"error": words}))
            answers.append(f"That did not work: {words}.")
        elif kind < 0.1:
            messages.append(tool_result(index, words))
            answers.append(f"The result is: {words}.")
        else:
            messages.append(tool_result(index, ask.result))
            answers.append(_answer_as_asked(ask) if lowered else ask.answer)
    return [*messages, assistant(" ".join(answers))]


def _answer_as_asked(ask: Ask) -> str:
    """The answer with the request's values in the small letters they were typed in."""
    answer = ask.answer
    for value in ask.arguments.values():
        if isinstance(value, str):
            answer = answer.replace(value, value.lower())
    return answer


def spell_call(name: str, arguments: dict[str, object]) -> str:
    """A call exactly as the model writes it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"
