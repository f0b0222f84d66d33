"""From items and flat tools to the messages and tools of a chat."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.openresponses.compaction import CALLS, reading_order
from gateway.http.openresponses.hosted import (
    MAX_SERVERS,
    NOT_APPROVED,
    HostedServer,
    HostedTool,
    call_text,
    check_list,
    hosted_server,
)
from gateway.http.openresponses.hosted_names import plain_name
from gateway.http.openresponses.sealing import summary_of, unsealed
from gateway.http.openresponses.stored_items import kind_of
from gateway.http.schemas.base.ranges import MAX_CONTENT_PARTS

Item = dict[str, Any]
EMPTY: Final[Mapping[str, HostedTool]] = MappingProxyType({})
_TEXT_PARTS: Final = frozenset(("input_text", "output_text", "text", "summary_text"))
_MEDIA_PARTS: Final = frozenset(("input_image", "input_file", "input_audio"))
_ROLES: Final = ("user", "assistant", "system", "developer")
_JOINT: Final = "__"
"""Between the name of a namespace and that of its tool, as the model sees them."""
SUMMARY: Final = "Summary of the conversation so far:\n"
"""What a compacted beginning is to the model, before its text."""
_REFUSED_ITEMS: Final[dict[str, str]] = {
    "item_reference": "nothing is stored here; send the item itself",
    "additional_tools": "give all tools in `tools`",
    "compaction_trigger": "use /v1/responses/compact",
    "configuration_update": "say in the request what holds for it",
    "program": "no tools are called by programs here",
    "program_output": "no tools are called by programs here",
    # What the client did is in these, and a model here wouldn't know the tool.
    **dict.fromkeys(
        (
            *("shell_call", "shell_call_output", "local_shell_call", "local_shell_call_output"),
            *("apply_patch_call", "apply_patch_call_output"),
        ),
        "its tool isn't offered here; send `function_call` and `function_call_output` instead",
    ),
    **dict.fromkeys(
        ("computer_call", "computer_call_output"), "it is about pictures, and models here read text"
    ),
}
LEFT_OUT_ITEMS: Final = frozenset(
    (
        *("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"),
        *("tool_search_call", "tool_search_output"),
    )
)
"""Traces of what OpenAI's server did: what came of it is in the message behind them."""
_REASONED: Final = {"role", "reasoning_content"}
HOSTED_TOOLS: Final = frozenset(
    (
        *("web_search", "web_search_preview", "web_search_2025_08_26", "file_search", "mcp"),
        *("web_search_preview_2025_03_11", "code_interpreter", "image_generation", "shell"),
        *("local_shell", "apply_patch", "tool_search", "computer", "computer_use_preview"),
        "programmatic_tool_calling",
    )
)
"""Run by OpenAI's own server; clients send some of them unasked."""


