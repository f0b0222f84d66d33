"""Items on their way into the store and out of it: whole, with ids, and joined to a context."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from gateway.errors import InvalidRequestError
from gateway.http.openresponses.hosted import Progress
from gateway.http.schemas.base.body import dump_json, load_plain_json_object
from gateway.json_numbers import keep_digits
from gateway.storage.records import is_id

Item = dict[str, Any]
MAX_REFERENCES: Final = 256
_LENGTH_BYTES: Final = 8
_PREFIXES: Final[dict[str, str]] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "compaction": "cmp",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
}
_WITH_STATUS: Final = frozenset(
    (
        *("message", "function_call", "function_call_output"),
        *("custom_tool_call", "custom_tool_call_output"),
    )
)
"""Items that always say how far they have come."""
_STATUSES: Final = ("in_progress", "completed", "incomplete")
_NAMED: Final = re.compile(r"[a-z]+_([A-Za-z0-9]+)_[A-Za-z0-9_]+")


def kind_of(item: Item) -> str:
    """The type of an item, empty where it says no text.

    One that says none is a message, or a reference if it has nothing but an id.
    """
    kind = item.get("type")
    if kind is None:
        is_named = item.keys() - {"type"} == {"id"}
        return "item_reference" if is_named else "message"
    return kind if isinstance(kind, str) else ""


def whole_items(given: str | list[Item]) -> list[Item]:
    """Input as a list of items as they are shown: with types and states, and content as parts."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_whole(item) for item in given]


def _whole(item: Item) -> Item:
    kind = kind_of(item)
    if kind == "reasoning":
        return item if isinstance(item.get("summary"), list) else {**item, "summary": []}
    if kind not in _WITH_STATUS:
        return item
    status = item.get("status")
    status = status if isinstance(status, str) and status in _STATUSES else "completed"
    whole = {**item, "type": kind, "status": status}
    if kind == "message":
        whole["content"] = _whole_content(item)
    return whole


def _whole_content(item: Item) -> Any:
    content, is_said = item.get("content"), item.get("role") == "assistant"
    if isinstance(content, str):
        content = [{"type": "output_text" if is_said else "input_text", "text": content}]
    if not is_said or not isinstance(content, list):
        return content
    return [
        {**part, "annotations": []}
        if isinstance(part, dict)
        and part.get("type") == "output_text"
        and not isinstance(part.get("annotations"), list)
        else part
        for part in content
    ]


def with_ids(items: Iterable[Item], base: str, *, tells_apart: bool = False) -> Iterator[Item]:
    """Items as they are shown: those without an id of their own get one made of `base`.

    Args:
        items: As they were stored.
        base: Of the response or conversation that they came with, without its prefix.
        tells_apart: Whether an item gets one, too, whose own id stands before it: who reads a list
            page by page goes on behind an id.
    """
    seen: set[str] = set()
    for number, item in enumerate(items):
        own = item.get("id")
        if isinstance(own, str) and is_id(own) and own not in seen:
            if tells_apart:
                seen.add(own)
            yield item
        else:
            prefix = _PREFIXES.get(kind_of(item), "item")
            yield {"id": f"{prefix}_{base}_i{number}", **_without_id(item)}


def _without_id(item: Item) -> Item:
    return {key: value for key, value in item.items() if key != "id"}


def base_of(stored_id: str) -> str:
    """An id without its prefix."""
    return stored_id.partition("_")[2]


def base_of_item(item_id: str) -> str:
    """The base that an item's id was made of; empty where it was made elsewhere."""
    found = _NAMED.fullmatch(item_id)
    return "" if found is None else found[1]


def references_in(items: str | list[Item]) -> tuple[str, ...]:
    """The ids that `item_reference` items name.

    Raises:
        InvalidRequestError: One has no id, or there are too many.
    """
    if isinstance(items, str):
        return ()
    found: list[str] = []
    for index, item in enumerate(items):
        if kind_of(item) != "item_reference":
            continue
        named = item.get("id")
        if not isinstance(named, str):
            path = f"input[{index}].id"
            raise InvalidRequestError(f"Invalid `{path}`: a string is expected.", param=path)
        found.append(named)
    if len(found) > MAX_REFERENCES:
        raise InvalidRequestError(
            f"Invalid `input`: it has {len(found)} items `item_reference`, and {MAX_REFERENCES} are"
            " accepted; send the items themselves.",
            param="input",
        )
    return tuple(found)


