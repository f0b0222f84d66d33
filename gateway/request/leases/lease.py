"""One request's reservation at the auth worker: corrected, grown, reported, settled."""

import asyncio
import logging

from gateway import bridge
from gateway.bridge import Outcome
from gateway.errors import DeniedError, GatewayError, RemoteFailureError, WorkerUnavailableError
from gateway.ledger.outbox import Outbox
from gateway.request.callers.caller import Errand
from gateway.request.leases.work_bound import Bound
from gateway.workers.auth import AuthLink
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Authorize,
    Granted,
    LeaseReport,
    LimitState,
    LimitWarning,
    Settle,
    StreamUsage,
    Usage,
)

_logger = logging.getLogger("penstock.gateway.lease")

_AUTH_RETRY_S = 0.5
_FINAL = frozenset(
    {
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.INSUFFICIENT_QUOTA,
        ErrorCode.BUDGET_EXCEEDED,
        ErrorCode.INVALID_API_KEY,
        ErrorCode.PERMISSION_DENIED,
        ErrorCode.UNKNOWN_LEASE,
        ErrorCode.INVALID_REQUEST,
    }
)
"""Refusals that are the caller's own; any other one may pass, and paid tokens are left."""


class RequestLease:
    """What a request may use; without a `lease_id` nothing is settled.

    Args:
        auth: The link to the auth worker.
        request_id: Of the request.

    Attributes:
        limits: Where the caller stands, as last reported.
        warnings: Limits that were used up to a threshold when it was granted.
        lease_id: As granted; empty before, and for work that uses no tokens.
    """

    def __init__(self, auth: AuthLink, request_id: str) -> None:
        self.limits = LimitState()
        self.warnings: tuple[LimitWarning, ...] = ()
        self.lease_id = ""
        self._auth = auth
        self._request_id = request_id
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._gives_back = False
        self._endpoint = ""
        self._end_user = ""
        self._model = ""
        self._growing: asyncio.Lock | None = None

    def on_granted(self, granted: Granted, bound: Bound, asked: Authorize) -> None:
        """The reservation of a bound was granted, as it was asked for."""
        self.limits = granted.limits
        self.warnings = granted.warnings
        # Auth workers before 1.4 know of no other limits.
        self._gives_back = granted.gives_back or granted.limits.limit_tokens is not None
        self._endpoint, self._end_user = asked.endpoint, asked.end_user
        self._model = asked.model
        self.lease_id = granted.lease_id
        self._prompt_tokens = bound.prompt_tokens
        # The auth worker reserves no more than the key may have, whatever was asked for.
        most = granted.max_completion_tokens
        wanted = bound.completion_tokens
        self._completion_tokens = wanted if most is None else min(wanted, most)

    async def correct(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace the upper bound by real numbers; a smaller one waits for nobody.

        Raises:
            DeniedError: It grew beyond what the caller may have.
            WorkerUnavailableError: It grew, and nobody answers.
        """
        if not self.lease_id:
            return
        grows = prompt_tokens > self._prompt_tokens or completion_tokens > self._completion_tokens
        if grows:
            try:
                adjusted = await self._auth.adjust(
                    self._request_id, self.lease_id, prompt_tokens, completion_tokens
                )
            except RemoteFailureError as error:
                if error.code is not ErrorCode.UNKNOWN_LEASE:
                    raise
                # Another auth worker has taken over since the grant.
                raise WorkerUnavailableError(
                    "The reservation of this request was lost; please try again."
                ) from error
            self.limits = adjusted.limits
        elif self._gives_back and (prompt_tokens, completion_tokens) != (
            self._prompt_tokens,
            self._completion_tokens,
        ):
            # What nobody counts against a limit need not be given back before the settlement.
            self._auth.shrink(self._request_id, self.lease_id, prompt_tokens, completion_tokens)
        self._prompt_tokens, self._completion_tokens = prompt_tokens, completion_tokens

    async def grow(self, tokens: int) -> bool:
        """Reserve more output; while the auth worker is away, or can't say, this waits.

        Returns:
            False when the caller's own limits say no.
        """
        if self._growing is None:
            self._growing = asyncio.Lock()  # most requests never get there
        async with self._growing:
            wanted = self._completion_tokens + tokens
            while self.lease_id:
                try:
                    await self._auth.adjust(
                        self._request_id, self.lease_id, self._prompt_tokens, wanted
                    )
                    break
                except (DeniedError, RemoteFailureError, WorkerUnavailableError) as error:
                    if error.code in _FINAL:
                        _logger.info(
                            "request %s gets no more tokens: %s", self._request_id, error.code
                        )
                        return False
                    await asyncio.sleep(_pause_s(error))
            self._completion_tokens = wanted
            return True

    def report(self, usage: Usage, streams: tuple[StreamUsage, ...] = ()) -> LeaseReport | None:
        """What was used so far, in all and by each of several choices; None before a lease."""
        if not self.lease_id:
            return None
        return bridge.lease_report(
            self.lease_id,
            usage,
            streams,
            max_prompt_tokens=self._prompt_tokens,
            max_completion_tokens=self._completion_tokens,
            endpoint=self._endpoint,
            end_user=self._end_user,
        )

    def settle(
        self,
        outbox: Outbox | Errand,
        usage: Usage,
        outcome: Outcome,
        *,
        is_unused: bool = False,
        has_begun: bool = False,
        earlier: tuple[str, ...] = (),
    ) -> None:
        """Settle what was really used, and give the rest back.

        Args:
            outbox: Keeps the settlement.
            usage: What was used.
            outcome: How the request ended.
            is_unused: Take the grant back as if it had never been.
            has_begun: A worker began to compute for it, now or at an earlier attempt: it costs the
                price of a request, and there is such a model.
            earlier: Leases of earlier attempts at the same request: it is booked on the first one,
                for the model of this attempt, and the others are taken back.
        """
        if not self.lease_id:
            return
        booked_on, *others = (*earlier, self.lease_id)
        model = self._model if earlier else ""
        booked = self._settlement(
            booked_on, usage, outcome, is_unused=is_unused, has_begun=has_begun, model=model
        )
        outbox.put(booked)
        for lease_id in others:
            outbox.put(self._settlement(lease_id, Usage(), "aborted", is_unused=True))

    def _settlement(
        self,
        lease_id: str,
        usage: Usage,
        outcome: Outcome,
        *,
        is_unused: bool,
        has_begun: bool = False,
        model: str = "",
    ) -> Settle:
        return bridge.settle(
            lease_id,
            self._request_id,
            usage,
            outcome,
            is_unused=is_unused,
            endpoint=self._endpoint,
            end_user=self._end_user,
            model=model,
            has_begun=has_begun,
        )


def _pause_s(error: GatewayError) -> float:
    return max(_AUTH_RETRY_S, min(error.retry_after_s or 0.0, 10 * _AUTH_RETRY_S))
