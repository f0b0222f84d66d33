"""Items that clients gave come back as OpenAI's own client declares them."""

from typing import Any, Final, get_args

import pytest
from openai.types.conversations import ConversationItem, Message
from openai.types.responses import (
    ResponseInputMessageItem,
    ResponseItem,
    ResponseOutputMessage,
)
from pydantic import BaseModel

from gateway.errors import InvalidRequestError
from gateway.http.openresponses.convert import conversation_items
from gateway.http.openresponses.sealing import sealed
from gateway.http.openresponses.stored_items import whole_items, with_ids

SUMMARY: Final = {"type": "summary_text", "text": "t"}
GIVEN: Final[list[dict[str, Any]]] = [
    {"role": "user", "content": "x"},
    {"role": "developer", "content": [{"type": "input_text", "text": "x"}]},
    {"role": "assistant", "content": "x"},
    {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": None}]},
    {"type": "reasoning", "summary": [SUMMARY]},
    {"type": "reasoning", "encrypted_content": sealed("t")},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "x", "status": None},
    {"type": "custom_tool_call", "call_id": "2", "name": "c", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "2", "output": "x", "status": "odd"},
    {"type": "mcp_call", "server_label": "s", "name": "n", "arguments": "{}"},
    {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "n", "input_schema": {}}]},
    {"type": "mcp_approval_request", "server_label": "s", "name": "n", "arguments": "{}"},
    {"type": "mcp_approval_response", "approval_request_id": "1", "approve": True},
    {"type": "compaction", "encrypted_content": sealed("t")},
]
SHOWN: Final = list(with_ids(whole_items(GIVEN), "1"))


def classes_of(union: Any, item: dict[str, Any]) -> list[type[BaseModel]]:
    """The classes that declare items of a type; of messages, the one for their role."""
    found = [
        one
        for one in get_args(get_args(union)[0])
        if item["type"] in get_args(one.model_fields["type"].annotation)
    ]
    if item["type"] == "message" and union is ResponseItem:
        said = item["role"] == "assistant"
        return [ResponseOutputMessage if said else ResponseInputMessageItem]
    return [Message] if item["type"] == "message" else found


@pytest.mark.parametrize(
    "union", [ResponseItem, ConversationItem], ids=["response", "conversation"]
)
@pytest.mark.parametrize("item", SHOWN, ids=lambda item: item["type"])
def test_an_item_that_a_client_gave_has_all_that_its_type_needs(
    union: Any, item: dict[str, Any]
) -> None:
    classes = classes_of(union, item)
    assert classes
    for one in classes:
        one.model_validate(item)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "mcp_list_tools"}, "items[0]"),
        ({"type": "mcp_list_tools", "server_label": "s", "tools": [1]}, "items[0]"),
        ({"type": "mcp_approval_response", "approve": True}, "items[0].approval_request_id"),
        ({"type": "mcp_approval_response", "approval_request_id": "1"}, "items[0].approve"),
        ({"type": "mcp_approval_request", "id": "1"}, "items[0].server_label"),
    ],
)
def test_an_item_that_no_response_could_go_on_from_is_not_added(
    item: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        conversation_items([item])
    assert caught.value.param == param


def test_a_state_that_a_client_gave_stays() -> None:
    (item,) = whole_items([{"type": "function_call", "status": "incomplete"}])
    assert item["status"] == "incomplete"
    (item,) = whole_items([{"role": "assistant", "content": "x", "status": "in_progress"}])
    assert item["status"] == "in_progress"
