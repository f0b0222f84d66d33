"""What of a conversation is read once parts of it have been summed up.

An item `compaction` stands for what is before it, but for what the system and the developer say and
the user's last message, which is what is answered. Where nothing but such messages is before it,
as in an answer of `/v1/responses/compact`, all of it is read.
"""

from collections.abc import Sequence
from typing import Any, Final

from gateway.http.openresponses.stored_items import kind_of

Item = dict[str, Any]
_SYSTEM: Final = ("system", "developer")
_UNREAD: Final = ("mcp_list_tools", "mcp_approval_response")


def reading_order(items: Sequence[Item]) -> list[int]:
    """The places of the items that are read, in the order in which they are."""
    order: list[int] = []
    for index, item in enumerate(items):
        if kind_of(item) == "compaction":
            kept, summed_up, last = _parted(items, order)
            order = [*kept, index, *last] if summed_up else [*order, index]
        else:
            order.append(index)
    return order


def to_sum_up(items: Sequence[Item]) -> list[Item]:
    """The items that a compaction at the end would stand for; none where it would change nothing.

    The user's last message is among them where what follows it is: it says what that was for.
    """
    order = reading_order(items)
    _, summed_up, last = _parted(items, order)
    if not summed_up:
        return []
    is_of_last = bool(last) and order[-1] != last[-1]
    wanted = {*summed_up, *(last if is_of_last else ())}
    return [items[index] for index in order if index in wanted]


def _parted(items: Sequence[Item], order: list[int]) -> tuple[list[int], list[int], list[int]]:
    """What stays, what is summed up, and what is still to be answered, of the items read so far."""
    kept = [index for index in order if _is_message(items[index], *_SYSTEM)]
    others = [index for index in order if not _is_message(items[index], *_SYSTEM)]
    begin = max(
        (at for at, index in enumerate(others) if _is_message(items[index], "user")),
        default=len(others),
    )
    earlier, last = others[:begin], others[begin:]
    if any(_is_long(items[index]) for index in earlier):
        return kept, earlier, last
    if any(_is_long(items[index]) for index in last):
        return kept, [*earlier, *last[1:]], last[:1]
    return kept, [], last


def _is_message(item: Item, *roles: str) -> bool:
    return kind_of(item) == "message" and item.get("role") in roles


def _is_long(item: Item) -> bool:
    """Whether an item is worth summing up: an answer, a call, what a tool said."""
    kind = kind_of(item)
    if kind == "message":
        return not _is_message(item, "user", *_SYSTEM)
    return kind != "compaction" and kind not in _UNREAD
