"""Gives a conversation the form that a model's chat template can take.

Clients send what other models wrote: system messages in several places, arguments that were cut
off, ids of another length, two messages of one role in turn. Templates refuse some of that, or
leave it out silently. What a template can take is found out when it is loaded, by rendering
short conversations with it.
"""

import hashlib
import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

JsonObject = dict[str, Any]

_BETWEEN: Final = "\n\n"
_INSTRUCTIONS: Final = ("system", "developer")
_SHORT_ID: Final = re.compile("[a-zA-Z0-9]{9}")
_ID_ALPHABET: Final = string.ascii_letters + string.digits
_MAX_NESTED_TEXTS: Final = 2
"""How often arguments may be JSON text within JSON text."""


@dataclass(frozen=True, slots=True)
class HistoryRules:
    """What a template can take.

    Attributes:
        developer: It has a role `developer`; otherwise those are system messages.
        null_content: It asks whether content is none; otherwise that is an empty text.
        argument_objects: Arguments of tool calls as objects, otherwise as JSON text.
        system: A system message at the beginning; otherwise it is the user's, and goes before what
            follows of the user's.
        late_system: System messages later; otherwise their texts go into the first one.
        repeats: Messages of one role in turn; otherwise they become one.
        opening_answer: An assistant's message at the beginning; otherwise an empty one of the user
            goes before it.
        empty_answer: An assistant's message without text; otherwise it is left out.
        any_ids: Ids of tool calls of any form; otherwise they are mapped to nine letters and
            digits.
        several_calls: Several calls in one message; otherwise each has a message of its own, with
            its result behind it.
    """

    developer: bool = True
    null_content: bool = False
    argument_objects: bool = True
    system: bool = True
    late_system: bool = True
    repeats: bool = True
    opening_answer: bool = True
    empty_answer: bool = True
    any_ids: bool = True
    several_calls: bool = True


def probe_rules(
    render: Callable[[list[JsonObject]], str | None],
    *,
    developer: bool,
    null_content: bool,
    argument_objects: bool,
) -> HistoryRules:
    """Find out what a template can take.

    Args:
        render: The text of a conversation; None when the template refuses it.
        developer: See `HistoryRules`, as the next two.
        null_content: Read from its source.
        argument_objects: Found by rendering a call.
    """

    def shows(*turns: tuple[str, str]) -> bool:
        """Whether the texts of a conversation come out in their order."""
        text = render([{"role": role, "content": content} for role, content in turns])
        place = 0
        for _, content in turns:
            place = -1 if text is None else text.find(content, place)
            if place < 0:
                return False
        return True

    known = HistoryRules(
        developer=developer, null_content=null_content, argument_objects=argument_objects
    )
    first, second = ("user", "probe-u1"), ("user", "probe-u2")
    answer, system = ("assistant", "probe-a1"), ("system", "probe-s1")
    if not shows(first, answer, second):
        # A template that shows no plain conversation tells nothing about others.
        return known
    takes_system = shows(system, first)
    late = ("system", "probe-s2")
    return HistoryRules(
        developer=developer,
        null_content=null_content,
        argument_objects=argument_objects,
        system=takes_system,
        late_system=takes_system and shows(system, first, answer, late, second),
        repeats=shows(first, second) and shows(first, answer, ("assistant", "probe-a2"), second),
        opening_answer=shows(answer, first),
        empty_answer=shows(first, ("assistant", ""), second),
        any_ids=_takes_calls(render, known, "call_0123456789abcdef")
        or not _takes_calls(render, known, "abcdefghi"),
        several_calls=_takes_calls(render, known, "abcdefghi", "jklmnopqr")
        or not _takes_calls(render, known, "abcdefghi"),
    )


def _takes_calls(
    render: Callable[[list[JsonObject]], str | None], rules: HistoryRules, *ids: str
) -> bool:
    """Whether the template takes one message with calls of these ids, and their results."""
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": call_id, "type": "function", "function": function} for call_id in ids]
    results = [{"role": "tool", "content": "!", "tool_call_id": one, "name": "f"} for one in ids]
    question = {"role": "user", "content": "?"}
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    return render(shaped([question, answer, *results], rules)) is not None


def shaped(messages: list[JsonObject], rules: HistoryRules) -> list[JsonObject]:
    """The messages in a form that the template can take; the given ones are left as they are.

    Instructions at the beginning (of the system and the developer) always become one message:
    models know one.
    """
    shaped_messages = [_shaped_message(message, rules) for message in messages]
    shaped_messages = _with_one_system(shaped_messages, rules)
    if not rules.empty_answer:
        # The last one may be what the model is to go on with.
        *earlier, last = shaped_messages
        shaped_messages = [message for message in earlier if not _is_empty(message)] + [last]
    if not rules.repeats:
        shaped_messages = _without_repeats(shaped_messages)
    if not rules.opening_answer:
        for index, message in enumerate(shaped_messages):
            if message["role"] not in _INSTRUCTIONS:
                if message["role"] == "assistant":
                    shaped_messages.insert(index, {"role": "user", "content": ""})
                break
    if not rules.any_ids:
        shaped_messages = _with_short_ids(shaped_messages)
    if not rules.several_calls:
        shaped_messages = _with_one_call_each(shaped_messages)
    return shaped_messages


