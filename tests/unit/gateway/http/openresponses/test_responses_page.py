"""docs/responses-api.md says what a compaction takes."""

import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.responses_client_event_param import ResponseCreate
from openai.types.responses.tool_param import ToolParam

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.openresponses.conversation import (
    HOSTED_TOOLS,
    LEFT_OUT_ITEMS,
    Tools,
    chat_messages,
)
from gateway.http.openresponses.item_shapes import ITEM
from gateway.http.openresponses.schemas import (
    HARMLESS_FIELDS,
    CompactRequest,
)

PAGE = Path(__file__).parents[5] / "docs" / "responses-api.md"


def kinds(union: Any) -> set[str]:
    """The types that one of the official client's unions knows."""
    found: set[str] = set()
    for one in get_args(union):
        if isinstance(one, type):
            found |= texts(get_type_hints(one).get("type"))
        else:
            found |= kinds(one)
    return found


def texts(hint: Any) -> set[str]:
    """The texts of literals within a type."""
    if isinstance(hint, str):
        return {hint}
    return {text for one in get_args(hint) for text in texts(one)}


def test_the_page_tells_of_every_tool_and_item_of_the_official_client() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind in kinds(ToolParam):
        try:
            left_out = Tools([{"type": kind}]).left_out
        except InvalidRequestError as error:
            # It is known, and lacks what a tool of it has.
            assert not isinstance(error, UnsupportedFieldError)  # noqa: PT017
            left_out = []
        assert bool(left_out) == (kind in HOSTED_TOOLS), kind
        dated = re.sub(r"(_\d+)+$", "", kind)
        assert f"`{dated}" in text or dated == "function", kind
    for kind in kinds(ResponseInputItemParam):
        tools = Tools(None)
        try:
            chat_messages(None, [{"type": kind}], tools)
        except UnsupportedFieldError as error:
            assert error.message.count(":") > 1, "it says why"  # noqa: PT017
        except InvalidRequestError:
            assert kind in ITEM.kinds
        assert (tools.left_out == ["input[0]"]) == (kind in LEFT_OUT_ITEMS)
        shown = kind.removesuffix("_output") if kind not in LEFT_OUT_ITEMS else kind
        named = shown in text if shown != "message" else True
        assert named or kind.startswith("mcp_"), kind


def test_the_page_tells_of_every_field_of_a_websockets_message() -> None:
    fields, text = PAGE.read_text(encoding="utf-8").split("\n## WebSocket", 1)
    (row,) = re.findall(r"^\| `model`.*", fields, re.MULTILINE)
    own = set(get_type_hints(ResponseCreate)) - set(re.findall(r"`(\w+)`", row))
    assert own == {"type", "generate", "stream_id"}
    assert all(f"`{name}" in text or f'"{name}"' in text for name in own)


def test_the_page_says_what_a_compaction_takes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = text.split("`/v1/responses/compact` doesn't read", 1)[1].split("\n\n", 1)[0]
    assert HARMLESS_FIELDS.keys() | set(re.findall(r"`(\w+)`", told)) == CompactRequest.known_fields
