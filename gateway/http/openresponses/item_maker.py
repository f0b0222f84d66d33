"""What of a response's events belongs to which item, and the items that they begin."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.http.openresponses.called_names import CalledNames
from gateway.http.openresponses.events import (
    ApprovedCallBegun,
    CompactionBegun,
    CompactionEnded,
    ResponseEvent,
    ToolsListing,
)
from gateway.http.openresponses.hosted import HostedTool
from gateway.http.openresponses.hosted_items import (
    ApprovalItem,
    CompactionItem,
    HostedCallItem,
    ListItem,
)
from gateway.http.openresponses.items import (
    CallItem,
    CustomCallItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from gateway.http.openresponses.sealing import with_summary
from gateway.http.render.logprobs import chat_logprobs
from gateway.request.delivery.events import (
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.wire.messages import TokenLogprobs

NO_NAMES: Final = CalledNames()


class ItemMaker:
    """Makes the items of one response, and finds the text of an event.

    Args:
        request_id: Of the response, for ids.
        options: What the answer shows.
        spaces: See `ResponsesBody`.
        seals_reasoning: Likewise.
        hosted: Tools that this server runs, by the names that the model sees; those of servers that
            are listed later are added by whoever lists them.
        names: Tells which tool of the client's a call means.
        num_made: Items that an earlier attempt has made.
    """

    def __init__(
        self,
        request_id: str,
        options: AnswerOptions,
        spaces: dict[str, tuple[str, str]],
        *,
        seals_reasoning: bool,
        hosted: Mapping[str, HostedTool],
        names: CalledNames = NO_NAMES,
        num_made: int = 0,
    ) -> None:
        self._request_id = request_id
        self._options = options
        self._spaces = spaces
        self._seals_reasoning = seals_reasoning
        self._hosted = hosted
        self._names = names
        self._num_made = num_made
        self._calls: dict[str, HostedCallItem] = {}

    def next_item(self, event: ResponseEvent, last: Item | None) -> Item | None:
        """The item that an event begins; None when it belongs to the last one, or to none."""
        if isinstance(event, CompactionBegun):
            return CompactionItem(self._new_id())
        if isinstance(event, ToolsListing):
            return ListItem(f"{self._new_id()}_{event.mark}", event.label)
        if isinstance(event, ApprovedCallBegun):
            tool = HostedTool(event.label, event.name)
            return self.know(
                event.id, HostedCallItem(self._new_id(), tool, event.approval_request_id)
            )
        if isinstance(event, ToolCallStarted) and event.name in self._hosted:
            tool = self._hosted[event.name]
            if tool.needs_approval:
                return ApprovalItem(self._new_id(), tool)
            return self.know(event.id, HostedCallItem(self._new_id(), tool))
        if isinstance(event, ToolCallStarted):
            name = self._names.meant(event.name)
            kind = CustomCallItem if name in self._options.custom_tools else CallItem
            return kind(self._new_id(), event, self._spaces.get(name))
        if isinstance(event, ContentText) and (event.text or event.logprobs):
            return None if isinstance(last, MessageItem) else MessageItem(self._new_id())
        if isinstance(event, ReasoningText) and event.text:
            if isinstance(last, ReasoningItem):
                return None
            return ReasoningItem(self._new_id(), is_sealed=self._seals_reasoning)
        return None

    def piece(self, event: ResponseEvent) -> tuple[str, list[Any]] | None:
        """The text that an event adds to its item, with log probabilities where they are told."""
        if isinstance(event, ContentText) and (event.text or event.logprobs):
            return event.text, self._logprobs(event.logprobs)
        if isinstance(event, ReasoningText | ToolCallArguments) and event.text:
            return event.text, []
        if isinstance(event, CompactionEnded):
            return with_summary(event.summary, event.carried_json), []
        if isinstance(event, ApprovedCallBegun):
            return event.arguments, []
        return None

    def know(self, call_id: str, item: HostedCallItem) -> HostedCallItem:
        """An item is that of a call."""
        self._calls[call_id] = item
        return item

    def call(self, call_id: str) -> HostedCallItem:
        """The item of a call."""
        return self._calls[call_id]

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> list[Any]:
        if not tokens or self._options.num_top_logprobs is None:
            return []
        content: list[Any] = chat_logprobs(tokens, self._options)["content"]
        return content

    def _new_id(self) -> str:
        self._num_made += 1
        return f"{self._request_id}_{self._num_made}"
