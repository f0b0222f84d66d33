"""From the blocks of Messages to the messages and tools of a chat."""

from collections.abc import Iterator, Set
from typing import Any, Final

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.anthropic.client_tools import client_function
from gateway.http.render.call_arguments import arguments_object
from gateway.http.schemas.base.body import dump_json
from gateway.http.schemas.base.ranges import MAX_CONTENT_PARTS

_BILLING: Final = "x-anthropic-billing-header:"
"""A line that Claude Code puts first; it changes with each request and would spoil the cache."""
_OURS, _THEIRS = "call_", "toolu_"
_ERROR: Final = "Error: "
_TEXT_ONLY: Final = "models here read text"
_REFUSED_BLOCKS: Final = frozenset(
    (
        *("image", "container_upload", "server_tool_use", "web_search_tool_result"),
        *("web_fetch_tool_result", "code_execution_tool_result", "mcp_tool_use"),
        *("mcp_tool_result", "bash_code_execution_tool_result"),
        "text_editor_code_execution_tool_result",
    )
)
_JOINED: Final = ("content", "reasoning_content")
Block = dict[str, Any]


def their_call_id(call_id: str) -> str:
    """A call's id as Anthropic's begin; ids that a model's own template reads stay as they are."""
    return _THEIRS + call_id.removeprefix(_OURS) if call_id.startswith(_OURS) else call_id


def our_call_id(call_id: str) -> str:
    """The id that `their_call_id` was made of."""
    return _OURS + call_id.removeprefix(_THEIRS) if call_id.startswith(_THEIRS) else call_id


def chat_messages(system: str | list[Block] | None, messages: list[Block]) -> list[Block]:
    """The conversation of a chat.

    Raises:
        InvalidRequestError: Naming the block that is wrong, or not served.
    """
    found: list[Block] = []
    called: set[str] = set()
    first = _system_text(system)
    if first:
        found.append({"role": "system", "content": first})
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role")
        if role == "assistant":
            told = _assistant(message, where)
            called.update(call["id"] for call in told.get("tool_calls", ()))
            _join(found, told)
        elif role == "user":
            for one in _user(message, where, called):
                _join(found, one)
        elif role == "system":
            content = message.get("content")
            found.append({"role": "system", "content": _texts(content, f"{where}.content")})
        else:
            raise InvalidRequestError(
                f"Invalid `{where}.role`: it must be `user`, `assistant` or `system`.",
                param=f"{where}.role",
            )
    return [_whole(message) for message in found]


def continues_answer(messages: list[Block]) -> bool:
    """Whether the last message is the beginning of the answer.

    Raises:
        InvalidRequestError: It calls a tool, whose result is missing.
    """
    last = messages[-1]
    if last["role"] == "assistant" and last.get("tool_calls"):
        raise InvalidRequestError(
            "The last message calls a tool; a `tool_result` must follow it.",
            param="messages",
        )
    return bool(last["role"] == "assistant")


def chat_tools(tools: list[Block] | None) -> tuple[list[Block], list[str]]:
    """The functions of a chat, and the tools that this server can't run, which are left out.

    Raises:
        InvalidRequestError: A tool is none, or one of the client's that can't be served.
    """
    found: list[Block] = []
    left_out: list[str] = []
    for index, tool in enumerate(tools or ()):
        if not isinstance(tool.get("type"), str | None):
            param = f"tools[{index}].type"
            raise InvalidRequestError(f"Invalid `{param}`: must be a string.", param=param)
        function = (
            _own_function(tool, f"tools[{index}]")
            if tool.get("type") in (None, "custom")
            else client_function(tool, f"tools[{index}]")
        )
        if function is None:
            left_out.append(f"tools[{index}]")
            continue
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
        found.append({"type": "function", "function": function})
    return found, left_out


def _own_function(tool: Block, where: str) -> Block:
    """The function that the client describes."""
    if not isinstance(tool.get("name"), str):
        param = f"{where}.name"
        raise InvalidRequestError(f"Invalid `{param}`: must be a string.", param=param)
    if not isinstance(tool.get("input_schema"), dict):
        param = f"{where}.input_schema"
        raise InvalidRequestError(f"Invalid `{param}`: must be an object.", param=param)
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return function


