"""The items of tools that this server runs: lists of tools, calls, and requests for approval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.http.openresponses.hosted import HostedTool
from gateway.http.openresponses.items import Event, Item
from gateway.http.openresponses.sealing import sealed

_CALL: Final = "response.mcp_call"
_LIST: Final = "response.mcp_list_tools"


class ListItem(Item):
    """The tools of a server."""

    prefix = "mcpl"

    def __init__(self, item_id: str, label: str) -> None:
        super().__init__(item_id)
        self._label = label
        self._tools: list[Any] = []
        self._error: str | None = None

    def listed(self, tools: list[Any], error: str | None) -> None:
        """What the server said."""
        self._tools, self._error = tools, error

    def as_object(self, status: str) -> dict[str, Any]:
        """With the tools, or with why there are none."""
        return {
            "type": "mcp_list_tools",
            "id": self.id,
            "server_label": self._label,
            "tools": self._tools,
            "error": self._error,
        }

    def opening(self) -> Iterator[Event]:
        """It is under way."""
        yield {"type": f"{_LIST}.in_progress"}

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """A list has no text."""
        return None

    def closing(self) -> Iterator[Event]:
        """How it went."""
        yield {"type": f"{_LIST}.{'completed' if self._error is None else 'failed'}"}


class HostedCallItem(Item):
    """A call that this server makes.

    Args:
        item_id: Unique within the server.
        tool: That is called.
        approval_request_id: Of the item that asked for its approval, where one did.
    """

    prefix = "mcp"

    def __init__(
        self, item_id: str, tool: HostedTool, approval_request_id: str | None = None
    ) -> None:
        super().__init__(item_id)
        self._tool = tool
        self._approval_request_id = approval_request_id
        self._output: str | None = None
        self._error: dict[str, Any] | None = None
        self.is_open = True

    def ended(self, output: str | None, error: dict[str, Any] | None) -> Event:
        """What it came to."""
        self._output, self._error, self.is_open = output, error, False
        return {"type": f"{_CALL}.{'completed' if error is None else 'failed'}"}

    def running(self) -> Event:
        """The tool is about to run."""
        return {"type": f"{_CALL}.in_progress"}

    def as_object(self, status: str) -> dict[str, Any]:
        """With its arguments and, once it has ended, its result."""
        if self._error is not None:
            status = "failed"
        elif self.is_open and status == "completed":
            status = "incomplete"
        return {
            "type": "mcp_call",
            "id": self.id,
            "server_label": self._tool.label,
            "name": self._tool.name,
            "arguments": "" if status == "in_progress" else self.text,
            "approval_request_id": self._approval_request_id,
            "output": self._output,
            "error": self._error,
            "status": status,
        }

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """More of the arguments."""
        self.pieces.append(text)
        return {"type": f"{_CALL}_arguments.delta", "delta": text}

    def closing(self) -> Iterator[Event]:
        """All of the arguments; the call itself may take longer."""
        yield {"type": f"{_CALL}_arguments.done", "arguments": self.text}


class ApprovalItem(Item):
    """A call that somebody has to approve before it is made."""

    prefix = "mcpr"

    def __init__(self, item_id: str, tool: HostedTool) -> None:
        super().__init__(item_id)
        self._tool = tool

    def as_object(self, status: str) -> dict[str, Any]:
        """With all that there is to approve."""
        return {
            "type": "mcp_approval_request",
            "id": self.id,
            "server_label": self._tool.label,
            "name": self._tool.name,
            "arguments": self.text,
        }

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """More of the arguments, which are told as a whole."""
        self.pieces.append(text)
        return None

    def closing(self) -> Iterator[Event]:
        """Nothing: `output_item.done` says it all."""
        return iter(())


class CompactionItem(Item):
    """A summary of what is before it, told as an opaque text."""

    prefix = "cmp"

    def as_object(self, status: str) -> dict[str, Any]:
        """With the summary, once there is one."""
        text = "" if status == "in_progress" else sealed(self.text)
        return {"type": "compaction", "id": self.id, "encrypted_content": text}

    def opening(self) -> Iterator[Event]:
        """It is under way."""
        yield {"type": "response.compaction.compacting"}

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """The summary, which is told as a whole."""
        self.pieces.append(text)
        return None

    def closing(self) -> Iterator[Event]:
        """Nothing: `output_item.done` says it all."""
        return iter(())


class KeptItem(Item):
    """An item that an earlier attempt at the response has told, as it told it."""

    prefix = ""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__("")
        self.id = str(told["id"])
        self._told = told

    def as_object(self, status: str) -> dict[str, Any]:
        """As it was told."""
        return self._told

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """It is over."""
        return None

    def closing(self) -> Iterator[Event]:
        """It was closed."""
        return iter(())


@dataclass(slots=True)
class Earlier:
    """What an earlier attempt at a response has done.

    Attributes:
        items: Of the turns that are over, as they were told.
        interrupted: Ids of those calls among them that may have begun, and that nobody saw end.
        num_turns: Turns that are over.
        num_answers: Of these, those that answered; others summed something up.
        num_calls: Calls that were begun, or refused for their arguments.
        has_blank_summary: Whether it should have been summed up, and nothing came: a turn that no
            event tells of.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    num_turns: int = 0
    num_answers: int = 0
    num_calls: int = 0
    has_blank_summary: bool = False

    @property
    def is_summed_up(self) -> bool:
        """Whether its last turn has summed up what was before it."""
        return [item["type"] for item in self.items[-1:]] == ["compaction"]


