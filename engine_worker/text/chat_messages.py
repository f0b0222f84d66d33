"""Reads the messages and tools of a chat request and gives them the shape that templates want."""

import json
from typing import Any, NoReturn

from engine_worker.errors import InvalidRequestError, UnsupportedParameterError

ROLES = ("system", "developer", "user", "assistant", "tool")

JsonObject = dict[str, Any]


def parse_messages(messages_json: str) -> list[JsonObject]:
    """The messages of a chat request, checked; contents become strings or None.

    Text parts are joined by newlines. `reasoning` and `reasoning_content` are two names of one
    field; afterwards both are there or none. Arguments of tool calls stay as they came.

    Raises:
        InvalidRequestError: Wrong JSON, types or roles; `param` is such as `messages[2].role`.
        UnsupportedParameterError: A content part that is no text.
    """
    messages = parse_json(messages_json, "messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(
            "'messages' must be a list with at least one message.", param="messages"
        )
    return [_parse_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def parse_tools(tools_json: str | None) -> list[JsonObject] | None:
    """The tools of a chat request, checked; None when there are none.

    A function without parameters gets an empty object schema, because templates read it.

    Raises:
        InvalidRequestError: Wrong JSON or types.
    """
    if tools_json is None:
        return None
    tools = parse_json(tools_json, "tools")
    if not isinstance(tools, list):
        raise InvalidRequestError("'tools' must be a list.", param="tools")
    return [_parse_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)] or None


def parse_json(text: str, param: str) -> Any:
    """Strict JSON.

    Raises:
        InvalidRequestError: No JSON, a NaN or an infinity, or nested too deeply.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"'{param}' is not valid JSON: {error}", param=param) from error


def _parse_message(message: Any, path: str) -> JsonObject:
    if not isinstance(message, dict):
        raise InvalidRequestError(f"'{path}' must be an object.", param=path)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequestError(
            f"'{path}.role' must be one of {', '.join(ROLES)}, not {role!r:.80}.",
            param=f"{path}.role",
        )
    result: JsonObject = {"role": role, "content": _parse_content(message, path)}
    for name in ("name", "tool_call_id"):
        if message.get(name) is not None:
            result[name] = _string(message[name], f"{path}.{name}")
    reasoning = message.get("reasoning_content")
    if reasoning is None:
        reasoning = message.get("reasoning")
    if reasoning is not None:
        reasoning = _string(reasoning, f"{path}.reasoning_content")
        result["reasoning_content"] = result["reasoning"] = reasoning
    if message.get("tool_calls"):
        if role != "assistant":
            raise InvalidRequestError(
                f"Only an assistant message can have '{path}.tool_calls'.",
                param=f"{path}.tool_calls",
            )
        result["tool_calls"] = _parse_tool_calls(message["tool_calls"], f"{path}.tool_calls")
    if result["content"] is None and role == "tool":
        # What a function returns that returns nothing.
        result["content"] = ""
    if result["content"] is None and role != "assistant":
        raise InvalidRequestError(f"'{path}.content' is missing.", param=f"{path}.content")
    return result


def _parse_content(message: JsonObject, path: str) -> str | None:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(
            f"'{path}.content' must be a string or a list of content parts.",
            param=f"{path}.content",
        )
    texts = []
    for index, part in enumerate(content):
        part_path = f"{path}.content[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            if isinstance(kind, str):
                raise UnsupportedParameterError(
                    f"'{part_path}' is of type {kind!r:.40}; this model reads only text.",
                    param=f"{part_path}.type",
                )
            raise InvalidRequestError(
                f"'{part_path}' must be an object with a type.", param=part_path
            )
        texts.append(_string(part.get(kind), f"{part_path}.{kind}"))
    return "\n".join(texts)


def _parse_tool_calls(calls: Any, path: str) -> list[JsonObject]:
    if not isinstance(calls, list):
        raise InvalidRequestError(f"'{path}' must be a list.", param=path)
    return [_parse_tool_call(call, f"{path}[{index}]") for index, call in enumerate(calls)]


def _parse_tool_call(call: Any, path: str) -> JsonObject:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequestError(f"'{path}' must be an object with a function.", param=path)
    name = _string(function.get("name"), f"{path}.function.name")
    arguments = function.get("arguments")
    if not (arguments is None or isinstance(arguments, str | dict)):
        raise InvalidRequestError(
            f"'{path}.function.arguments' must be JSON text.", param=f"{path}.function.arguments"
        )
    result: JsonObject = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        result["id"] = _string(call["id"], f"{path}.id")
    return result


def _parse_tool(tool: Any, path: str) -> JsonObject:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequestError(f"'{path}' must be an object with a function.", param=path)
    _string(function.get("name"), f"{path}.function.name")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    elif not isinstance(parameters, dict):
        raise InvalidRequestError(
            f"'{path}.function.parameters' must be an object.", param=f"{path}.function.parameters"
        )
    return {**tool, "type": "function", "function": {**function, "parameters": parameters}}


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"'{path}' must be a string.", param=path)
    return value
