"""Limits per minute as exact sliding windows, with reservations; pure, `now` is an argument."""

from collections import deque
from dataclasses import dataclass, field

from protocol.wire.messages import LimitState

SPAN_S = 60.0
SLOT_S = 1.0
SETTLEMENT_RETRY_S = 5.0
"""Advice when only a settlement can make room: nobody knows when it comes."""


class SlidingWindow:
    """How much was added within the last minute, never counted too short.

    Amounts are kept in slots of one second, and a slot leaves once *all* of it is older than the
    span. So in no interval of 60 seconds, wherever it begins, can more than the limit pass; the
    price is that an amount counts up to one second longer. At most 61 slots are held.
    """

    __slots__ = ("_slots", "_total")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()  # [slot index, amount], oldest first
        self._total = 0

    def add(self, now_s: float, amount: int) -> None:
        """Count an amount at this moment; moments must not run backwards."""
        if amount <= 0:
            return
        slot = int(now_s // SLOT_S)
        if self._slots and self._slots[-1][0] >= slot:
            self._slots[-1][1] += amount
        else:
            self._slots.append([slot, amount])
        self._total += amount

    def take_back(self, at_s: float, amount: int) -> None:
        """Uncount what was added at a moment; nothing, when it has left already."""
        slot = int(at_s // SLOT_S)
        for entry in reversed(self._slots):
            if entry[0] == slot:
                taken = min(amount, entry[1])
                entry[1] -= taken
                self._total -= taken
                return

    def used(self, now_s: float) -> int:
        """What counts at this moment."""
        while self._slots and self._leaves_at(self._slots[0][0]) <= now_s:
            self._total -= self._slots.popleft()[1]
        return self._total

    def wait_for(self, now_s: float, amount: int) -> float | None:
        """Seconds until at least `amount` has left; None when the window doesn't hold so much."""
        freed = 0
        for slot, slot_amount in self._slots:
            if freed >= amount:
                break
            freed += slot_amount
            if freed >= amount:
                return max(0.0, self._leaves_at(slot) - now_s)
        return 0.0 if freed >= amount else None

    def reset_s(self, now_s: float) -> float:
        """Seconds until nothing counts any more."""
        if not self._slots:
            return 0.0
        return max(0.0, self._leaves_at(self._slots[-1][0]) - now_s)

    @staticmethod
    def _leaves_at(slot: int) -> float:
        return (slot + 1) * SLOT_S + SPAN_S


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a reservation doesn't fit.

    Attributes:
        retry_after_s: When trying again makes sense; None = never, it is over the limit alone.
    """

    message: str
    retry_after_s: float | None


@dataclass(slots=True)
class KeyLimits:
    """The windows of one key.

    Requests count from the moment they are granted. Tokens count while they are reserved, and for
    a minute after they were settled; so the tokens settled in any minute stay within the limit as
    long as nobody uses more than was reserved.
    """

    requests_per_minute: int | None
    tokens_per_minute: int | None
    reserved_tokens: int = 0
    _requests: SlidingWindow = field(default_factory=SlidingWindow)
    _tokens: SlidingWindow = field(default_factory=SlidingWindow)

    def reserve(self, now_s: float, num_tokens: int) -> Refusal | None:
        """Take one request and its token bound, both or none; without tokens it needs no room."""
        refusal = self._refuse_request(now_s)
        if refusal is None and num_tokens:
            refusal = self._refuse_tokens(now_s, num_tokens, num_tokens)
        if refusal is None:
            self._requests.add(now_s, 1)
            self.reserved_tokens += num_tokens
        return refusal

    def resize(self, now_s: float, num_before: int, num_after: int) -> Refusal | None:
        """Replace a reservation; one that shrinks is never refused."""
        if num_after > num_before:
            refusal = self._refuse_tokens(now_s, num_after - num_before, num_after)
            if refusal is not None:
                return refusal
        self.reserved_tokens += num_after - num_before
        return None

    def settle(self, now_s: float, num_reserved: int, num_used: int) -> None:
        """Turn a reservation into use; more than was reserved counts in full."""
        self.reserved_tokens -= num_reserved
        self._tokens.add(now_s, num_used)

    def give_back(self, num_reserved: int, counted_s: float | None) -> None:
        """Take a grant back whole, as if it had never been: its tokens and its request.

        Args:
            num_reserved: Tokens.
            counted_s: When the request was counted; None when it was not.
        """
        self.reserved_tokens -= num_reserved
        if counted_s is not None:
            self._requests.take_back(counted_s, 1)

    def readmit(self, num_tokens: int) -> None:
        """Reserve again, unasked, what a lease of before a restart holds."""
        self.reserved_tokens += num_tokens

    def restore_request(self, granted_s: float) -> None:
        """Count a request of before a restart again; call in the order of time."""
        self._requests.add(granted_s, 1)

    def restore_tokens(self, settled_s: float, num_tokens: int) -> None:
        """Count tokens of before a restart again; call in the order of time."""
        self._tokens.add(settled_s, num_tokens)

    def state(self, now_s: float) -> LimitState:
        """Where the key stands, for the headers of the answer."""
        requests: tuple[int | None, int | None, float | None] = (None, None, None)
        tokens: tuple[int | None, int | None, float | None] = (None, None, None)
        if self.requests_per_minute is not None:
            remaining = self.requests_per_minute - self._requests.used(now_s)
            requests = (self.requests_per_minute, max(0, remaining), self._requests.reset_s(now_s))
        if self.tokens_per_minute is not None:
            remaining = self.tokens_per_minute - self._tokens.used(now_s) - self.reserved_tokens
            tokens = (self.tokens_per_minute, max(0, remaining), self._tokens.reset_s(now_s))
        return LimitState(
            limit_requests=requests[0],
            remaining_requests=requests[1],
            reset_requests_s=requests[2],
            limit_tokens=tokens[0],
            remaining_tokens=tokens[1],
            reset_tokens_s=tokens[2],
        )

    def _refuse_request(self, now_s: float) -> Refusal | None:
        limit = self.requests_per_minute
        if limit is None:
            return None
        excess = self._requests.used(now_s) + 1 - limit
        if excess <= 0:
            return None
        if limit == 0:
            return Refusal("This key may send no requests: its limit is 0 per minute.", None)
        wait_s = _wait_s(self._requests, now_s, excess)
        return Refusal(
            f"Rate limit reached: this key may send {limit} requests per minute."
            f" Try again in {wait_s:.1f} s.",
            wait_s,
        )

    def _refuse_tokens(self, now_s: float, num_more: int, num_request: int) -> Refusal | None:
        limit = self.tokens_per_minute
        if limit is None:
            return None
        if num_request > limit:
            return Refusal(
                f"This request may use up to {num_request} tokens (its prompt, counted by bytes"
                f" until it is tokenised, and its completion), but this key may use {limit} tokens"
                " per minute."
                " Shorten the prompt, ask for fewer completion tokens or raise the limit.",
                None,
            )
        used = self._tokens.used(now_s)
        excess = used + self.reserved_tokens + num_more - limit
        if excess <= 0:
            return None
        wait_s = _wait_s(self._tokens, now_s, excess)
        return Refusal(
            f"Rate limit reached: this key may use {limit} tokens per minute; {used} were used,"
            f" {self.reserved_tokens} are reserved by running requests and {num_more} more were"
            f" asked for. Try again in {wait_s:.1f} s.",
            wait_s,
        )


def _wait_s(window: SlidingWindow, now_s: float, excess: int) -> float:
    wait_s = window.wait_for(now_s, excess)
    return SETTLEMENT_RETRY_S if wait_s is None else wait_s
