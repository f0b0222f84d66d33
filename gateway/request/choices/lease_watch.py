"""Keeps choices within what is paid for, and within what their reader takes."""

from gateway.request.choices.choice import EngineChoice
from gateway.request.delivery.pipeline import EventQueue
from gateway.request.leases.lease import RequestLease
from gateway.request.lifecycle.background import Background


class LeaseWatch:
    """Renews and ends the parts of one request's lease that its choices have.

    An engine stops at the end of its part, so this is where a slow reader pushes back: while events
    of the request are unread, its choices get no more tokens, paid for or not.

    Args:
        lease: Of the request.
        slice_tokens: What a choice gets at a time.
        queue: What the reader has not taken yet.
        background: Runs what waits for the auth worker.
    """

    def __init__(
        self, lease: RequestLease, slice_tokens: int, queue: EventQueue, background: Background
    ) -> None:
        self._lease = lease
        self._slice_tokens = slice_tokens
        self._queue = queue
        self._background = background
        self._waiting: set[EngineChoice] = set()

    def look_at(self, choice: EngineChoice) -> None:
        """Extend a choice's part before its engine runs dry; called after each output."""
        if choice.num_output_tokens > choice.plan.max_output_tokens:
            choice.is_lease_final = True  # its engine doesn't stop where it has to
        if choice.is_lease_final:
            if choice.is_at_lease_end:
                choice.cut()
        elif (
            choice.lease_tokens - choice.num_output_tokens <= self._slice_tokens // 4
            and choice.lease_tokens < choice.plan.max_output_tokens
            and not choice.is_extending
        ):
            if self._queue.is_lagging:
                self._waiting.add(choice)
                self._queue.on_caught_up = self.on_caught_up
            else:
                self._extend(choice)

    def on_caught_up(self) -> None:
        """The reader has taken what there was."""
        waiting, self._waiting = self._waiting, set()
        for choice in waiting:
            if not choice.is_done:
                self.look_at(choice)

    def _extend(self, choice: EngineChoice) -> None:
        target = min(choice.lease_tokens + self._slice_tokens, choice.plan.max_output_tokens)
        if target <= choice.reserved_tokens:
            choice.extend(target)
        else:
            choice.is_extending = True
            self._background.spawn(self._grow(choice, target))

    async def _grow(self, choice: EngineChoice, target: int) -> None:
        if await self._lease.grow(target - choice.reserved_tokens):
            choice.is_extending = False
            choice.reserved_tokens = target
            choice.extend(target)
        else:
            # The caller's own limit: the answer ends where its lease does, as "length".
            choice.is_lease_final = True
            self.look_at(choice)
