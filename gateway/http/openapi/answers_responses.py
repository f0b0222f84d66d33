"""What Responses and conversations answer, and the events of a response."""

from typing import Any, Final

from gateway.http.openapi.shapes import (
    ANYTHING,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Answers,
    Schema,
    absent_or,
    by_field,
    either,
    is_exactly,
    list_of,
    map_of,
    one_of,
    or_null,
    page_of,
    record,
    ref,
)

_STATUS: Final = one_of("in_progress", "completed", "incomplete")
_LOGPROBS: Final = list_of(ref("TokenLogprob"))
_HOSTED: Final[dict[str, Any]] = {"id": TEXT, "server_label": TEXT}
_CALL: Final[dict[str, Any]] = {
    "id": TEXT,
    "call_id": TEXT,
    "name": TEXT,
    "status": _STATUS,
    "namespace": absent_or(TEXT),
}
_ITEMS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "message": (
        "ResponseMessage",
        {
            "id": TEXT,
            "status": _STATUS,
            "role": is_exactly("assistant"),
            "content": list_of(ref("OutputText")),
        },
    ),
    "reasoning": (
        "ResponseReasoning",
        {
            "id": TEXT,
            "status": _STATUS,
            "summary": list_of(ref("SummaryText")),
            "encrypted_content": absent_or(TEXT),
        },
    ),
    "function_call": ("ResponseFunctionCall", {**_CALL, "arguments": TEXT}),
    "custom_tool_call": ("ResponseCustomToolCall", {**_CALL, "input": TEXT}),
    "compaction": ("ResponseCompaction", {"id": TEXT, "encrypted_content": TEXT}),
    "mcp_list_tools": (
        "ResponseMcpListTools",
        {**_HOSTED, "tools": list_of(OBJECT), "error": or_null(TEXT)},
    ),
    "mcp_call": (
        "ResponseMcpCall",
        {
            **_HOSTED,
            "name": TEXT,
            "arguments": TEXT,
            "approval_request_id": or_null(TEXT),
            "output": or_null(TEXT),
            "error": or_null(OBJECT),
            "status": one_of("in_progress", "completed", "incomplete", "failed"),
        },
    ),
    "mcp_approval_request": (
        "ResponseMcpApprovalRequest",
        {**_HOSTED, "name": TEXT, "arguments": TEXT},
    ),
}
_AS_SENT: Final = {"description": "Null, or as it was sent: a text of OpenAI's clients."}
_PLACED: Final[dict[str, Any]] = {"item_id": TEXT, "output_index": WHOLE}
_IN_TEXT: Final[dict[str, Any]] = {**_PLACED, "content_index": WHOLE}
_IN_SUMMARY: Final[dict[str, Any]] = {**_PLACED, "summary_index": WHOLE}
_OF_ITEM: Final[dict[str, Any]] = {"output_index": WHOLE, "item": ref("ResponseItem")}
_EVENTS: Final[dict[str, dict[str, Any]]] = {
    **{
        f"response.{name}": {"response": ref("Response")}
        for name in ("created", "queued", "in_progress", "completed", "incomplete", "failed")
    },
    "response.output_item.added": _OF_ITEM,
    "response.output_item.done": _OF_ITEM,
    "response.content_part.added": {**_IN_TEXT, "part": ref("OutputText")},
    "response.content_part.done": {**_IN_TEXT, "part": ref("OutputText")},
    "response.output_text.delta": {**_IN_TEXT, "delta": TEXT, "logprobs": _LOGPROBS},
    "response.output_text.done": {**_IN_TEXT, "text": TEXT, "logprobs": _LOGPROBS},
    "response.reasoning_summary_part.added": {**_IN_SUMMARY, "part": ref("SummaryText")},
    "response.reasoning_summary_part.done": {**_IN_SUMMARY, "part": ref("SummaryText")},
    "response.reasoning_summary_text.delta": {**_IN_SUMMARY, "delta": TEXT},
    "response.reasoning_summary_text.done": {**_IN_SUMMARY, "text": TEXT},
    "response.function_call_arguments.delta": {**_PLACED, "delta": TEXT},
    "response.function_call_arguments.done": {**_PLACED, "name": TEXT, "arguments": TEXT},
    "response.custom_tool_call_input.delta": {**_PLACED, "delta": TEXT},
    "response.custom_tool_call_input.done": {**_PLACED, "input": TEXT},
    "response.mcp_call_arguments.delta": {**_PLACED, "delta": TEXT},
    "response.mcp_call_arguments.done": {**_PLACED, "arguments": TEXT},
    **{
        f"response.{what}.{how}": _PLACED
        for what in ("mcp_call", "mcp_list_tools")
        for how in ("in_progress", "completed", "failed")
    },
    "response.compaction.compacting": _PLACED,
    "error": {"code": TEXT, "message": TEXT, "param": or_null(TEXT)},
}


def _event_name(kind: str) -> str:
    words = kind.replace("_", ".").split(".")
    name = "".join(word.capitalize() for word in words)
    return f"{name if words[0] == 'response' else f'Response{name}'}Event"