class KnowsCalls(Protocol):
    """Finds the items of calls."""

    def know(self, call_id: str, item: HostedCallItem) -> HostedCallItem:
        """An item is that of a call."""
        ...


def restored_items(earlier: Earlier, maker: KnowsCalls) -> list[Item]:
    """The items of an earlier attempt; calls that were interrupted are open, and known by id."""
    found: list[Item] = []
    for told in earlier.items:
        if told["id"] not in earlier.interrupted:
            found.append(KeptItem(told))
            continue
        tool = HostedTool(told["server_label"], told["name"])
        own = str(told["id"]).removeprefix(f"{HostedCallItem.prefix}_")
        item = HostedCallItem(own, tool, told.get("approval_request_id"))
        item.pieces.append(told["arguments"])
        found.append(maker.know(told["id"], item))
    return found


def earlier_turns(events: Sequence[dict[str, Any]]) -> tuple[Earlier, int]:
    """What of an attempt is over, and how many of its events tell of that.

    A compaction is a turn of its own, over when its item is. A call is told to be running
    before it runs, and all of its turn before that. So whatever comes before such an event is
    over, and what comes behind the last one will be made again.

    Args:
        events: Of an attempt, in order.
    """
    found = Earlier()
    items: list[dict[str, Any]] = []
    done: set[str] = set()
    called: set[str] = set()
    is_calling, num_events, num_items, num_summaries = False, 0, 0, 0
    for number, event in enumerate(events, 1):
        kind = event["type"]
        if kind == "response.output_item.added":
            is_calling = False
            items.append(event["item"])
            continue
        if kind == f"{_CALL}_arguments.done":
            items[event["output_index"]]["arguments"] = event["arguments"]
        is_done = kind == "response.output_item.done"
        if is_done:
            items[event["output_index"]] = event["item"]
            done.add(event["item"]["id"])
        item = items[event["output_index"]] if "output_index" in event else {}
        is_of_call = item.get("type") == "mcp_call" and (is_done or kind == f"{_CALL}.in_progress")
        if is_of_call:
            called.add(item["id"])
        if is_of_call and not is_calling:
            is_calling = True
            found.num_answers += item["approval_request_id"] is None
        is_compaction = is_done and item["type"] == "compaction"
        num_summaries += is_compaction
        if is_of_call or is_compaction or (is_done and item["type"] == "mcp_list_tools"):
            num_events, num_items = number, len(items)
    found.num_turns = found.num_answers + num_summaries
    found.items = items[:num_items]
    found.num_calls = len(called)
    found.interrupted = [item["id"] for item in found.items if item["id"] not in done]
    return found, num_events