def chat_tool_choice(choice: Block | None) -> Block:
    """`tool_choice` and `parallel_tool_calls` of a chat, as far as something is said.

    Raises:
        InvalidRequestError: It is no choice.
    """
    if choice is None:
        return {}
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise InvalidRequestError(
            "Invalid `tool_choice.type`: it must be `auto`, `any`, `tool` or `none`.",
            param="tool_choice.type",
        )
    wanted: Any = {"auto": "auto", "any": "required", "none": "none"}.get(kind)
    if kind == "tool":
        if not isinstance(choice.get("name"), str):
            raise InvalidRequestError(
                "Invalid `tool_choice.name`: must be a string.", param="tool_choice.name"
            )
        wanted = {"type": "function", "function": {"name": choice["name"]}}
    is_single = choice.get("disable_parallel_tool_use")
    if not isinstance(is_single, bool | None):
        param = "tool_choice.disable_parallel_tool_use"
        raise InvalidRequestError(f"Invalid `{param}`: must be a boolean.", param=param)
    return {"tool_choice": wanted} | ({"parallel_tool_calls": False} if is_single else {})


def _system_text(system: str | list[Block] | None) -> str:
    text = "" if system is None else _texts(system, "system")
    if _BILLING not in text:
        return text
    lines = text.split("\n")
    return "\n".join(line for line in lines if not line.startswith(_BILLING)).strip("\n")


def _assistant(message: Block, where: str) -> Block:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Block] = []
    for path, block in _blocks(message.get("content"), f"{where}.content"):
        kind = block["type"]
        if kind == "text":
            texts.append(_string(block, "text", path))
        elif kind == "thinking":
            thoughts.append(_string(block, "thinking", path))
        elif kind == "tool_use":
            calls.append(_call(block, path))
        elif kind != "redacted_thinking":
            raise _unexpected(kind, path)
    found: Block = {"role": "assistant"}
    if texts or not calls:
        found["content"] = "".join(texts)
    if thoughts:
        found["reasoning_content"] = "".join(thoughts)
    if calls:
        found["tool_calls"] = calls
    return found


def _call(block: Block, path: str) -> Block:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            f"Invalid `{path}.input`: must be an object.", param=f"{path}.input"
        )
    return {
        "id": our_call_id(_string(block, "id", path)),
        "type": "function",
        "function": {
            "name": _string(block, "name", path),
            "arguments": dump_json(arguments, f"{path}.input"),
        },
    }


def _user(message: Block, where: str, called: Set[str]) -> Iterator[Block]:
    """The results of tools that were called before, then what the user says."""
    results: list[Block] = []
    texts: list[str] = []
    for path, block in _blocks(message.get("content"), f"{where}.content"):
        kind = block["type"]
        if kind == "tool_result":
            results.append(_result(block, path, called))
        elif kind in ("text", "search_result", "document"):
            texts.append(_shown(block, path))
        else:
            raise _unexpected(kind, path)
    yield from results
    if texts or not results:
        yield {"role": "user", "content": "\n".join(texts)}


def _result(block: Block, path: str, called: Set[str]) -> Block:
    content = block.get("content")
    text = "" if content is None else _texts(content, f"{path}.content")
    is_error = block.get("is_error")
    if not isinstance(is_error, bool | None):
        param = f"{path}.is_error"
        raise InvalidRequestError(f"Invalid `{param}`: must be a boolean.", param=param)
    if is_error and not text.lower().startswith("error"):
        text = _ERROR + text
    named = _string(block, "tool_use_id", path)
    call_id = our_call_id(named)
    if call_id not in called:
        param = f"{path}.tool_use_id"
        raise InvalidRequestError(
            f"Invalid `{param}`: there is no `tool_use` with the id `{named[:100]}` before it.",
            param=param,
        )
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _texts(content: Any, where: str) -> str:
    """Text, or the text of its blocks, a line each."""
    return "\n".join(_shown(block, path) for path, block in _blocks(content, where))