class Tools:
    """The tools of a request, as a chat and as an answer name them.

    Args:
        tools: Of the request.
        runs_hosted: Whether those of MCP servers are run; they are left out otherwise.

    Attributes:
        chat: As a chat has them.
        paths: Where in the request each of those is.
        servers: MCP servers whose tools are run.
        left_out: Paths of those that this server can't run, and of items that tell of such.
        spaces: By the name that the model sees: namespace and own name, where a tool is in one.
        hosted_names: By label and own name of a server's tool: the name that the model sees.

    Raises:
        InvalidRequestError: A tool is none.
    """

    def __init__(self, tools: list[Item] | None, *, runs_hosted: bool = False) -> None:
        self.chat: list[Item] = []
        self.paths: list[str] = []
        self.servers: list[HostedServer] = []
        self._runs_hosted = runs_hosted
        self.left_out: list[str] = []
        self.spaces: dict[str, tuple[str, str]] = {}
        self.hosted_names: dict[tuple[str, str], str] = {}
        self._seen: dict[str, tuple[tuple[str, str], str]] = {}
        for index, tool in enumerate(tools or ()):
            self._add(tool, f"tools[{index}]", "")

    def _add(self, tool: Any, path: str, space: str) -> None:
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise _wrong(path, "an object with a `type` is expected.")
        kind = tool["type"]
        if kind == "namespace" and not space:
            within = tool.get("tools")
            if not isinstance(within, list):
                raise _wrong(f"{path}.tools", "a list is expected.")
            name = text_of(tool, "name", path)
            if not name:
                raise _wrong(f"{path}.name", "a name is expected.")
            for index, one in enumerate(within):
                self._add(one, f"{path}.tools[{index}]", name)
        elif kind in ("function", "custom"):
            own = text_of(tool, "name", path)
            name = f"{space}{_JOINT}{own}" if space else own
            other, where = self._seen.setdefault(name, ((space, own), path))
            if other != (space, own):
                # Nobody could tell the client which of them a call is of.
                raise _wrong(
                    path, f"the model would see it as `{name[:128]}`, as it does `{where}`."
                )
            if space:
                self.spaces[name] = (space, own)
            kept = ("description", "parameters", "strict", "format")
            part = {key: tool[key] for key in kept if tool.get(key) is not None}
            if "format" in part:
                part["format"] = _chat_format(part["format"])
            self.chat.append({"type": kind, kind: {"name": name, **part}})
            self.paths.append(path)
        elif kind == "mcp" and self._runs_hosted and not space:
            self._add_server(hosted_server(tool, path))
        elif kind in HOSTED_TOOLS:
            self.left_out.append(path)
        else:
            raise UnsupportedFieldError(
                f"Invalid `{path}.type`: tools of type `{kind[:100]}` are not supported.",
                param=f"{path}.type",
            )

    def _add_server(self, server: HostedServer) -> None:
        if server.named.label in {one.named.label for one in self.servers}:
            raise _wrong(f"{server.path}.server_label", "another tool has the same label.")
        if len(self.servers) >= MAX_SERVERS:
            raise _wrong("tools", f"at most {MAX_SERVERS} MCP servers are accepted.")
        self.servers.append(server)

    def seen_name(self, name: str, space: str | None) -> str:
        """The name that the model sees of a tool."""
        return f"{space}{_JOINT}{name}" if space else name


def _chat_format(wanted: Any) -> Any:
    """The `format` of a custom tool as a chat has it: the grammar is an object of its own."""
    if not isinstance(wanted, dict) or wanted.get("type") != "grammar" or "grammar" in wanted:
        return wanted
    rest = {key: value for key, value in wanted.items() if key != "type"}
    return {"type": "grammar", "grammar": rest}


def chat_tool_choice(
    choice: str | Item | None, hosted: Mapping[str, HostedTool] = EMPTY, *, is_first: bool = True
) -> Any:
    """A `tool_choice` as a chat has it.

    Args:
        choice: Of the request.
        hosted: Tools of MCP servers by the names that the model sees.
        is_first: Whether it is the first turn of the response; later ones are free to end it.

    Raises:
        InvalidRequestError: It is none, or forces what this server can't run.
    """
    if not isinstance(choice, dict):
        return "auto" if choice == "required" and not is_first else choice
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return {"type": kind, kind: {"name": choice.get("name")}} if is_first else "auto"
    if kind == "mcp":
        named = _named_tools(choice, "tool_choice", hosted)
        if not is_first:
            return "auto"
        if choice.get("name") is not None:
            return named[0]
        return _allowed("required", named)
    if kind == "allowed_tools":
        tools = choice.get("tools")
        if not isinstance(tools, list):
            raise _wrong("tool_choice.tools", "a list is expected.")
        listed = [
            named
            for index, one in enumerate(tools)
            for named in _named_tools(one, f"tool_choice.tools[{index}]", hosted)
        ]
        return _allowed(choice.get("mode") if is_first else "auto", listed)
    raise UnsupportedFieldError(
        "Invalid `tool_choice.type`: it must be `function`, `custom`, `mcp` or `allowed_tools`.",
        param="tool_choice.type",
    )