def _shaped_message(message: JsonObject, rules: HistoryRules) -> JsonObject:
    changed = dict(message)
    if changed["role"] == "developer" and not rules.developer:
        changed["role"] = "system"
    if changed["content"] is None and not rules.null_content:
        changed["content"] = ""
    if "tool_calls" in changed:
        convert = arguments_as_object if rules.argument_objects else arguments_as_string
        changed["tool_calls"] = [
            {
                **call,
                "function": {
                    **call["function"],
                    "arguments": convert(call["function"]["arguments"]),
                },
            }
            for call in changed["tool_calls"]
        ]
    return changed


def arguments_as_object(arguments: str | JsonObject | None) -> JsonObject:
    """Arguments as the JSON object that they are, or that their text holds; else an empty one.

    A call that was cut off, or never had arguments, or has the escape of a lone surrogate (U+FFFD
    here), must not end the conversation.
    """
    value: Any = arguments
    for _ in range(_MAX_NESTED_TEXTS):
        if not isinstance(value, str):
            break
        try:
            value = _loaded(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _loaded(text: str) -> Any:
    value = json.loads(text, parse_constant=_refuse_constant)
    if "\\ud" not in text.lower():
        return value
    spelt = json.dumps(value, ensure_ascii=False)
    return json.loads(spelt.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def arguments_as_string(arguments: str | JsonObject | None) -> str:
    """Arguments as the text of a JSON object, as they came where they are one."""
    value = arguments_as_object(arguments)
    if isinstance(arguments, str) and arguments.lstrip().startswith("{") and value:
        return arguments
    return json.dumps(value, ensure_ascii=False)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _with_one_system(messages: list[JsonObject], rules: HistoryRules) -> list[JsonObject]:
    num_first = 0
    while num_first < len(messages) and messages[num_first]["role"] in _INSTRUCTIONS:
        num_first += 1
    instructions, others = messages[:num_first], messages[num_first:]
    if not rules.late_system:
        instructions = instructions + [one for one in others if one["role"] in _INSTRUCTIONS]
        others = [one for one in others if one["role"] not in _INSTRUCTIONS]
    if not instructions:
        return others
    first = _joined(instructions)
    if rules.system:
        return [first, *others]
    first["role"] = "user"
    if others and others[0]["role"] == "user":
        return [_joined([others[0] | {"content": first["content"]}, others[0]]), *others[1:]]
    return [first, *others]


def _without_repeats(messages: list[JsonObject]) -> list[JsonObject]:
    kept: list[JsonObject] = []
    for message in messages:
        last = kept[-1] if kept else {}
        is_repeat = message["role"] in ("user", "assistant") and last.get("role") == message["role"]
        if is_repeat and not last.get("tool_calls"):
            kept[-1] = _joined([last, message])
        else:
            kept.append(message)
    return kept


def _joined(messages: list[JsonObject]) -> JsonObject:
    """One message with the texts of several, and the other fields of all."""
    texts = [message["content"] for message in messages if message["content"]]
    joined = {key: value for message in reversed(messages) for key, value in message.items()}
    return joined | {"content": _BETWEEN.join(texts)}


def _is_empty(message: JsonObject) -> bool:
    return (
        message["role"] == "assistant"
        and not (message["content"] or "").strip()
        and not message.get("tool_calls")
    )


def _with_short_ids(messages: list[JsonObject]) -> list[JsonObject]:
    """Ids of nine letters and digits; the same for a call and its result, also where none is."""
    changed: list[JsonObject] = []
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = [
                {**call, "id": _short_id(call.get("id") or f"{index}.{number}")}
                for number, call in enumerate(message["tool_calls"])
            ]
            waiting = [call["id"] for call in calls]
            changed.append({**message, "tool_calls": calls})
        elif message["role"] == "tool":
            given = message.get("tool_call_id")
            call_id = _short_id(given) if given else next(iter(waiting), _short_id(str(index)))
            waiting = [one for one in waiting if one != call_id]
            changed.append({**message, "tool_call_id": call_id})
        else:
            changed.append(message)
    return changed


def _with_one_call_each(messages: list[JsonObject]) -> list[JsonObject]:
    """Each call in a message of its own; results follow their calls, those of no call the last."""
    changed: list[JsonObject] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            changed.append(message)
            continue
        results: list[JsonObject] = []
        while place < len(messages) and messages[place]["role"] == "tool":
            results.append(messages[place])
            place += 1
        for number, call in enumerate(calls):
            is_last = number == len(calls) - 1
            own = [one for one in results if is_last or one.get("tool_call_id") == call.get("id")]
            results = [one for one in results if one not in own]
            text = {} if number == 0 else {"content": ""}
            changed += [{**message, **text, "tool_calls": [call]}, *own]
    return changed


def _short_id(call_id: str) -> str:
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(9):
        number, rest = divmod(number, len(_ID_ALPHABET))
        letters.append(_ID_ALPHABET[rest])
    return "".join(letters)
