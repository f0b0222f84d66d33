"""The fields of items, tools and choices of tools that are read here, or without effect.

Of what an item was when it was made (`id`, `status`, `caller`, `phase` …) nothing depends.
"""

from typing import Final

from gateway.http.schemas.base.shapes import ByType, Fields, ListOf, Shape, fields, with_neutral

_TEXT: Final = fields("type", "text", "annotations", "logprobs", "prompt_cache_breakpoint")
_PARTS: Final = ListOf(
    ByType(
        {
            "input_text": _TEXT,
            "output_text": _TEXT,
            "text": _TEXT,
            "summary_text": _TEXT,
            "reasoning_text": _TEXT,
            "refusal": fields("type", "refusal"),
        }
    )
)


def _item(*names: str, **inner: Shape) -> Fields:
    return fields("type", "id", "status", "created_by", *names, **inner)


_CALL: Final = ("call_id", "name", "namespace", "caller", "async")
_HOSTED: Final = ("server_label", "name", "arguments")
ITEM: Final = ByType(
    {
        "message": _item("role", "phase", content=_PARTS),
        "reasoning": _item("encrypted_content", summary=_PARTS, content=_PARTS),
        "function_call": _item(*_CALL, "arguments"),
        "function_call_output": _item(*_CALL, output=_PARTS),
        "custom_tool_call": _item(*_CALL, "input"),
        "custom_tool_call_output": _item(*_CALL, output=_PARTS),
        # What a server says of its tools is its own.
        "mcp_list_tools": _item("server_label", "tools", "error"),
        "mcp_call": _item(*_HOSTED, "approval_request_id", "output", "error"),
        "mcp_approval_request": _item(*_HOSTED),
        "mcp_approval_response": _item("approval_request_id", "approve", "reason"),
        "compaction": _item("encrypted_content"),
        "item_reference": fields("type", "id"),
    },
    default="message",
)
_FORMAT: Final = ByType(
    {
        "text": fields("type"),
        "grammar": fields("type", "syntax", "definition", grammar=fields("syntax", "definition")),
    }
)
# The model alone calls tools, sees all of them, and waits for what they answer.
_NEUTRAL: Final = {"allowed_callers": (["direct"],), "defer_loading": (False,), "async": (False,)}
_OWN_TOOLS: Final[dict[str, Fields]] = {
    "function": with_neutral(
        fields("type", "name", "description", "parameters", "strict"), _NEUTRAL
    ),
    "custom": with_neutral(fields("type", "name", "description", format=_FORMAT), _NEUTRAL),
}
TOOL: Final = ByType(
    {
        **_OWN_TOOLS,
        "namespace": fields("type", "name", "description", tools=ListOf(ByType(_OWN_TOOLS))),
        # Of `mcp` nothing unknown is taken; others are named as a whole.
    }
)
TOOL_CHOICE: Final = ByType(
    {
        "function": fields("type", "name"),
        "custom": fields("type", "name"),
        "mcp": fields("type", "server_label", "name"),
        "allowed_tools": fields("type", "mode", "tools"),
    }
)
