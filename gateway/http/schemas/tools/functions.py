"""OpenAI's deprecated `functions` and `function_call`, told in the words of tools."""

import re
from typing import Any, Final

from gateway.errors import InvalidRequestError

CALL_FIELD: Final = "function_call"
FUNCTION_FIELDS: Final = frozenset({"functions", CALL_FIELD})
_MAX_CALL_NUMBER = 10**5


def with_tools(value: dict[str, Any]) -> dict[str, Any]:
    """A chat body whose functions are tools; the same body where it has none.

    `functions` becomes `tools`, `function_call` a `tool_choice`, and in messages an assistant's
    `function_call` a call and role `function` its result. What is of a wrong type is left to the
    schemas of tools, whose errors `in_words_of_functions` translates.

    Raises:
        InvalidRequestError: Both spellings at once, or a choice without functions.
    """
    found = dict(value)
    functions, choice = value.get("functions"), value.get("function_call")
    if functions is not None and functions != []:
        for name in ("tools", "tool_choice"):
            if value.get(name) is not None:
                raise InvalidRequestError(f"`functions` contradicts `{name}`.", param="functions")
        found["tools"] = functions
        if isinstance(functions, list):
            found["tools"] = [{"type": "function", "function": one} for one in functions]
        found["parallel_tool_calls"] = False  # an answer has room for one
        if isinstance(choice, dict):
            found["tool_choice"] = {"type": "function", "function": choice}
        elif choice is not None:
            found["tool_choice"] = choice
    elif choice not in (None, "none", "auto"):
        raise InvalidRequestError("`function_call` needs `functions`.", param="function_call")
    messages = value.get("messages")
    if isinstance(messages, list) and any(map(_has_function, messages)):
        found["messages"] = _messages_with_tools(messages)
    return found


def names_functions(value: dict[str, Any]) -> bool:
    """Whether the client gave functions and so wants an answer with `function_call`."""
    return value.get("functions") not in (None, [])


def in_words_of_functions(error: InvalidRequestError, value: dict[str, Any]) -> InvalidRequestError:
    """An error about tools, as one about the functions that the client wrote.

    Args:
        error: Of a chat.
        value: The body that `with_tools` has made.
    """
    message, param = places_of_functions([error.message, error.param or ""], value)
    return type(error)(message, param=param or None)


def places_of_functions(texts: list[str], value: dict[str, Any]) -> list[str]:
    """Texts that name places within tools, with those of the functions that the client wrote.

    Args:
        texts: Paths, or messages that hold some.
        value: The body that `with_tools` has made.
    """
    if not texts:
        return texts
    calls, is_of_functions = _calling_messages(value), names_functions(value)
    if not calls and not is_of_functions:
        return texts
    return [_translated(text, calls, is_of_functions) for text in texts]


class _CallingMessage(dict[str, Any]):
    """A message whose call was a `function_call`, which says how errors name it."""


def _calling_messages(value: dict[str, Any]) -> frozenset[int]:
    messages = value.get("messages")
    return frozenset(
        index
        for index, message in enumerate(messages if isinstance(messages, list) else ())
        if isinstance(message, _CallingMessage)
    )


def _translated(text: str, calls: frozenset[int], is_of_functions: bool) -> str:
    def call(found: re.Match[str]) -> str:
        return f"messages[{found[1]}].{CALL_FIELD}" if int(found[1]) in calls else found[0]

    text = re.sub(r"\bmessages\[(\d{1,9})\]\.tool_calls\[0\](?:\.function)?", call, text)
    if not is_of_functions:
        return text
    text = re.sub(r"\btools\[(\d+)\]\.function\b", r"functions[\1]", text)
    text = re.sub(r"\btool_choice\.function\b", "function_call", text)
    text = re.sub(r"\btool_choice\b", "function_call", text)
    return re.sub(r"\btools\b(?!\.|s)", "functions", text)


def _has_function(message: Any) -> bool:
    return isinstance(message, dict) and (
        message.get("role") == "function" or "function_call" in message
    )


def _messages_with_tools(messages: list[Any]) -> list[Any]:
    """The messages with calls and results that name each other by ids."""
    found = []
    ids: dict[str, str] = {}
    for index, message in enumerate(messages):
        if not _has_function(message):
            found.append(message)
            continue
        call = message.get(CALL_FIELD)
        rest = {key: item for key, item in message.items() if key != CALL_FIELD}
        changed = rest if call is None else _CallingMessage(rest)
        if message.get("role") == "function":
            name = message.get("name")
            changed["role"] = "tool"
            changed["tool_call_id"] = (
                ids.get(name, _call_id(index)) if isinstance(name, str) else _call_id(index)
            )
        if call is not None:
            if message.get("tool_calls"):
                raise InvalidRequestError(
                    f"`messages[{index}].function_call` contradicts `tool_calls`.",
                    param=f"messages[{index}].function_call",
                )
            call_id = _call_id(index)
            changed["tool_calls"] = [{"id": call_id, "type": "function", "function": call}]
            if isinstance(call, dict) and isinstance(name := call.get("name"), str):
                ids[name] = call_id
        found.append(changed)
    return found


def _call_id(index: int) -> str:
    """Nine letters and digits, which is all that some templates take."""
    return f"call{index % _MAX_CALL_NUMBER:05d}"