def _allowed(mode: Any, tools: list[Item]) -> Item:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def _named_tools(one: Any, path: str, hosted: Mapping[str, HostedTool]) -> list[Item]:
    """The tools that a part of a `tool_choice` names, as a chat names them."""
    kind = one.get("type") if isinstance(one, dict) else None
    if kind in ("function", "custom"):
        return [{"type": kind, kind: {"name": one.get("name")}}]
    if kind != "mcp":
        raise _wrong(path, "functions, custom tools and `mcp` are expected.")
    # OpenAI's Agents SDK names no server where any may be called.
    label = None if one.get("server_label") is None else text_of(one, "server_label", path)
    name = one.get("name")
    found = [
        {"type": "function", "function": {"name": seen}}
        for seen, tool in hosted.items()
        if label in (None, tool.label) and name in (None, tool.name)
    ]
    if not found:
        missing = "no server lists such a tool."
        if label is not None:
            missing = f"the server `{label[:100]}` lists no such tool."
        raise _wrong(path, missing)
    return found


def chat_messages(
    instructions: str | None,
    items: str | list[Item],
    tools: Tools,
    *,
    places: Sequence[int] | None = None,
    calls_may_be_elsewhere: bool = False,
) -> list[Item]:
    """The messages of a chat.

    Args:
        instructions: They come first.
        items: All that there is; those that a compaction stands for aren't read.
        tools: Of the request.
        places: Of the items among the request's own, negative where they come from the store; None
            for items that are all its own.
        calls_may_be_elsewhere: Whether an output may belong to a call that isn't here.

    Raises:
        InvalidRequestError: Naming the item that is wrong, or not served.
    """
    found: list[Item] = []
    if instructions:
        found.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*found, {"role": "user", "content": items}]
    approved = {
        name
        for item in items
        if kind_of(item) == "mcp_approval_response" and item.get("approve") is True
        if isinstance(name := item.get("approval_request_id"), str)
    }
    order = reading_order(items)
    summed_up = sorted(set(range(len(items))).difference(order))
    beginning = list(found)
    # Of several outputs of a call that is read, some may have been summed up.
    read = [items[index] for index in order] if summed_up else []
    calls = {str(item.get("call_id")) for item in read if kind_of(item) in CALLS}
    for number, index in enumerate((*summed_up, *order)):
        if number == len(summed_up):
            # What a compaction stands for is checked like all the rest, and not read.
            found, calls = list(beginning), set()
        item = items[index]
        own = index if places is None else places[index]
        path = f"input[{own}]" if own >= 0 else f"context[{index}]"
        kind = kind_of(item)
        if not kind:
            raise _wrong(f"{path}.type", "a string is expected.")
        if kind == "message":
            _add_message(found, _message(item, path))
        elif kind == "reasoning":
            _turn(found).setdefault("reasoning_content", []).append(_reasoning(item, path))
        elif kind in CALLS:
            call = _call(item, path, tools)
            calls.add(call["id"])
            _turn(found).setdefault("tool_calls", []).append(call)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            call_id = text_of(item, "call_id", path)
            if call_id not in calls and not calls_may_be_elsewhere:
                raise _wrong(f"{path}.call_id", f"there is no call `{call_id[:100]}` before it.")
            content = _content(item.get("output"), f"{path}.output")
            found.append({"role": "tool", "tool_call_id": call_id, "content": content})
        elif kind == "mcp_call":
            found += _hosted_call(found, item, path, call_text(item), tools)
        elif kind == "mcp_approval_request":
            for name in ("id", "server_label", "name", "arguments"):
                text_of(item, name, path)
            if item["id"] not in approved:
                found += _hosted_call(found, item, path, NOT_APPROVED, tools)
        elif kind == "mcp_approval_response":
            text_of(item, "approval_request_id", path)
            if not isinstance(item.get("approve"), bool):
                raise _wrong(f"{path}.approve", "a boolean is expected.")
        elif kind == "mcp_list_tools":
            if not item.get("error"):
                check_list(item, path)
        elif kind == "compaction":
            text = unsealed(item.get("encrypted_content"), f"{path}.encrypted_content")
            summary, _ = summary_of(text)
            found.append({"role": "user", "content": SUMMARY + summary})
        elif kind in LEFT_OUT_ITEMS:
            if own >= 0:
                tools.left_out.append(path)
        elif kind in _REFUSED_ITEMS:
            raise UnsupportedFieldError(
                f"Invalid `{path}.type`: items of type `{kind}` are not supported:"
                f" {_REFUSED_ITEMS[kind]}.",
                param=f"{path}.type",
            )
        else:
            raise UnsupportedFieldError(
                f"Invalid `{path}.type`: items of type `{kind[:100]}` are not supported.",
                param=f"{path}.type",
            )
    return [_whole(message) for message in found]


