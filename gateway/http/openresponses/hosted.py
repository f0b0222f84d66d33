"""Tools that this server runs for a response: what a request says of them, and their names.

A request is parsed once without knowing the tools, which tells what servers it names
(`HostedPlan`), and again for every turn of the model, with what the servers listed and what was
called so far (`Progress`, a part of the frame).
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.openresponses.hosted_names import seen_names
from gateway.http.schemas.base.body import dump_json
from gateway.tools.tool_servers import ALL_TOOLS, NamedServer

Item = dict[str, Any]
MAX_SERVERS: Final = 16
MAX_HEADERS: Final = 32
MAX_HEADER_CHARACTERS: Final = 8192
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t -~]*")
_OURS: Final = frozenset(
    (
        *("host", "connection", "content-length", "content-type", "content-encoding", "te"),
        *("transfer-encoding", "upgrade", "trailer", "expect", "accept", "accept-encoding"),
        *("keep-alive", "proxy-connection", "last-event-id"),
    )
)
"""Headers that the transport of MCP sets itself; `mcp-…` are, too."""
_MARKED: Final = re.compile(r"mcpl_[A-Za-z0-9_-]+?(?:_([0-9a-f]{8}))?_([0-9a-f]{16})")
_FIELDS: Final = frozenset(
    (
        *("type", "server_label", "server_url", "server_description", "headers", "authorization"),
        *("allowed_tools", "require_approval", "allowed_callers", "defer_loading"),
    )
)
MCP_ITEMS: Final = frozenset(
    ("mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response")
)
NOT_APPROVED: Final = "The user did not approve this call, and it was not made."


@dataclass(frozen=True, slots=True)
class HostedTool:
    """A tool that this server runs.

    Attributes:
        label: Of its server.
        name: Of the tool, as the server calls it.
        schema_json: Of its arguments.
        needs_approval: Whether somebody has to allow each call.
        is_listed: Whether its server has it; a model may call what nobody offers.
    """

    label: str
    name: str
    schema_json: str = "{}"
    needs_approval: bool = True
    is_listed: bool = True


@dataclass(frozen=True, slots=True)
class ApprovedCall:
    """A call that was asked for earlier, and that somebody has allowed.

    Attributes:
        request_id: Of the item that asked.
        schema_json: Of its arguments, as the server listed it.
        is_offered: Whether the tool is among the tools of its label, which still means the server
            that the call was asked for.
    """

    request_id: str
    label: str
    name: str
    arguments: str
    schema_json: str = "{}"
    is_offered: bool = False


@dataclass(frozen=True, slots=True)
class HostedPlan:
    """What a request asks of this server's own doing.

    Attributes:
        servers: Those that it names, and the places where it does.
        lists_json: What is known of each label (`known_list`), a JSON object.
        tools: By the names that the model sees; empty before they are listed.
        approved: Calls that are made before anything else.
        max_calls: `max_tool_calls`; None where the request doesn't bound them.
        max_output_tokens: Of all turns together; None likewise.
        compact_threshold: Of a prompt with more tokens its beginning is summed up first; None where
            nothing is, `BY_CONTEXT` where the model's context says it.
        can_compact: Whether there is something to sum up.
        carried_json: Of a turn that sums something up, the items that stay beside it, a JSON array.
    """

    servers: tuple[tuple[str, NamedServer], ...] = ()
    lists_json: str = "{}"
    tools: dict[str, HostedTool] = field(default_factory=dict)
    approved: tuple[ApprovedCall, ...] = ()
    max_calls: int | None = None
    max_output_tokens: int | None = None
    compact_threshold: int | None = None
    can_compact: bool = False
    carried_json: str = "[]"

    @property
    def takes_turns(self) -> bool:
        """Whether the response may be made of several turns of the model."""
        return bool(self.servers) or self.compact_threshold is not None


@dataclass(slots=True)
class Progress:
    """How far a response with such tools has come; a part of the frame of its next turn.

    Attributes:
        lists: The tools of each label, as items show them.
        made: The items of the earlier turns.
        num_turns: Turns of the model that are over.
        num_answers: Of these, those that answered; others summed something up.
        num_output_tokens: That they made.
        may_call: Whether tools of this server may still be called.
        compacts: Whether the next turn sums up what is before the last message.
    """

    lists: dict[str, list[Item]] = field(default_factory=dict)
    made: list[Item] = field(default_factory=list)
    num_turns: int = 0
    num_answers: int = 0
    num_output_tokens: int = 0
    may_call: bool = True
    compacts: bool = False

    @property
    def may_be_forced(self) -> bool:
        """Whether a `tool_choice` still forces a call: none was made that was approved."""
        return not (self.num_answers or any(item.get("approval_request_id") for item in self.made))

    def leave_out(self, wrong: HostedTool) -> str:
        """Offer a tool no more of which its server says what is no JSON schema; how it is told."""
        tools = self.lists[wrong.label]
        self.lists[wrong.label] = [tool for tool in tools if tool["name"] != wrong.name]
        return f"{wrong.label}.{wrong.name}"

    def as_json(self) -> bytes:
        """For the frame."""
        return orjson.dumps(
            {
                "lists": self.lists,
                "made": self.made,
                "num_turns": self.num_turns,
                "num_answers": self.num_answers,
                "num_output_tokens": self.num_output_tokens,
                "may_call": self.may_call,
                "compacts": self.compacts,
            }
        )


@dataclass(frozen=True, slots=True)
class HostedServer:
    """A server that a request names, with who must approve what.

    Attributes:
        path: Where in the request.
        approval: `always`, `never`, or the filters of both.
    """

    path: str
    named: NamedServer
    approval: str | Mapping[str, Any]

    def needs_approval(self, tool: Mapping[str, Any]) -> bool:
        """Whether calls of a tool need somebody's approval; what no filter names does."""
        if isinstance(self.approval, str):
            return self.approval == "always"
        if _matches(self.approval.get("always"), tool):
            return True
        return not _matches(self.approval.get("never"), tool)