SCHEMAS: Final[dict[str, Schema]] = {
    "ResponseUsage": record(
        input_tokens=WHOLE,
        input_tokens_details=record(cached_tokens=WHOLE, cache_write_tokens=WHOLE),
        output_tokens=WHOLE,
        output_tokens_details=record(reasoning_tokens=WHOLE),
        total_tokens=WHOLE,
    ),
    "OutputText": record(
        type=is_exactly("output_text"),
        text=TEXT,
        annotations={**list_of(ANYTHING), "maxItems": 0},
        logprobs=_LOGPROBS,
    ),
    "SummaryText": record(type=is_exactly("summary_text"), text=TEXT),
    **{name: record(type=is_exactly(kind), **fields) for kind, (name, fields) in _ITEMS.items()},
    "ResponseItem": by_field("type", {kind: name for kind, (name, _) in _ITEMS.items()}),
    "InputItem": {
        "type": "object",
        "description": "An item as it was sent, or as a response made it.",
        "required": ["id"],
        "properties": {"id": TEXT, "type": TEXT},
    },
    "Response": record(
        id=TEXT,
        object=is_exactly("response"),
        created_at=WHOLE,
        completed_at=or_null(WHOLE),
        status=one_of(
            *("queued", "in_progress", "completed", "incomplete", "failed", "cancelled"),
        ),
        model=TEXT,
        error=or_null(record(code=TEXT, message=TEXT)),
        incomplete_details=or_null(record(reason=is_exactly("max_output_tokens"))),
        output=list_of(ref("ResponseItem")),
        usage=or_null(ref("ResponseUsage")),
        instructions=or_null(TEXT),
        previous_response_id=or_null(TEXT),
        max_output_tokens=or_null(WHOLE),
        max_tool_calls=or_null(WHOLE),
        safety_identifier=or_null(TEXT),
        user=_AS_SENT,
        prompt_cache_key=or_null(TEXT),
        temperature=NUMBER,
        top_p=NUMBER,
        presence_penalty=NUMBER,
        frequency_penalty=NUMBER,
        top_logprobs=WHOLE,
        parallel_tool_calls=FLAG,
        store=FLAG,
        background=FLAG,
        truncation=one_of("auto", "disabled"),
        service_tier=is_exactly("default"),
        metadata=map_of(TEXT),
        tool_choice=either(TEXT, OBJECT),
        tools=list_of(OBJECT),
        text=record(format=OBJECT, verbosity=absent_or(TEXT)),
        reasoning=or_null(record(effort=or_null(TEXT), summary=or_null(TEXT))),
        conversation=absent_or(record(id=TEXT)),
    ),
    **{
        _event_name(kind): record(type=is_exactly(kind), sequence_number=WHOLE, **fields)
        for kind, fields in _EVENTS.items()
    },
    "ResponseEvent": by_field("type", {kind: _event_name(kind) for kind in _EVENTS}),
    "InputTokens": record(object=is_exactly("response.input_tokens"), input_tokens=WHOLE),
    "CompactedResponse": record(
        id=TEXT,
        object=is_exactly("response.compaction"),
        created_at=WHOLE,
        output=list_of(ref("InputItem")),
        usage=ref("ResponseUsage"),
    ),
    "ItemPage": page_of(ref("InputItem")),
    "Conversation": record(
        id=TEXT, object=is_exactly("conversation"), created_at=WHOLE, metadata=map_of(TEXT)
    ),
}
_RESPONSE: Final = Answers(ref("Response"), ref("ResponseEvent"))
_CONVERSATION: Final = Answers(ref("Conversation"))
_ONE: Final = "/v1/responses/{response_id}"
_OF: Final = "/v1/conversations/{conversation_id}"
ROUTES: Final[dict[str, Answers]] = {
    "POST /v1/responses": _RESPONSE,
    "POST /v1/responses/input_tokens": Answers(ref("InputTokens")),
    "POST /v1/responses/compact": Answers(ref("CompactedResponse")),
    f"GET {_ONE}": _RESPONSE,
    f"DELETE {_ONE}": Answers(
        record(id=TEXT, object=is_exactly("response"), deleted={"const": True})
    ),
    f"POST {_ONE}/cancel": Answers(ref("Response")),
    f"GET {_ONE}/input_items": Answers(ref("ItemPage")),
    "POST /v1/conversations": _CONVERSATION,
    f"GET {_OF}": _CONVERSATION,
    f"POST {_OF}": _CONVERSATION,
    f"DELETE {_OF}": Answers(
        record(id=TEXT, object=is_exactly("conversation.deleted"), deleted={"const": True})
    ),
    f"GET {_OF}/items": Answers(ref("ItemPage")),
    f"POST {_OF}/items": Answers(ref("ItemPage")),
    f"GET {_OF}/items/{{item_id}}": Answers(ref("InputItem")),
    f"DELETE {_OF}/items/{{item_id}}": _CONVERSATION,
}
