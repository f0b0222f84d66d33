"""Whether two items are one: clients send items back with more or fewer fields than they got."""

from collections.abc import Iterator
from typing import Any, Final

import orjson

from gateway.json_numbers import loads
from gateway.storage.records import ConversationItem

_SAID: Final = frozenset(
    ("text", "refusal", "name", "call_id", "arguments", "input", "output", "reason")
)
"""Fields with what an item says."""
_MAX_KEPT_OF_ID: Final = 128


def is_same(body: bytes, other: bytes) -> bool:
    """Whether items of one id say the same."""
    return body == other or _told(body) == _told(other)


def renamed(item: ConversationItem, number: int) -> ConversationItem:
    """The item under another id, which ends with a number."""
    name = f"{item.id[:_MAX_KEPT_OF_ID]}_{number}"
    return ConversationItem(name, orjson.dumps({**loads(item.body), "id": name}))


def _told(body: bytes) -> list[Any]:
    item = orjson.loads(body)
    return [item.get("type"), item.get("role"), *_words(item, "")]


def _words(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, str) and name in _SAID:
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _words(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from _words(one, name)
