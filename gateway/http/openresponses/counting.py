"""From a checked Responses body to the question that counts the tokens of its prompt."""

from collections.abc import Mapping
from typing import Any, Final

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.bodies.convert import chat_job
from gateway.http.openresponses.carried import with_carried
from gateway.http.openresponses.conversation import Tools, chat_tool_choice
from gateway.http.openresponses.convert import add_hosted, base_chat
from gateway.http.openresponses.error_words import in_their_words
from gateway.http.openresponses.hosted import HostedPlan, HostedTool, known_lists, lists_enough
from gateway.http.openresponses.schemas import InputTokensRequest
from gateway.http.openresponses.stored_items import Context, whole_items
from gateway.http.schemas.base.body import validate
from gateway.http.schemas.inference.chat import ChatRequest
from protocol.wire.messages import Prepare

_ANY_MODEL: Final = "*"
"""Of a chat that no model answers."""


def count_question(
    request: InputTokensRequest, context: Context | None
) -> tuple[Prepare, list[str]]:
    """The question that counts an input's tokens, and the tools that are left out.

    It is the prompt of the response that the same fields would make. Of servers whose tools nobody
    has listed in the context yet, none are counted.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    tools = Tools(request.tools, runs_hosted=True)
    found = Context(b"") if context is None else context
    items = found.select(whole_items(found.resolved(request.input)), truncates=False)
    items, places = with_carried(items, found.num_before)
    named = {server.named.label: server.named for server in tools.servers}
    lists = {
        label: one["tools"]
        for label, one in known_lists(items).items()
        # A client's own list is counted as it is.
        if label in named and (not one["limits"] or lists_enough(one, named[label]))
    }
    hosted = add_hosted(tools, lists)
    absent = [server for server in tools.servers if server.named.label not in lists]
    plan = HostedPlan(tuple((server.path, server.named) for server in tools.servers), tools=hosted)
    chat = base_chat(request, tools, items, places, plan)
    chat["model"] = request.model or _ANY_MODEL
    if tools.servers:
        _choose(chat, request.tool_choice, hosted, [server.named.label for server in absent])
    try:
        prompt = chat_job(validate(ChatRequest, chat), chat).prepares[0]
    except InvalidRequestError as error:
        raise in_their_words(error, tools.paths) from None
    return bridge.counted(prompt), tools.left_out + [server.path for server in absent]


def _choose(
    chat: dict[str, Any], choice: Any, hosted: Mapping[str, HostedTool], absent: list[str]
) -> None:
    """Leave those tools in a chat that a choice leaves in the prompt.

    Args:
        chat: That is counted.
        choice: Of the request.
        hosted: Tools that are listed.
        absent: Labels of servers whose tools aren't.
    """
    if isinstance(choice, dict):
        is_list = choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list)
        named = choice["tools"] if is_list else [choice]
        listed = [one for one in named if not _is_absent(one, hosted, absent)]
        if len(listed) < len(named) and (is_list or choice.get("name") is not None):
            choice = {**choice, "tools": listed} if is_list else None
        if not listed and choice is not None:
            chat.pop("tools", None)  # only such tools are offered
            return
    chosen = chat_tool_choice(choice, hosted)
    if chosen is not None and "tools" in chat:
        chat["tool_choice"] = chosen


def _is_absent(one: Any, hosted: Mapping[str, HostedTool], absent: list[str]) -> bool:
    """Whether a part of a choice is of a server whose tools aren't listed."""
    if not isinstance(one, dict) or one.get("type") != "mcp":
        return False
    label = one.get("server_label")
    return not hosted if label is None else label in absent
