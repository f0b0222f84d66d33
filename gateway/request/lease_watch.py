"""Keeps choices within what is paid for: grows the lease in time, or ends the answer where it ends."""

from collections.abc import Callable, Coroutine
from typing import Any

from gateway.request.choice import EngineChoice
from gateway.request.lease import RequestLease


class LeaseWatch:
    """Looks after the parts of one request's lease that its choices have.

    Args:
        lease: Of the request.
        slice_tokens: What a choice gets at a time.
        spawn: Runs something beside the request, which ends with it.
    """

    def __init__(
        self,
        lease: RequestLease,
        slice_tokens: int,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._lease = lease
        self._slice_tokens = slice_tokens
        self._spawn = spawn

    def look_at(self, choice: EngineChoice) -> None:
        """Extend a choice's part before its engine runs dry; called after each output."""
        if choice.is_lease_final:
            if choice.is_at_lease_end:
                choice.cut()
        elif (
            choice.lease_tokens - choice.num_output_tokens <= self._slice_tokens // 4
            and choice.lease_tokens < choice.plan.max_output_tokens
            and not choice.is_extending
        ):
            choice.is_extending = True
            self._spawn(self._extend(choice))

    async def _extend(self, choice: EngineChoice) -> None:
        target = min(choice.lease_tokens + self._slice_tokens, choice.plan.max_output_tokens)
        if await self._lease.grow(target - choice.lease_tokens):
            choice.is_extending = False
            choice.extend(target)
        else:
            # The caller's own limit: the answer ends where its lease does, as "length".
            choice.is_lease_final = True
            self.look_at(choice)
