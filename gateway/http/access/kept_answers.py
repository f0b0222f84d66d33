"""Administrators' requests with an `Idempotency-Key`: done once, also across restarts.

What is to be done is claimed in the auth worker's database before it is done, and what came of it
is kept there, sealed with the caller's own key, or with one that isn't in the database for callers
with bearer tokens, of which each is another.
"""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import Request

from gateway import bridge
from gateway.errors import (
    GatewayError,
    IdempotencyKeyReusedError,
    OutcomeUnknownError,
    RequestInProgressError,
)
from gateway.http.parts import parts_of
from gateway.request.idempotency.replays import KeptAnswer
from gateway.request.idempotency.sealing import seal, unseal
from protocol.errors import ErrorCode
from protocol.wire.messages import Actor, AnswerClaimed, AnswerKept

MAX_ANSWER_BYTES: Final = 48 * 1024
"""Sealed it is little more, and the auth worker takes 64 KiB."""
MAX_RUNNING_S: Final = 60.0
"""What was begun so long ago and has not ended was lost: nobody waits so long for auth workers."""
_MAYBE_DONE: Final = frozenset(
    {ErrorCode.WORKER_UNAVAILABLE, ErrorCode.WORKER_LOST, ErrorCode.INTERNAL_ERROR}
)
"""Failures after which a change may have been made anyway."""

_logger = logging.getLogger("penstock.gateway.auth")


@dataclass(slots=True)
class DurableClaim:
    """One request's place among those that were claimed.

    Attributes:
        request: Of an administrator, whose key is known.
        actor: Who it is.
        name: Of the request: whose it is, its route, and its `Idempotency-Key`.
        secret: What the caller presented.
        is_claimed: Whether it is this request's to do.
        seal_key: What seals the answer: what was presented, or for bearer tokens, of which the next
            is another, what the auth worker has for their principal.
    """

    request: Request
    actor: Actor
    name: str
    secret: str
    is_claimed: bool = False
    seal_key: bytes = b""

    async def claim(self, fingerprint: bytes) -> KeptAnswer | None:
        """What came of it before; None when it is to be done now.

        Raises:
            IdempotencyKeyReusedError: The key came with another body.
            RequestInProgressError: It may be running yet, at another gateway.
            OutcomeUnknownError: It was begun before, and nobody knows what came of it.
            GatewayError: The auth worker is away.
        """
        question = bridge.claim_answer(
            f"{self.request.state.request_id}:claim",
            self.actor,
            name=self._digest(),
            fingerprint=fingerprint,
        )
        claimed = await parts_of(self.request).auth.administer(question, AnswerClaimed)
        self.seal_key = claimed.seal_key or self.secret.encode()
        if claimed.state == "other":
            raise IdempotencyKeyReusedError()
        if claimed.state == "new":
            self.is_claimed = True
            return None
        if claimed.age_s is not None and claimed.age_s < MAX_RUNNING_S:
            raise RequestInProgressError()
        kept = unseal(self.seal_key, claimed.answer)
        if kept is None:
            raise OutcomeUnknownError()
        status, headers, body = orjson.loads(kept)
        return KeptAnswer(status, headers, body.encode())

    @property
    def made_id(self) -> str:
        """The auth worker names what it makes."""
        return ""

    async def end(self, answer: KeptAnswer | None, error: BaseException | None) -> bool:
        """Keep what came of it; of what was refused nothing came, so that it may begin again."""
        if self.is_claimed:
            await self._keep(answer, error)
        return True

    async def _keep(self, answer: KeptAnswer | None, error: BaseException | None) -> None:
        sealed = b""
        if answer is not None:
            told: Any = (answer.status, dict(answer.headers), answer.body.decode())
            plain = orjson.dumps(told)
            if len(plain) > MAX_ANSWER_BYTES:
                return
            sealed = seal(self.seal_key, plain)
        elif error is not None and not _is_refusal(error):
            return
        question = bridge.keep_answer(
            f"{self.request.state.request_id}:keep", self.actor, name=self._digest(), answer=sealed
        )
        try:
            await parts_of(self.request).auth.administer(question, AnswerKept)
        except GatewayError as failure:
            _logger.warning("an answer could not be kept: %s", failure.message)

    def _digest(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, GatewayError) and error.code not in _MAYBE_DONE
