"""What Messages answer, and their events."""

from typing import Any, Final

from gateway.http.openapi.shapes import (
    OBJECT,
    TEXT,
    WHOLE,
    Answers,
    Schema,
    by_field,
    is_exactly,
    list_of,
    one_of,
    or_null,
    record,
    ref,
)

_STOP: Final[dict[str, Any]] = {
    "stop_reason": or_null(
        one_of(
            *("end_turn", "max_tokens", "stop_sequence", "tool_use"),
            "model_context_window_exceeded",
        )
    ),
    "stop_sequence": or_null(TEXT),
}
_USAGE: Final[dict[str, Any]] = {
    "input_tokens": WHOLE,
    "cache_creation_input_tokens": WHOLE,
    "cache_read_input_tokens": WHOLE,
    "output_tokens": WHOLE,
    "output_tokens_details": record(thinking_tokens=WHOLE),
}
_BLOCKS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "text": ("TextBlock", {"text": TEXT}),
    "thinking": ("ThinkingBlock", {"thinking": TEXT, "signature": TEXT}),
    "tool_use": ("ToolUseBlock", {"id": TEXT, "name": TEXT, "input": OBJECT}),
}
_DELTAS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "text_delta": ("TextDelta", {"text": TEXT}),
    "thinking_delta": ("ThinkingDelta", {"thinking": TEXT}),
    "signature_delta": ("SignatureDelta", {"signature": TEXT}),
    "input_json_delta": ("InputJsonDelta", {"partial_json": TEXT}),
}
_EVENTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ping": ("PingEvent", {}),
    "message_start": ("MessageStartEvent", {"message": ref("Message")}),
    "content_block_start": (
        "ContentBlockStartEvent",
        {"index": WHOLE, "content_block": ref("ContentBlock")},
    ),
    "content_block_delta": (
        "ContentBlockDeltaEvent",
        {"index": WHOLE, "delta": ref("ContentBlockDelta")},
    ),
    "content_block_stop": ("ContentBlockStopEvent", {"index": WHOLE}),
    "message_delta": ("MessageDeltaEvent", {"delta": record(_STOP), "usage": record(_USAGE)}),
    "message_stop": ("MessageStopEvent", {}),
}


def _records(named: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Schema]:
    return {name: record(type=is_exactly(kind), **fields) for kind, (name, fields) in named.items()}


def _union(named: dict[str, tuple[str, dict[str, Any]]], **more: str) -> Schema:
    return by_field("type", {kind: name for kind, (name, _) in named.items()} | more)


SCHEMAS: Final[dict[str, Schema]] = {
    **_records(_BLOCKS),
    "ContentBlock": _union(_BLOCKS),
    "Message": record(
        id=TEXT,
        type=is_exactly("message"),
        role=is_exactly("assistant"),
        model=TEXT,
        content=list_of(ref("ContentBlock")),
        **_STOP,
        usage=record(**_USAGE, service_tier=is_exactly("standard")),
    ),
    **_records(_DELTAS),
    "ContentBlockDelta": _union(_DELTAS),
    **_records(_EVENTS),
    "MessageEvent": _union(_EVENTS, error="AnthropicError"),
}
ROUTES: Final[dict[str, Answers]] = {
    "POST /v1/messages": Answers(ref("Message"), ref("MessageEvent")),
    "POST /v1/messages/count_tokens": Answers(record(input_tokens=WHOLE)),
}