def joined(arrays: Iterable[bytes]) -> bytes:
    """JSON arrays, written without spaces, as one."""
    return b"[" + b",".join(array[1:-1] for array in arrays if len(array) > 2) + b"]"


def framed(
    body: bytes,
    items: bytes,
    references: Mapping[str, bytes],
    max_item_bytes: int | None,
    progress: bytes = b"null",
) -> bytes:
    """A body with what it goes on from, to be parsed together.

    Args:
        body: As the client sent it.
        items: What comes before its own input, a JSON array.
        references: JSON of the items that it names, by id.
        max_item_bytes: Beyond it the oldest items are left out; None leaves none out.
        progress: Of a response whose tools this server runs (`Progress.as_json`).
    """
    named = b",".join(orjson.dumps(name) + b":" + item for name, item in references.items())
    most = b"null" if max_item_bytes is None else b"%d" % max_item_bytes
    context = b'{"items":%b,"references":{%b},"most":%b,"progress":%b}' % (
        *(items, named, most),
        progress,
    )
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body + context


class Context:
    """What a request goes on from.

    Args:
        frame: Of `framed`; None for a request that goes on from nothing.

    Attributes:
        body: The client's.
        num_left_out: Items that are left out because they would be too long.
        num_bytes: Of all items that are left, as JSON.
        num_before: Items before the request's own; negative where some of those are left out.
        progress: Of a response whose tools this server runs; None before it has begun.
    """

    def __init__(self, body: bytes, context: bytes = b"") -> None:
        self.body = body
        self.num_left_out = 0
        self.num_bytes = 0
        self.num_before = 0
        value = load_plain_json_object(context) if context else {}
        keep_digits(context, value, {"items", "references", "progress"})
        self._items: list[Item] = value.get("items", [])
        self._references: dict[str, Item] = value.get("references", {})
        self._most: int | None = value.get("most")
        progress = value.get("progress")
        self.progress = None if progress is None else Progress(**progress)

    @classmethod
    def of_frame(cls, frame: bytes) -> "Context":
        """The parts of a frame."""
        end = _LENGTH_BYTES + int.from_bytes(frame[:_LENGTH_BYTES], "big")
        return cls(frame[_LENGTH_BYTES:end], frame[end:])

    def resolved(self, own: str | list[Item]) -> str | list[Item]:
        """A request's own input, with the items that it names instead of their names."""
        if not self._references or isinstance(own, str):
            return own
        return [
            self._references.get(item["id"], item)
            if kind_of(item) == "item_reference" and isinstance(item.get("id"), str)
            else item
            for item in own
        ]

    def select(self, own: list[Item], *, truncates: bool) -> list[Item]:
        """All that is read: what was before, then the request's own items.

        Args:
            own: Of the request, resolved.
            truncates: Whether the oldest may be left out for `most`. Whole turns are, so that a
                call stays with its output; the last one never is, nor what the system and the
                developer say.
        """
        items = [*self._items, *own]
        self.num_before = len(self._items)
        if not truncates:
            return items
        sizes = [len(dump_json(item, "input")) for item in items]
        total, first = sum(sizes), 0
        turns = [index for index, item in enumerate(items) if _begins_turn(item)]
        for begin in turns:
            if self._most is None or total <= self._most:
                break
            total -= sum(sizes[index] for index in range(first, begin) if not _stays(items[index]))
            first = begin
        kept = list(filter(_stays, items[:first]))
        self.num_left_out, self.num_bytes = first - len(kept), total
        self.num_before -= self.num_left_out
        return [*kept, *items[first:]]


def _begins_turn(item: Item) -> bool:
    return kind_of(item) == "message" and item.get("role") == "user"


def _stays(item: Item) -> bool:
    return kind_of(item) == "message" and item.get("role") in ("system", "developer")