def _add_message(found: list[Item], message: Item) -> None:
    """Append a message; what the assistant says belongs to what it has just reasoned."""
    last = found[-1] if found else message
    if message["role"] == last["role"] == "assistant" and last.keys() == _REASONED:
        last["content"] = message["content"]
    else:
        found.append(message)


def _turn(found: list[Item]) -> Item:
    """The assistant's turn that an item belongs to: the one under way, or a new one."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant"})
    return found[-1]


def _whole(message: Item) -> Item:
    """A turn with its reasoning joined; one that has only reasoned says nothing."""
    if "reasoning_content" in message:
        message["reasoning_content"] = "\n".join(message["reasoning_content"])
    if message["role"] == "assistant" and not message.get("tool_calls"):
        message.setdefault("content", "")
    return message


def _message(item: Item, path: str) -> Item:
    role = item.get("role")
    if role not in _ROLES:
        raise _wrong(f"{path}.role", f"it must be one of {', '.join(_ROLES)}.")
    return {"role": role, "content": _content(item.get("content"), f"{path}.content")}


def _call(item: Item, path: str, tools: Tools) -> Item:
    space = item.get("namespace")
    name = tools.seen_name(text_of(item, "name", path), space if isinstance(space, str) else None)
    call_id = text_of(item, "call_id", path)
    if item["type"] == "custom_tool_call":
        custom = {"name": name, "input": text_of(item, "input", path)}
        return {"id": call_id, "type": "custom", "custom": custom}
    function = {"name": name, "arguments": text_of(item, "arguments", path)}
    return {"id": call_id, "type": "function", "function": function}


def _hosted_call(found: list[Item], item: Item, path: str, result: str, tools: Tools) -> list[Item]:
    """A call that this server made, or didn't: it joins its turn, and its result comes next."""
    tool = text_of(item, "server_label", path), text_of(item, "name", path)
    name = tools.hosted_names.get(tool) or plain_name(*tool)
    call_id = text_of(item, "id", path)
    function = {"name": name, "arguments": text_of(item, "arguments", path)}
    call = {"id": call_id, "type": "function", "function": function}
    _turn(found).setdefault("tool_calls", []).append(call)
    return [{"role": "tool", "tool_call_id": call_id, "content": result}]


def _reasoning(item: Item, path: str) -> str:
    """What was thought: the raw text if there is one, else the summary, else what was sealed."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if parts:
            return _content(parts, f"{path}.{name}", also="reasoning_text")
    text = item.get("encrypted_content")
    return "" if text is None else unsealed(text, f"{path}.encrypted_content")


def _content(content: Any, path: str, also: str = "") -> str:
    """A text, or its parts, a line each."""
    if isinstance(content, str):
        return content
    return "\n".join(_parts(content, path, also))


def _parts(content: Any, path: str, also: str) -> Iterator[str]:
    if not isinstance(content, list):
        raise _wrong(path, "a string or a list of parts is expected.")
    if len(content) > MAX_CONTENT_PARTS:
        raise _wrong(path, f"at most {MAX_CONTENT_PARTS} parts are accepted.")
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise _wrong(where, "it has to be a part of text.")
        if kind in _TEXT_PARTS or (also and kind == also):
            yield text_of(part, "text", where)
        elif kind == "refusal":
            yield text_of(part, "refusal", where)
        elif kind in _MEDIA_PARTS:
            raise UnsupportedFieldError(
                f"Invalid `{where}.type`: parts of type `{kind}` are not supported: models here"
                " read text.",
                param=f"{where}.type",
            )
        else:
            raise _wrong(where, "it has to be a part of text.")


def text_of(item: Item, name: str, path: str) -> str:
    """A field that must be text.

    Raises:
        InvalidRequestError: It isn't.
    """
    value = item.get(name)
    if not isinstance(value, str):
        raise _wrong(f"{path}.{name}", "a string is expected.")
    return value


def _wrong(param: str, rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid `{param}`: {rule}", param=param)
