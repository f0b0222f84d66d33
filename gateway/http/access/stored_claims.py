"""Requests with an `Idempotency-Key`, claimed in the store: answered once by all its gateways.

An answer is sealed with its request, that is with the key and the body, of which the store has
digests only. So who reads the database reads no answer, unless both can be guessed.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

from gateway.errors import (
    GatewayError,
    IdempotencyKeyReusedError,
    RequestInProgressError,
)
from gateway.request.idempotency.replays import KeptAnswer
from gateway.request.idempotency.sealing import seal, unseal
from gateway.storage.kept_answers import AnswerStore, End, Held
from protocol.errors import ErrorCode

ResultT = TypeVar("ResultT")

END_PATIENCE_S: Final = 2.0
"""How long an answer waits until it is kept; then it goes out, and is kept later."""
_IN_A_THREAD_BYTES: Final = 256 * 1024
"""So much takes a millisecond to seal."""
_MAYBE_DONE: Final = frozenset(
    {ErrorCode.WORKER_UNAVAILABLE, ErrorCode.WORKER_LOST, ErrorCode.INTERNAL_ERROR}
)
"""Failures after which something may have been made anyway."""
_ending: set["asyncio.Task[bool]"] = set()
"""What nobody waits for any more; a loop alone doesn't hold its tasks."""


class StoredClaim:
    """One request's place in the store.

    Args:
        store: Where it is.
        tenant: Whose request it is.
        where: Method and path.
        key: Its `Idempotency-Key`.
        max_answer_bytes: A longer answer isn't kept.
    """

    def __init__(
        self, store: AnswerStore, tenant: str, where: str, key: str, max_answer_bytes: int
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._name = hashlib.sha256(f"{tenant}\0{where}\0{key}".encode()).digest()
        self._key = key.encode()
        self._max_answer_bytes = max_answer_bytes
        self._held: Held | None = None
        self._goes_on = False
        self._secret = b""

    @property
    def made_id(self) -> str:
        """Names what the request makes, by whichever gateway."""
        return "" if self._held is None else self._held.made_id

    async def claim(self, fingerprint: bytes) -> KeptAnswer | None:
        """What came of it before; None when it is to be done now.

        Raises:
            IdempotencyKeyReusedError: The key came with another body.
            RequestInProgressError: It is running, at another gateway.
            GatewayError: The store can't be used.
        """
        self._secret = _digest(b"secret", self._key, fingerprint)
        known = _digest(b"fingerprint", self._key, fingerprint)
        claimed, self._held = await self._store.claim(self._tenant, self._name, known)
        if claimed.state == "other":
            raise IdempotencyKeyReusedError()
        if claimed.state == "running":
            raise RequestInProgressError()
        if claimed.state == "new":
            self._goes_on = claimed.goes_on
            return None
        kept = await _near(unseal, self._secret, claimed.answer)
        if kept is None:
            raise GatewayError("An answer that was kept under this Idempotency-Key is damaged.")
        return KeptAnswer.decoded(kept)

    async def end(self, answer: KeptAnswer | None, error: BaseException | None) -> bool:
        """Keep what came of it; where that takes long, it is done later.

        Returns:
            False when another gateway has taken the request over.
        """
        if self._held is None:
            return True
        ending = asyncio.get_running_loop().create_task(self._end(self._held, answer, error))
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)
        done, _ = await asyncio.wait((ending,), timeout=END_PATIENCE_S)
        return ending.result() if done else True

    async def _end(
        self, held: Held, answer: KeptAnswer | None, error: BaseException | None
    ) -> bool:
        # What an earlier attempt made is there, whatever this one was refused for.
        is_unsure = self._goes_on or _may_be_done(error)
        ended = End(may_be_done=answer is None and is_unsure)
        if answer is not None and answer.num_bytes <= self._max_answer_bytes:
            plain = answer.encoded()
            ended = End(await _near(seal, self._secret, plain))
        return await self._store.end(held, ended)


async def _near(work: Callable[[bytes, bytes], ResultT], key: bytes, data: bytes) -> ResultT:
    """Done here, or in a thread where it takes long."""
    if len(data) < _IN_A_THREAD_BYTES:
        return work(key, data)
    return await asyncio.to_thread(work, key, data)


def _digest(purpose: bytes, key: bytes, fingerprint: bytes) -> bytes:
    return hashlib.sha256(b"%b\0%b\0%b" % (purpose, key, fingerprint)).digest()


def _may_be_done(error: BaseException | None) -> bool:
    if error is None:
        return False  # an answer that says why not
    return not isinstance(error, GatewayError) or error.code in _MAYBE_DONE