def _matches(chosen: Any, tool: Mapping[str, Any]) -> bool:
    if not isinstance(chosen, dict):
        return False
    names, reads = chosen.get("tool_names"), chosen.get("read_only")
    if names is None and reads is None:
        return False
    is_named = names is None or tool["name"] in names
    return is_named and (reads is None or reads is _only_reads(tool))


def _only_reads(tool: Mapping[str, Any]) -> bool:
    """Whether a tool says that it changes nothing."""
    annotations = tool.get("annotations")
    return isinstance(annotations, dict) and annotations.get("readOnlyHint") is True


def hosted_server(tool: Item, path: str) -> HostedServer:
    """What a tool of type `mcp` asks for.

    Raises:
        InvalidRequestError: Naming what is wrong.
    """
    for name in ("connector_id", "tunnel_id"):
        if tool.get(name) is not None:
            raise UnsupportedFieldError(
                f"`{path}.{name}` is not supported: this server connects to the MCP servers that it"
                " lists; name one by `server_label` or `server_url`.",
                param=f"{path}.{name}",
            )
    unknown = next((name for name in tool if name not in _FIELDS and tool[name] is not None), None)
    if unknown is not None:
        where = f"{path}.{unknown[:100]}"
        raise UnsupportedFieldError(f"`{where}` is not supported.", param=where)
    label, url = tool.get("server_label"), tool.get("server_url")
    if not isinstance(label, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", label):
        raise _wrong(
            f"{path}.server_label",
            "a letter and at most 63 letters, digits, `_` and `-` are expected.",
        )
    if url is not None and not isinstance(url, str):
        raise _wrong(f"{path}.server_url", "a string is expected.")
    if tool.get("defer_loading"):
        raise UnsupportedFieldError(
            f"`{path}.defer_loading` is not supported: all tools are shown to the model.",
            param=f"{path}.defer_loading",
        )
    callers = tool.get("allowed_callers")
    if callers is not None and (not isinstance(callers, list) or "direct" not in callers):
        raise UnsupportedFieldError(
            f"`{path}.allowed_callers` is not supported without `direct`.",
            param=f"{path}.allowed_callers",
        )
    names, only_reading = _allowed(tool.get("allowed_tools"), f"{path}.allowed_tools")
    named = NamedServer(label, url or "", _headers_json(tool, path), names, only_reading)
    approval = tool.get("require_approval") or "always"
    return HostedServer(path, named, _approval(approval, f"{path}.require_approval"))


def _allowed(allowed: Any, path: str) -> tuple[tuple[str, ...] | None, bool]:
    if allowed is None:
        return None, False
    if isinstance(allowed, list):
        return _names(allowed, path), False
    if not isinstance(allowed, dict):
        raise _wrong(path, "a list of names, or an object, is expected.")
    _check_filter(allowed, path)
    names = allowed.get("tool_names")
    return None if names is None else tuple(names), allowed.get("read_only") is True


def _approval(approval: Any, path: str) -> str | Mapping[str, Any]:
    if isinstance(approval, str) and approval in ("always", "never"):
        return approval
    if not isinstance(approval, dict) or not approval.keys() <= {"always", "never"}:
        raise _wrong(path, "`always`, `never`, or an object with filters of both is expected.")
    for name, chosen in approval.items():
        if chosen is not None:
            _check_filter(chosen, f"{path}.{name}")
    return approval


def _check_filter(chosen: Any, path: str) -> None:
    if not isinstance(chosen, dict) or not chosen.keys() <= {"tool_names", "read_only"}:
        raise _wrong(path, "an object with `tool_names` and `read_only` is expected.")
    if chosen.get("tool_names") is not None:
        _names(chosen["tool_names"], f"{path}.tool_names")
    if not isinstance(chosen.get("read_only", False), bool | None):
        raise _wrong(f"{path}.read_only", "a boolean is expected.")


def _names(names: Any, path: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong(path, "a list of names is expected.")
    return tuple(names)


def _headers_json(tool: Item, path: str) -> str:
    """What the client gives for the server alone. No message here quotes it."""
    headers, token = tool.get("headers"), tool.get("authorization")
    found: dict[str, str] = {}
    for name, value in (headers or {}).items() if isinstance(headers, dict) else ():
        lower = name.lower()
        if not _TOKEN.fullmatch(name) or not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise _wrong(f"{path}.headers", "names and values as HTTP has them are expected.")
        if lower in _OURS or lower.startswith("mcp-"):
            raise _wrong(f"{path}.headers", f"`{lower}` is set by this server.")
        found[name] = value
    if headers is not None and not isinstance(headers, dict):
        raise _wrong(f"{path}.headers", "an object is expected.")
    if token is not None:
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            raise _wrong(f"{path}.authorization", "a token without spaces is expected.")
        if "authorization" in {name.lower() for name in found}:
            raise _wrong(f"{path}.authorization", "it can't go with `headers.Authorization`.")
        found["Authorization"] = f"Bearer {token}"
    num_characters = sum(len(name) + len(value) for name, value in found.items())
    if len(found) > MAX_HEADERS or num_characters > MAX_HEADER_CHARACTERS:
        raise _wrong(
            f"{path}.headers",
            f"at most {MAX_HEADERS} of {MAX_HEADER_CHARACTERS} characters are accepted.",
        )
    return orjson.dumps(found).decode()


def shown_server(tool: Item) -> Item:
    """A tool of type `mcp` as the response repeats it: without what is secret."""
    shown = {key: value for key, value in tool.items() if key not in ("headers", "authorization")}
    return {
        "server_url": None,
        "server_description": None,
        "allowed_tools": None,
        "require_approval": "always",
        **shown,
        "headers": None,
    }


def known_list(item: Item) -> Item:
    """What an item `mcp_list_tools` says: `tools`, `mark` of the server whose they are, `limits`.

    Both end the item's id (`ServerTools.list_mark`). They are empty where the id was made
    elsewhere, `limits` also where an earlier release made it.
    """
    own = item.get("id")
    found = _MARKED.fullmatch(own) if isinstance(own, str) else None
    limits, mark = ("", "") if found is None else (found[1] or "", found[2])
    return {"tools": item["tools"], "mark": mark, "limits": limits}


def lists_enough(known: Item, named: NamedServer) -> bool:
    """Whether a list of before (`known_list`) has all that a request allows of its server."""
    return known["limits"] in (ALL_TOOLS, named.limits)


def known_lists(items: Sequence[Item]) -> dict[str, Item]:
    """What was listed earlier in the context, by label.

    Raises:
        InvalidRequestError: An item is wrong.
    """
    found: dict[str, Item] = {}
    for item in items:
        if item.get("type") != "mcp_list_tools" or item.get("error"):
            continue
        check_list(item, "input")
        found[item["server_label"]] = known_list(item)
    return found


def check_list(item: Item, path: str) -> None:
    """See that an item `mcp_list_tools` lists tools.

    Raises:
        InvalidRequestError: It doesn't.
    """
    tools = item.get("tools")
    if not isinstance(item.get("server_label"), str) or not isinstance(tools, list):
        raise _wrong(path, "an item `mcp_list_tools` needs `server_label` and `tools`.")
    for tool in tools:
        is_tool = isinstance(tool, dict) and isinstance(tool.get("name"), str)
        if not is_tool or not isinstance(tool.get("input_schema"), dict):
            raise _wrong(path, "a tool of `mcp_list_tools` needs `name` and `input_schema`.")


def approved_calls(
    items: Sequence[Item], tools: Mapping[str, HostedTool]
) -> tuple[ApprovedCall, ...]:
    """Calls that were asked for and approved, and not made yet, in the order of their approval.

    Args:
        items: Of the context, of whose lists `known_lists` has seen that they are some.
        tools: That are offered now, by the names that the model sees.

    Raises:
        InvalidRequestError: A response belongs to no request, or is the second one to it.
    """
    asked: dict[str, Item] = {}
    answered: dict[str, Item] = {}
    made: set[str] = set()
    marks: dict[str, str] = {}
    asked_marks: dict[str, str] = {}
    for item in items:
        kind = item.get("type")
        if kind == "mcp_list_tools" and not item.get("error"):
            marks[item["server_label"]] = known_list(item)["mark"]
        elif kind == "mcp_approval_request":
            for field_name in ("id", "server_label", "name", "arguments"):
                if not isinstance(item.get(field_name), str):
                    raise _wrong("input", f"`mcp_approval_request` needs a text `{field_name}`.")
            asked[item["id"]] = item
            asked_marks[item["id"]] = marks.get(item["server_label"], "")
        elif kind == "mcp_approval_response":
            name = item.get("approval_request_id")
            if not isinstance(name, str):
                raise _wrong("input", "`mcp_approval_response` needs a text `approval_request_id`.")
            if name not in asked:
                raise _wrong(
                    "input", f"no `mcp_approval_request` `{name[:100]}` comes before its response."
                )
            if name in answered:
                raise _wrong("input", f"`{name[:100]}` is answered twice.")
            answered[name] = item
        elif kind == "mcp_call" and isinstance(item.get("approval_request_id"), str):
            made.add(item["approval_request_id"])
    known = {(tool.label, tool.name): tool for tool in tools.values()}
    found: list[ApprovedCall] = []
    for name, answer in answered.items():
        if answer.get("approve") is not True or name in made:
            continue
        item = asked[name]
        label, own = item["server_label"], item["name"]
        tool = known.get((label, own))
        schema = "{}" if tool is None else tool.schema_json
        is_same = asked_marks[name] in ("", marks.get(label))
        is_offered = tool is not None and is_same
        found.append(ApprovedCall(name, label, own, item["arguments"], schema, is_offered))
    return tuple(found)


def hosted_tools(
    servers: Sequence[HostedServer], lists: Mapping[str, list[Item]], taken: Set[str]
) -> tuple[dict[str, HostedTool], list[Item]]:
    """The tools of servers by the names that the model sees, and as a chat has them.

    Args:
        servers: That the request names.
        lists: Their tools.
        taken: Names of the request's other tools.
    """
    offered = [
        (server, tool)
        for server in servers
        for tool in lists.get(server.named.label, ())
        # The list may have been made for a request that allowed more.
        if server.named.names is None or tool["name"] in server.named.names
        if not server.named.only_reading or _only_reads(tool)
    ]
    names = seen_names([(server.named.label, tool["name"]) for server, tool in offered], taken)
    found: dict[str, HostedTool] = {}
    chat: list[Item] = []
    for server, tool in offered:
        label, own = server.named.label, tool["name"]
        name = names[label, own]
        if name in found:
            continue  # a client's list has the tool twice
        schema_json = dump_json(tool["input_schema"], "input")
        found[name] = HostedTool(label, own, schema_json, server.needs_approval(tool))
        function = {"name": name, "parameters": tool["input_schema"]}
        if isinstance(tool.get("description"), str) and tool["description"]:
            function["description"] = tool["description"]
        chat.append({"type": "function", "function": function})
    return found, chat


def call_text(item: Item) -> str:
    """What a call came to, as the model reads it."""
    error = item.get("error")
    if error is None:
        output = item.get("output")
        return output if isinstance(output, str) else ""
    if isinstance(error, str):
        return f"Error: {error}"
    if not isinstance(error, dict):
        return "Error"
    content = error.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "Error: " + "\n".join(part for part in parts if isinstance(part, str))
    message = error.get("message")
    return f"Error: {message if isinstance(message, str) else ''}"


def _wrong(param: str, rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid `{param}`: {rule}", param=param)
