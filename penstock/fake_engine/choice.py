"""One scripted output under way: where it stands, where it ends, its next delta."""

import sys
from typing import Final

from penstock.fake_engine.script import NUM_BYTE_IDS, WORD_TEXTS, Fault, FaultKind, Script
from protocol.wire.messages import Delta, FinishReason, Generate, Usage

_BLOCK: Final = 64
"""So many tokens of the script are made at a time."""

_ID_TUPLES: Final = tuple((NUM_BYTE_IDS + number,) for number in range(len(WORD_TEXTS)))


class Choice:
    """The state of one choice.

    Args:
        key: Gateway, request and choice.
        command: What asked for it.
        script: What it says.
        limit: Where it ends, output tokens.
        reason: Why it ends there.
        ready_at: When its prompt is computed.
        fault: Trouble that its prompt asks for.
        reads_nobody: Whether a delta holds all that may be said, since nobody reads it as it comes.

    Attributes:
        lease_tokens: Output tokens that are paid for.
        num_tokens: Said so far, by earlier attempts too.
        is_over: It had its end.
    """

    __slots__ = (
        "_base",
        "_block",
        "_fault_at",
        "_num_characters",
        "_num_prompt_tokens",
        "_num_sent",
        "_reads_nobody",
        "_script",
        "attempt",
        "fault_kind",
        "gateway_id",
        "index",
        "is_over",
        "key",
        "lease_tokens",
        "limit",
        "num_tokens",
        "ready_at",
        "reason",
        "request_id",
    )

    def __init__(
        self,
        key: tuple[str, str, int],
        command: Generate,
        script: Script,
        *,
        limit: int,
        reason: FinishReason,
        ready_at: float,
        fault: Fault | None,
        reads_nobody: bool,
    ) -> None:
        self.key = key
        self.gateway_id, self.request_id, self.index = key
        self.attempt = command.attempt
        self.limit = limit
        self.reason = reason
        self.ready_at = ready_at
        self.lease_tokens = command.lease_tokens
        self.num_tokens = len(command.output_token_ids)
        self.is_over = False
        self.fault_kind: FaultKind | None = None if fault is None else fault.kind
        self._fault_at = sys.maxsize if fault is None else fault.num_tokens
        self._script = script
        self._base = self.num_tokens
        self._block: list[int] = []
        self._num_characters = len(script.text(self.num_tokens))
        self._num_sent = command.num_sent_characters
        self._num_prompt_tokens = len(command.prompt_token_ids)
        self._reads_nobody = reads_nobody

    @property
    def is_paused(self) -> bool:
        """Whether it waits for its lease to grow."""
        return self.lease_tokens <= self.num_tokens < self.limit

    @property
    def usage(self) -> Usage:
        """What was used so far."""
        return Usage(prompt_tokens=self._num_prompt_tokens, completion_tokens=self.num_tokens)

    def next_delta(self) -> Delta | None:
        """What comes next; None at the limit and where trouble was asked for."""
        place = self.num_tokens
        stop = min(self.limit, self._fault_at)
        if place >= stop:
            return None
        if self._reads_nobody:
            return self._all_until(min(stop, self.lease_tokens))
        offset = place - self._base
        if offset >= len(self._block):
            self._base, offset = place, 0
            self._block = self._script.tokens(place, min(self.limit, place + _BLOCK))
        index = self._block[offset] - NUM_BYTE_IDS
        text = WORD_TEXTS[index]
        self.num_tokens = place + 1
        self._num_characters = end = self._num_characters + len(text)
        if self._num_sent > end - len(text):
            # A resumed choice may have sent part of this text before it moved here.
            text = text[self._num_sent - end + len(text) :]
        return Delta(
            request_id=self.request_id,
            choice=self.index,
            attempt=self.attempt,
            text=text,
            token_ids=_ID_TUPLES[index],
            token_ends=(end,),
        )

    def _all_until(self, stop: int) -> Delta:
        token_ids = self._script.tokens(self.num_tokens, stop)
        begin = end = self._num_characters
        ends, texts = [], []
        for token_id in token_ids:
            text = WORD_TEXTS[token_id - NUM_BYTE_IDS]
            end += len(text)
            texts.append(text)
            ends.append(end)
        self.num_tokens, self._num_characters = stop, end
        return Delta(
            request_id=self.request_id,
            choice=self.index,
            attempt=self.attempt,
            text="".join(texts)[max(0, self._num_sent - begin) :],
            token_ids=tuple(token_ids),
            token_ends=tuple(ends),
        )
