"""Gives a conversation the form that a model's chat template can take.

Clients send what other models wrote: system messages in several places, arguments that were cut
off, ids of another length, two messages of one role in turn. Templates refuse some of that, or
leave it out silently. What a template can take is found out when it is loaded
(`history_probes.py`).
"""

import hashlib
import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Literal, NoReturn

JsonObject = dict[str, Any]
PlaceOfText = Literal["shown", "before", "after"]

REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_BETWEEN: Final = "\n\n"
_INSTRUCTIONS: Final = ("system", "developer")
_SHORT_ID: Final = re.compile("[a-zA-Z0-9]{9}")
_NAMED_ID: Final = re.compile(r"functions\.(.+):[0-9]+", re.DOTALL)
_ID_ALPHABET: Final = string.ascii_letters + string.digits
_MAX_NESTED_TEXTS: Final = 2
"""How often arguments may be JSON text within JSON text."""


@dataclass(frozen=True, slots=True)
class LineBreaks:
    """How many line breaks a template writes around what an assistant said.

    The model wrote them itself, and so they may be in the message as well.

    Attributes:
        before_text: Behind reasoning.
        after_text: Before calls.
    """

    before_reasoning: int = 0
    after_reasoning: int = 0
    before_text: int = 0
    after_text: int = 0


@dataclass(frozen=True, slots=True)
class HistoryRules:
    """What a template can take.

    Attributes:
        developer: It has a role `developer`; otherwise those are system messages.
        null_content: It asks whether the content of a call is none, so that one without text has
            none; otherwise that is an empty text.
        argument_objects: Arguments of tool calls as objects, otherwise as JSON text.
        calls: Calls of tools; otherwise they become text of the assistant, which is `tagged` as
            `<tool_call>` or not.
        results: Results of tools; otherwise they become texts of the user.
        system: A system message at the beginning; otherwise it is the user's, and goes before what
            follows of the user's.
        lone_system: A system message that nothing follows; otherwise it is the user's.
        late_system: System messages later; otherwise their texts go into the first one.
        repeats: Messages of one role in turn; otherwise they become one.
        opening_answer: An assistant's message at the beginning; otherwise an empty one of the user
            goes before it.
        empty_answer: An assistant's message without text; otherwise it is left out.
        bridge: What the assistant says between tool calls (or their results) and the user's next
            message, where the template refuses one right behind the other; None where it doesn't.
        ids: Of tool calls, of `any` form; or mapped to `short` ones of nine letters and digits, or
            to `named` ones, `functions.NAME:NUMBER`, where the id alone says which tool was called.
        several_calls: It shows several calls in one message; otherwise each has a message of its
            own, with its result behind it.
        text_beside_reasoning: A message with calls may have both; otherwise they become one text.
        text_beside_calls: A message with calls may have a text. Where the template leaves one of
            them out, the text becomes an answer `before` the calls, or, where no answer may stand
            there, goes before the next one `after` them.
        waiting_text: While no answer follows, that of the first of these calls may be an answer
            before them: one, so that the next calls leave the prompt before them as it was.
        breaks: Those that the template writes are left out of messages that have them, too: what
            the model wrote comes out as it was, and is found in the cache.
    """

    developer: bool = True
    null_content: bool = False
    argument_objects: bool = True
    calls: Literal["shown", "tagged", "text"] = "shown"
    results: bool = True
    system: bool = True
    lone_system: bool = True
    late_system: bool = True
    repeats: bool = True
    opening_answer: bool = True
    empty_answer: bool = True
    bridge: str | None = None
    ids: Literal["any", "short", "named"] = "any"
    several_calls: bool = True
    text_beside_reasoning: bool = True
    text_beside_calls: PlaceOfText = "shown"
    waiting_text: bool = False
    breaks: LineBreaks = LineBreaks()


