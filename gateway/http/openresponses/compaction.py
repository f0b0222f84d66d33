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
    return _Reading(items).order


def to_sum_up(items: Sequence[Item]) -> list[Item]:
    """The items that a compaction at the end would stand for; none where it would change nothing.

    The user's last message is among them where what follows it is: it says what that was for.
    """
    reading = _Reading(items)
    if reading.is_earlier_long:
        wanted = {*reading.earlier}
    elif reading.is_last_long:
        wanted = {*reading.earlier, *reading.last}
    else:
        return []
    return [items[index] for index in reading.order if index in wanted]


class _Reading:
    """Reads items one after the other, in time that grows with their number.

    Args:
        items: All that there are.

    Attributes:
        order: Places of those that are read.
        earlier: Of what is before the user's last message; without those of the system.
        last: Of that message and what follows it, likewise.
        is_earlier_long: Whether there is something worth summing up before that message.
        is_last_long: Likewise behind it.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.order: list[int] = []
        self.earlier: list[int] = []
        self.last: list[int] = []
        self.is_earlier_long = self.is_last_long = False
        self._system: list[int] = []
        for index, item in enumerate(items):
            self._read(index, item)

    def _read(self, index: int, item: Item) -> None:
        kind, role = kind_of(item), item.get("role")
        if kind == "compaction":
            self._compact(index)
            return
        self.order.append(index)
        if kind == "message" and role in _SYSTEM:
            self._system.append(index)
        elif kind == "message" and role == "user":
            self.earlier += self.last
            self.is_earlier_long |= self.is_last_long
            self.last, self.is_last_long = [index], False
        else:
            is_long = kind not in _UNREAD
            if self.last:
                self.last.append(index)
                self.is_last_long |= is_long
            else:
                self.earlier.append(index)
                self.is_earlier_long |= is_long

    def _compact(self, index: int) -> None:
        if not (self.is_earlier_long or self.is_last_long):
            self.order.append(index)
            (self.last or self.earlier).append(index)
            return
        if not self.is_earlier_long:
            self.last, self.is_last_long = self.last[:1], False
        self.order = [*self._system, index, *self.last]
        self.earlier, self.is_earlier_long = [index], False
