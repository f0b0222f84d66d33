"""The events of a response that is over, as its stream would have told them."""

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.http.openresponses.render import ToldEvent
from gateway.json_numbers import loads

Event = dict[str, Any]


def replayed(body: bytes, after: int = -1) -> list[ToldEvent]:
    """Numbered events of a whole response; the text of each item comes in one piece.

    So there are fewer than its stream had, and their numbers are their own. Who names the number
    of an event of that stream gets the end, which says all, however few came before it.

    Args:
        body: The response object, JSON.
        after: The number of the last event that isn't wanted; -1 for all events.
    """
    *events, end = _events(loads(body))
    numbered = [*enumerate(events), (max(len(events), after + 1), end)]
    return [
        ToldEvent(event["type"], number, orjson.dumps({**event, "sequence_number": number}))
        for number, event in numbered
        if number > after
    ]


def _events(response: Event) -> Iterator[Event]:
    begun = {
        **response,
        "status": "in_progress",
        "output": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "completed_at": None,
    }
    for name in ("created", "in_progress"):
        yield {"type": f"response.{name}", "response": begun}
    for place, item in enumerate(response["output"]):
        yield {
            "type": "response.output_item.added",
            "output_index": place,
            "item": _begun(item),
        }
        for event in _within(item):
            yield {**event, "item_id": item["id"], "output_index": place}
        yield {"type": "response.output_item.done", "output_index": place, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def _begun(item: Event) -> Event:
    """An item as it was before anything of it was there."""
    status = {"status": "in_progress"} if "status" in item else {}
    return {**item, **status, **_EMPTY.get(item["type"], {})}


_EMPTY: dict[str, Event] = {
    "message": {"content": []},
    "reasoning": {"summary": []},
    "function_call": {"arguments": ""},
    "custom_tool_call": {"input": ""},
    "compaction": {"encrypted_content": ""},
    "mcp_list_tools": {"tools": [], "error": None},
    "mcp_call": {"arguments": "", "output": None, "error": None},
    "mcp_approval_request": {"arguments": ""},
}


def _within(item: Event) -> Iterator[Event]:
    kind = item["type"]
    if kind == "message":
        for index, part in enumerate(item["content"]):
            yield from _text(part, index)
    elif kind == "reasoning":
        for index, part in enumerate(item["summary"]):
            yield from _summary(part, index)
    elif kind == "function_call":
        name, arguments = item["name"], item["arguments"]
        yield {"type": "response.function_call_arguments.delta", "delta": arguments}
        yield {
            "type": "response.function_call_arguments.done",
            "name": name,
            "arguments": arguments,
        }
    elif kind == "custom_tool_call":
        yield {"type": "response.custom_tool_call_input.delta", "delta": item["input"]}
        yield {"type": "response.custom_tool_call_input.done", "input": item["input"]}
    elif kind == "compaction":
        yield {"type": "response.compaction.compacting"}
    elif kind in ("mcp_list_tools", "mcp_call"):
        yield from _hosted(item)


def _hosted(item: Event) -> Iterator[Event]:
    end = "completed" if item["error"] is None else "failed"
    if item["type"] == "mcp_list_tools":
        yield {"type": "response.mcp_list_tools.in_progress"}
        yield {"type": f"response.mcp_list_tools.{end}"}
        return
    arguments = item["arguments"]
    yield {"type": "response.mcp_call_arguments.delta", "delta": arguments}
    yield {"type": "response.mcp_call_arguments.done", "arguments": arguments}
    if item["status"] != "incomplete":
        yield {"type": "response.mcp_call.in_progress"}
        yield {"type": f"response.mcp_call.{end}"}


def _text(part: Event, index: int) -> Iterator[Event]:
    text, logprobs = part["text"], part["logprobs"]
    added = {**part, "text": "", "logprobs": []}
    yield {"type": "response.content_part.added", "content_index": index, "part": added}
    told = {"content_index": index, "logprobs": logprobs}
    yield {"type": "response.output_text.delta", "delta": text, **told}
    yield {"type": "response.output_text.done", "text": text, **told}
    yield {"type": "response.content_part.done", "content_index": index, "part": part}


def _summary(part: Event, index: int) -> Iterator[Event]:
    name, text = "response.reasoning_summary", part["text"]
    added = {**part, "text": ""}
    yield {"type": f"{name}_part.added", "summary_index": index, "part": added}
    yield {"type": f"{name}_text.delta", "summary_index": index, "delta": text}
    yield {"type": f"{name}_text.done", "summary_index": index, "text": text}
    yield {"type": f"{name}_part.done", "summary_index": index, "part": part}
