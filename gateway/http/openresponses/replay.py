"""The events of a response that is over, as its stream would have told them."""

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.http.openresponses.already_told import BEGINNINGS
from gateway.http.openresponses.render import ToldEvent
from gateway.http.openresponses.stream_script import cut_again
from gateway.json_numbers import loads

Event = dict[str, Any]


def replayed(body: bytes, after: int = -1, script: bytes = b"") -> list[ToldEvent]:
    """Numbered events of a whole response.

    With the script of its stream they are those of the stream. Without one, which is of a response
    that wasn't streamed, the text of each item comes in one piece. Who names the number of an event
    that isn't there gets the end, which says all.

    Args:
        body: The response object, JSON.
        after: The number of the last event that isn't wanted; -1 for all events.
        script: Of `StreamScript`, JSON; empty for none.
    """
    response = loads(body)
    *events, end = _as_told(response, loads(script)) if script else _events(response)
    numbered = [*enumerate(events), (max(len(events), after + 1), end)]
    return [
        ToldEvent(event["type"], number, orjson.dumps({**event, "sequence_number": number}))
        for number, event in numbered
        if number > after
    ]


def _events(response: Event) -> Iterator[Event]:
    begun = _at_its_begin(response)
    for name in ("created", "in_progress"):
        yield {"type": f"response.{name}", "response": begun}
    for place, item in enumerate(response["output"]):
        yield from _of_item(place, item)
    yield {"type": f"response.{response['status']}", "response": response}


def _as_told(response: Event, script: list[list[Any]]) -> Iterator[Event]:
    """The events of a stream, by its script."""
    begun = _at_its_begin(response)
    items = [
        {event["type"]: event for event in _of_item(place, item)}
        for place, item in enumerate(response["output"])
    ]
    told = [[0, 0] for _ in items]
    for kind, *rest in script:
        if kind == "error":
            yield {"type": kind, **rest[1]}
        elif not rest:
            yield {"type": kind, "response": begun if kind in BEGINNINGS else response}
        else:
            place = rest[0]
            # Of a call that never ended the whole response doesn't say that it began.
            of_item = {"item_id": response["output"][place]["id"], "output_index": place}
            event = items[place].get(kind, {"type": kind, **of_item})
            yield from [event] if len(rest) == 1 else cut_again(event, rest[1], told[place])


def _at_its_begin(response: Event) -> Event:
    return {
        **response,
        "status": "in_progress",
        "output": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "completed_at": None,
    }


def _of_item(place: int, item: Event) -> Iterator[Event]:
    yield {"type": "response.output_item.added", "output_index": place, "item": _begun(item)}
    for event in _within(item):
        yield {**event, "item_id": item["id"], "output_index": place}
    yield {"type": "response.output_item.done", "output_index": place, "item": item}


def _begun(item: Event) -> Event:
    """An item as it was before anything of it was there."""
    kind = item["type"]
    status = {"status": "in_progress"} if "status" in item else {}
    begun = {**item, **status, **_EMPTY.get(kind, {})}
    if kind == "reasoning":
        begun.pop("encrypted_content", None)
    return begun


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
