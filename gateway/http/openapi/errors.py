"""How errors are described: in the words of OpenAI, of Anthropic and of JSON-RPC."""

from typing import Any, Final

from gateway.http.errors.error_table import ERROR_TABLE
from gateway.http.openapi.shapes import (
    OBJECT,
    TEXT,
    WHOLE,
    Schema,
    absent_or,
    either,
    is_exactly,
    list_of,
    one_of,
    or_null,
    record,
    ref,
    struct,
)
from protocol.wire.messages import LimitRefusal

_REFUSAL: Final = struct(LimitRefusal, "source", "limit_id", "holder", "frees_s")
_OF_LIMIT: Final[dict[str, Any]] = {
    "limit_source": absent_or(one_of("request", "used", "in_flight")),
    "limit": absent_or(ref("RefusingLimit")),
}
SCHEMAS: Final[dict[str, Schema]] = {
    "RefusingLimit": {
        "description": "The limit that refused a request; money is in micro-units.",
        **record(id=TEXT, scope=TEXT, **_REFUSAL, frees_in_s=or_null(WHOLE)),
    },
    "Error": record(
        error=record(
            message=TEXT,
            type=one_of(*sorted({row.type for row in ERROR_TABLE.values()})),
            param=or_null(TEXT),
            code=TEXT,
            **_OF_LIMIT,
        )
    ),
    "AnthropicError": record(
        type=is_exactly("error"),
        error=record(
            type=TEXT,
            message=TEXT,
            details=record(error_code=TEXT, unsupported=absent_or(list_of(TEXT)), **_OF_LIMIT),
        ),
        request_id=TEXT,
    ),
    "McpError": record(
        jsonrpc=is_exactly("2.0"),
        id=or_null(either(TEXT, WHOLE)),
        error=record(code=WHOLE, message=TEXT, data=absent_or(OBJECT)),
    ),
}
