"""What of a conversation is read once parts of it have been summed up.

An item `compaction` stands for what is before it, but for what the system and the developer say and
the user's last message, which is what is answered. Where nothing but such messages is before it,
as in an answer of `/v1/responses/compact`, all of it is read. A call stays where its output stays
or comes later, and so does a request for approval whose response does.
"""

from collections.abc import Sequence
from typing import Any, Final

from gateway.http.openresponses.stored_items import kind_of

Item = dict[str, Any]
SYSTEM: Final = ("system", "developer")
_UNREAD: Final = ("mcp_list_tools", "mcp_approval_response")
CALLS: Final = ("function_call", "custom_tool_call")
"""Items that the client answers with an output."""
_ASKED_BY: Final = {
    "function_call": "call_id",
    "custom_tool_call": "call_id",
    "mcp_approval_request": "id",
}
"""Items that an item of the client answers, and what they are known by."""
_ANSWERED_BY: Final = {
    "function_call_output": "call_id",
    "custom_tool_call_output": "call_id",
    "mcp_approval_response": "approval_request_id",
}


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
    # Of a call that an earlier compaction has left, the output may go now.
    wanted |= {call for output, call in reading.held.items() if output in wanted}
    return [items[index] for index in reading.order if index in wanted]


def to_carry(items: Sequence[Item]) -> list[Item]:
    """What stays beside a compaction at the end, which carries it (`with_carried`).

    A call whose output may still come is among it, or a request whose approval may.
    """
    outputs = _last_outputs(items)
    waiting = {
        index
        for index, item in enumerate(items)
        if kind_of(item) in _ASKED_BY and index not in outputs
    }
    stays = waiting.union(reading_order([*items, {"type": "compaction"}])) - {len(items)}
    return [items[index] for index in sorted(stays) if kind_of(items[index]) != "compaction"]


def _last_outputs(items: Sequence[Item]) -> dict[int, int]:
    """By the place of a call or request, that of its last answer; ids may come again later."""
    asked: dict[tuple[bool, str], int] = {}
    found: dict[int, int] = {}
    for index, item in enumerate(items):
        kind = kind_of(item)
        field = _ASKED_BY.get(kind) or _ANSWERED_BY.get(kind)
        name = item.get(field) if field is not None else None
        if not isinstance(name, str):
            continue
        key = field == "call_id", name
        if kind in _ASKED_BY:
            asked[key] = index
        elif key in asked:
            found[asked[key]] = index
    return found


class _Reading:
    """Reads items one after the other, in time that grows with their number.

    Args:
        items: All that there are.

    Attributes:
        order: Places of those that are read.
        earlier: Of what is before the user's last message; without those of the system.
        last: Of that message and what follows it, likewise.
        held: Places of calls that no compaction took, as their output stays or comes later; by the
            place of the output.
        is_earlier_long: Whether there is something worth summing up before that message.
        is_last_long: Likewise behind it.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.order: list[int] = []
        self.earlier: list[int] = []
        self.last: list[int] = []
        self.is_earlier_long = self.is_last_long = False
        self.held: dict[int, int] = {}
        self._system: list[int] = []
        self._outputs = _last_outputs(items)
        for index, item in enumerate(items):
            self._read(index, item)

    def _read(self, index: int, item: Item) -> None:
        kind, role = kind_of(item), item.get("role")
        if kind == "compaction":
            self._compact(index)
            return
        self.order.append(index)
        if kind == "message" and role in SYSTEM:
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
        taken = self.earlier
        if not self.is_earlier_long:
            taken = [*taken, *self.last[1:]]
            self.last, self.is_last_long = self.last[:1], False
        self._hold(taken)
        self.order = [*self._system, index, *sorted((*self.held.values(), *self.last))]
        self.earlier, self.is_earlier_long = [index], False

    def _hold(self, taken: Sequence[int]) -> None:
        """Of items that a compaction would take, leave the calls whose output it doesn't take."""
        places = frozenset(taken)
        for place in taken:
            self.held.pop(place, None)
            output = self._outputs.get(place)
            if output is not None and output not in places:
                self.held[output] = place