def shaped(messages: list[JsonObject], rules: HistoryRules) -> list[JsonObject]:
    """The messages in a form that the template can take; the given ones are left as they are.

    Instructions at the beginning (of the system and the developer) always become one message:
    models know one.
    """
    messages = _with_names(messages)
    if rules.calls != "shown":
        is_tagged = rules.calls == "tagged"
        messages = [_with_calls_as_text(message, is_tagged=is_tagged) for message in messages]
    if not rules.results:
        messages = [_with_result_as_text(message) for message in messages]
    shaped_messages = [_shaped_message(message, rules) for message in messages]
    shaped_messages = _with_one_system(shaped_messages, rules)
    if not rules.lone_system and [one["role"] for one in shaped_messages] == ["system"]:
        shaped_messages[0]["role"] = "user"
    if not rules.empty_answer:
        # The last one may be what the model is to go on with.
        *earlier, last = shaped_messages
        shaped_messages = [message for message in earlier if not _is_empty(message)] + [last]
    if not rules.repeats:
        shaped_messages = _without_repeats(shaped_messages)
    if rules.text_beside_calls == "after":
        shaped_messages = _with_text_after_calls(shaped_messages, rules)
    if not rules.opening_answer:
        for index, message in enumerate(shaped_messages):
            if message["role"] not in _INSTRUCTIONS:
                if message["role"] == "assistant":
                    shaped_messages.insert(index, {"role": "user", "content": ""})
                break
    if rules.bridge is not None:
        shaped_messages = _with_bridges(shaped_messages, rules.bridge)
    if rules.ids != "any":
        new_id = _short_id if rules.ids == "short" else _NamedIds()
        shaped_messages = _with_ids(shaped_messages, new_id)
    if rules.text_beside_calls == "before" or rules.waiting_text:
        shaped_messages = _with_text_before_calls(shaped_messages, rules)
    if not rules.several_calls:
        shaped_messages = _with_one_call_each(shaped_messages, rules)
    return shaped_messages


def _with_names(messages: list[JsonObject]) -> list[JsonObject]:
    """Results with the names of their tools, which some templates show; clients send ids alone."""
    names: dict[str, str] = {}
    changed = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call.get("id") or ""] = call["function"]["name"]
        name = names.get(message.get("tool_call_id") or "")
        if message["role"] == "tool" and name and not message.get("name"):
            message = {**message, "name": name}
        changed.append(message)
    return changed


def _with_calls_as_text(message: JsonObject, *, is_tagged: bool) -> JsonObject:
    if not message.get("tool_calls"):
        return message
    texts = [(message["content"] or "").removesuffix("\n")]
    for call in message["tool_calls"]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if is_tagged:
            called = {"name": name, "arguments": arguments_as_object(arguments)}
            texts.append(f"<tool_call>\n{json.dumps(called, ensure_ascii=False)}\n</tool_call>")
        else:
            texts.append(f"{name}({arguments_as_string(arguments)})")
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": "\n".join(filter(None, texts))}


def _with_result_as_text(message: JsonObject) -> JsonObject:
    """It keeps the id of its call, which says that a tool wrote the text."""
    if message["role"] != "tool":
        return message
    text = f"Result of {message.get('name') or 'a tool'}: {message['content'] or ''}"
    return {"role": "user", "content": text, "tool_call_id": message.get("tool_call_id")}


def _shaped_message(message: JsonObject, rules: HistoryRules) -> JsonObject:
    changed = dict(message)
    if changed["role"] == "developer" and not rules.developer:
        changed["role"] = "system"
    if not (changed["content"] or "").strip() and rules.null_content and changed.get("tool_calls"):
        changed["content"] = None
    elif changed["content"] is None:
        changed["content"] = ""
    if changed["role"] == "assistant":
        _leave_out_breaks(changed, rules.breaks)
    reasoning = changed.get("reasoning_content")
    has_both = bool(reasoning and changed["content"] and changed.get("tool_calls"))
    if has_both and not rules.text_beside_reasoning:
        changed = {name: value for name, value in changed.items() if name not in REASONING}
        changed["content"] = f"{reasoning}{_BETWEEN}{changed['content']}"
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


def _leave_out_breaks(message: JsonObject, breaks: LineBreaks) -> None:
    before_text = 0
    for name in REASONING:
        if message.get(name):
            message[name] = _within(message[name], breaks.before_reasoning, breaks.after_reasoning)
            before_text = breaks.before_text
    after_text = breaks.after_text if message.get("tool_calls") else 0
    if message["content"]:
        message["content"] = _within(message["content"], before_text, after_text)


def _within(text: str, before: int, after: int) -> str:
    """A text without so many line breaks at its beginning and its end, as far as it has them."""
    for _ in range(before):
        text = text.removeprefix("\n")
    for _ in range(after):
        text = text.removesuffix("\n")
    return text


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


