"""One request's reservation at the auth worker: made, corrected, grown, reported, settled."""

import asyncio
import logging
from typing import Literal

from gateway.errors import DeniedError, RemoteFailureError, WorkerUnavailableError
from gateway.ledger.outbox import Outbox
from gateway.workers.auth import AuthLink
from protocol.wire.messages import Authorize, LeaseReport, LimitState, Settle, StreamUsage, Usage

_logger = logging.getLogger("penstock.gateway.lease")

Outcome = Literal["finished", "aborted", "failed"]
_AUTH_RETRY_S = 0.5


class RequestLease:
    """What a request may use; without a `lease_id` (before `reserve`) nothing is booked.

    Args:
        auth: The link to the auth worker.
        request_id: Of the request.

    Attributes:
        tenant: Whose request it is; `priority` its priority.
        limits: Where the caller stands, as last reported.
        lease_id: As granted; empty before.
    """

    def __init__(self, auth: AuthLink, request_id: str) -> None:
        self.tenant = ""
        self.priority = 0
        self.limits = LimitState()
        self._auth = auth
        self._request_id = request_id
        self.lease_id = ""
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._growing = asyncio.Lock()

    async def reserve(self, authorize: Authorize) -> None:
        """Ask for the upper bound in `authorize`.

        Raises:
            DeniedError: No.
            WorkerUnavailableError: Nobody answers.
        """
        granted = await self._auth.authorize(authorize)
        self.tenant = granted.tenant
        self.priority = granted.priority
        self.limits = granted.limits
        self.lease_id = granted.lease_id
        self._prompt_tokens = authorize.prompt_tokens
        self._completion_tokens = authorize.completion_tokens

    async def correct(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace the upper bound by real numbers.

        Raises:
            DeniedError: It grew beyond what the caller may have.
            WorkerUnavailableError: It grew, and nobody answers.
        """
        if not self.lease_id:
            return
        grows = prompt_tokens > self._prompt_tokens or completion_tokens > self._completion_tokens
        if grows:
            adjusted = await self._auth.adjust(
                self._request_id, self.lease_id, prompt_tokens, completion_tokens
            )
            self.limits = adjusted.limits
        elif (prompt_tokens, completion_tokens) != (self._prompt_tokens, self._completion_tokens):
            # A smaller reservation is never refused, so nobody waits for the answer.
            self._auth.shrink(self._request_id, self.lease_id, prompt_tokens, completion_tokens)
        self._prompt_tokens, self._completion_tokens = prompt_tokens, completion_tokens

    async def grow(self, tokens: int) -> bool:
        """Reserve more output; while the auth worker is away this waits.

        Returns:
            False when the caller's own limits say no.
        """
        async with self._growing:
            wanted = self._completion_tokens + tokens
            while self.lease_id:
                try:
                    await self._auth.adjust(
                        self._request_id, self.lease_id, self._prompt_tokens, wanted
                    )
                    break
                except (DeniedError, RemoteFailureError) as error:
                    _logger.info("request %s gets no more tokens: %s", self._request_id, error.code)
                    return False
                except WorkerUnavailableError:
                    await asyncio.sleep(_AUTH_RETRY_S)
            self._completion_tokens = wanted
            return True

    def report(self, usage: Usage, streams: tuple[StreamUsage, ...] = ()) -> LeaseReport | None:
        """What was used so far, in all and by each of several streams; None before a lease."""
        if not self.lease_id:
            return None
        return LeaseReport(
            lease_id=self.lease_id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            streams=streams,
        )

    def settle(self, outbox: Outbox, usage: Usage, outcome: Outcome) -> None:
        """Book what was really used, and give the rest back."""
        if not self.lease_id:
            return
        outbox.put(
            Settle(
                lease_id=self.lease_id,
                request_id=self._request_id,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                outcome=outcome,
            )
        )