def _shown(block: Block, path: str) -> str:
    """What a model reads of a block."""
    kind = block["type"]
    if kind == "text":
        return _string(block, "text", path)
    if kind == "tool_reference":
        return _string(block, "tool_name", path)
    if kind == "search_result":
        title, source = _string(block, "title", path), _string(block, "source", path)
        # Of texts alone: blocks within blocks within blocks would have no end.
        within = _blocks(block.get("content"), f"{path}.content")
        texts = [_only_text(one, where) for where, one in within]
        return "\n".join((title, source, *texts))
    if kind == "document":
        return _document(block, path)
    raise _unexpected(kind, path)


def _document(block: Block, path: str) -> str:
    """The title of a document that is a text, what is said of it, and the text."""
    named = [_string(block, name, path) for name in ("title", "context") if block.get(name)]
    source, where = block.get("source"), f"{path}.source"
    kind = source.get("type") if isinstance(source, dict) else None
    if isinstance(source, dict) and kind == "text":
        return "\n".join((*named, _string(source, "data", where)))
    if isinstance(source, dict) and kind == "content":
        within = _blocks(source.get("content"), f"{where}.content")
        return "\n".join((*named, *(_only_text(one, at) for at, one in within)))
    raise UnsupportedFieldError(
        f"Invalid `{where}.type`: it must be `text` or `content`: {_TEXT_ONLY}.",
        param=f"{where}.type",
    )


def _only_text(block: Block, path: str) -> str:
    if block["type"] != "text":
        raise _unexpected(block["type"], path)
    return _string(block, "text", path)


def _blocks(content: Any, where: str) -> Iterator[tuple[str, Block]]:
    """The blocks of a content with their paths; a text is one block."""
    if isinstance(content, str):
        yield where, {"type": "text", "text": content}
        return
    if not isinstance(content, list):
        raise InvalidRequestError(
            f"Invalid `{where}`: must be a string or a list of blocks.", param=where
        )
    if len(content) > MAX_CONTENT_PARTS:
        raise InvalidRequestError(
            f"Invalid `{where}`: at most {MAX_CONTENT_PARTS} blocks are accepted.", param=where
        )
    for index, block in enumerate(content):
        path = f"{where}[{index}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequestError(
                f"Invalid `{path}`: must be an object with a `type`.", param=path
            )
        yield path, block


def _string(block: Block, name: str, path: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        param = f"{path}.{name}"
        raise InvalidRequestError(f"Invalid `{param}`: must be a string.", param=param)
    return value


def _unexpected(kind: str, path: str) -> InvalidRequestError:
    param = f"{path}.type"
    if kind in _REFUSED_BLOCKS:
        return UnsupportedFieldError(
            f"Invalid `{param}`: blocks of type `{kind}` are not supported: {_TEXT_ONLY}.",
            param=param,
        )
    return InvalidRequestError(
        f"Invalid `{param}`: a block of type `{kind[:100]}` is not expected here.", param=param
    )


def _join(found: list[Block], message: Block) -> None:
    """Append a message; it goes on with the last one where both are of one speaker.

    Texts are kept in lists until all is read: sixteen thousand neighbours are joined once.
    """
    last = found[-1] if found else None
    for name in _JOINED:
        if name in message:
            message[name] = [message[name]]
    if last is None or last["role"] != message["role"] or last["role"] == "tool":
        found.append(message)
        return
    for name in (*_JOINED, "tool_calls"):
        if name in message:
            last.setdefault(name, []).extend(message[name])


def _whole(message: Block) -> Block:
    """A message with its texts joined."""
    for name in _JOINED:
        if isinstance(message.get(name), list):
            message[name] = "\n".join(filter(None, message[name]))
    return message


def tool_input(arguments: str) -> dict[str, Any]:
    """A call's arguments as the object that clients read.

    What is no object, as it broke or was cut, stands in one: an empty one would be a call without
    arguments. The member is named as Anthropic's documentation of fine-grained streaming does.
    """
    found = arguments_object(arguments)
    return {"INVALID_JSON": arguments} if found is None else found