def _with_text_before_calls(messages: list[JsonObject], rules: HistoryRules) -> list[JsonObject]:
    """What is said beside calls, reasoning included, in a message of its own."""
    changed: list[JsonObject] = []
    for message in messages:
        if _has_text_and_calls(message):
            changed.append({name: one for name, one in message.items() if name != "tool_calls"})
            message = {name: one for name, one in message.items() if name not in REASONING}
            message["content"] = _no_text(rules)
        changed.append(message)
    return changed


def _with_text_after_calls(messages: list[JsonObject], rules: HistoryRules) -> list[JsonObject]:
    """What is said beside calls at the beginning of the answer that follows them.

    Without one it is the answer that stands before the user's next message. Where that isn't there
    either, the first text stays for `_with_text_before_calls`, if the template takes it so; others
    are left out.
    """
    changed: list[JsonObject] = []
    said: list[str] = []
    first = 0
    for message in messages:
        if _has_text_and_calls(message):
            first = first if said else len(changed)
            said.append(message["content"])
            message = {**message, "content": _no_text(rules)}
        elif said and message["role"] in ("user", "assistant") and not message.get("tool_calls"):
            told = {"role": "assistant", "content": _BETWEEN.join(said)}
            said = []
            if message["role"] == "user":
                changed.append(told)
            else:
                message = _joined([told, message])
        changed.append(message)
    if said and rules.waiting_text:
        changed[first] = {**changed[first], "content": said[0]}
    return changed


def _no_text(rules: HistoryRules) -> str | None:
    """The content of calls beside which nothing is said."""
    return None if rules.null_content else ""


def _has_text_and_calls(message: JsonObject) -> bool:
    return bool(message.get("tool_calls") and (message["content"] or "").strip())


def _with_bridges(messages: list[JsonObject], text: str) -> list[JsonObject]:
    """An answer of the assistant between calls or their results and the user's next message."""
    bridged: list[JsonObject] = []
    for message in messages:
        last = bridged[-1] if bridged else {}
        if message["role"] == "user" and (last.get("role") == "tool" or last.get("tool_calls")):
            bridged.append({"role": "assistant", "content": text})
        bridged.append(message)
    return bridged


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


NewId = Callable[[str, str | None], str]
"""The id of a call instead of the one that it has, from that and the name of its tool; of a result
without a call that is None."""


def _with_ids(messages: list[JsonObject], new_id: NewId) -> list[JsonObject]:
    """Other ids; the same for a call and its result, also where none is."""
    changed: list[JsonObject] = []
    meant: dict[str, str] = {}
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = []
            for number, call in enumerate(message["tool_calls"]):
                given = call.get("id") or f"{index}.{number}"
                meant[given] = new_id(given, call["function"]["name"])
                calls.append({**call, "id": meant[given]})
            waiting = [call["id"] for call in calls]
            changed.append({**message, "tool_calls": calls})
        elif message["role"] == "tool":
            given = message.get("tool_call_id")
            if given:
                call_id = meant.get(given) or new_id(given, None)
            else:
                call_id = next(iter(waiting), None) or new_id(str(index), None)
            waiting = [one for one in waiting if one != call_id]
            changed.append({**message, "tool_call_id": call_id})
        else:
            changed.append(message)
    return changed


def _with_one_call_each(messages: list[JsonObject], rules: HistoryRules) -> list[JsonObject]:
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
            if number:
                # Text and reasoning came before the first one.
                message = {name: one for name, one in message.items() if name not in REASONING}
                message["content"] = _no_text(rules)
            changed += [{**message, "tool_calls": [call]}, *own]
    return changed


class _NamedIds:
    """Ids that say which tool was called, numbered through the conversation; those that do stay."""

    def __init__(self) -> None:
        self._numbers = count()

    def __call__(self, call_id: str, name: str | None) -> str:
        if name is None:
            return call_id
        number = next(self._numbers)
        known = _NAMED_ID.fullmatch(call_id)
        return call_id if known and known[1] == name else f"functions.{name}:{number}"


def _short_id(call_id: str, _name: str | None = None) -> str:
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(9):
        number, rest = divmod(number, len(_ID_ALPHABET))
        letters.append(_ID_ALPHABET[rest])
    return "".join(letters)
