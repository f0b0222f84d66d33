"""The auth worker: questions to it, and their answers."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import TypeVar

from gateway.errors import DeniedError, GatewayError, RemoteFailureError, WorkerUnavailableError
from gateway.workers.wire import Wire
from protocol.errors import ErrorCode
from protocol.version import ORPHAN_USAGE_VERSION
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    AuthEvent,
    Authorize,
    CreateKey,
    Denied,
    Failure,
    Granted,
    Keys,
    LeaseReport,
    ListKeys,
    OrphanUsage,
    OrphanUsageNoted,
    Renew,
    RevokeKey,
    Settle,
    Settled,
)
from protocol.wire.peers import Peer

_logger = logging.getLogger("penstock.gateway.auth")
_RETRY_AFTER_S = 2.0

_Question = Authorize | Adjust | CreateKey | ListKeys | RevokeKey
_Answer = Granted | Adjusted | Keys
AnswerT = TypeVar("AnswerT", Granted, Adjusted, Keys)


class AuthLink:
    """Asks the auth worker with the highest epoch; fails closed while none is there.

    Args:
        wire: The socket of the auth workers.
        timeout_s: How long an answer may take.
        require_keys: An auth worker that lets anonymous callers in is not asked when this is set.
        on_settled: Called with each lease whose settlement is durable.
        on_settle_refused: Called with the request id of a settlement that can never be booked.
        on_ready: Called when an auth worker came.
        on_orphans_noted: Called when an engine's report is durable.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        timeout_s: float,
        require_keys: bool,
        on_settled: Callable[[str], None],
        on_settle_refused: Callable[[str], None],
        on_ready: Callable[[], None],
        on_orphans_noted: Callable[[OrphanUsageNoted], None],
    ) -> None:
        self._wire = wire
        self._timeout_s = timeout_s
        self._require_keys = require_keys
        self._on_settled = on_settled
        self._on_settle_refused = on_settle_refused
        self._on_ready = on_ready
        self._on_orphans_noted = on_orphans_noted
        self._peers: list[Peer] = []
        self._waiting: dict[str, tuple[Peer, asyncio.Future[_Answer]]] = {}
        self._numbers = itertools.count(1)

    @property
    def is_ready(self) -> bool:
        """Whether an auth worker takes questions."""
        return self._active() is not None

    async def authorize(self, authorize: Authorize) -> Granted:
        """Ask whether a caller may do something.

        Raises:
            DeniedError: No.
            WorkerUnavailableError: Nobody answers.
        """
        return await self._ask(authorize, authorize.request_id, Granted)

    async def adjust(
        self, request_id: str, lease_id: str, prompt_tokens: int, completion_tokens: int
    ) -> Adjusted:
        """Replace a lease's upper bound.

        Raises:
            DeniedError: It would grow beyond what the caller may have.
            RemoteFailureError: The lease is not known.
            WorkerUnavailableError: Nobody answers.
        """
        # Several may be on their way for one request, so each gets an id of its own.
        question_id = f"{request_id}:{next(self._numbers)}"
        question = Adjust(
            request_id=question_id,
            lease_id=lease_id,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        return await self._ask(question, question_id, Adjusted)

    def shrink(
        self, request_id: str, lease_id: str, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Lower a lease's bound; never refused, so nobody waits for the answer."""
        self._send(
            Adjust(
                request_id=f"{request_id}:{next(self._numbers)}",
                lease_id=lease_id,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
            )
        )

    async def keys(self, question: CreateKey | ListKeys | RevokeKey) -> Keys:
        """Create, list or revoke keys; the records concerned.

        Raises:
            RemoteFailureError: It can't be done.
            WorkerUnavailableError: Nobody answers.
        """
        return await self._ask(question, question.request_id, Keys)

    def settle(self, settle: Settle) -> bool:
        """Send a settlement; False when no auth worker is there."""
        return self._send(settle)

    def renew(self, leases: tuple[LeaseReport, ...]) -> None:
        """Report open leases."""
        self._send(Renew(leases=leases))

    def report_orphans(self, usage: OrphanUsage) -> None:
        """Hand on an engine's report; the engine repeats it while no answer comes."""
        peer = self._active()
        if peer is not None and peer.protocol_version >= ORPHAN_USAGE_VERSION:
            self._wire.send(peer, usage)

    def on_peer_ready(self, peer: Peer) -> None:
        """An auth worker takes questions: for the first time, or again after a silence."""
        if self._require_keys and peer.auth is not None and peer.auth.allow_anonymous:
            _logger.error(
                "auth worker %s lets callers in without a key, but this gateway requires keys; "
                "it is not asked (PENSTOCK_ALLOW_ANONYMOUS and PENSTOCK_REQUIRE_KEYS contradict)",
                peer.instance_id,
            )
            return
        if peer not in self._peers:
            self._peers.append(peer)
        self._on_ready()

    def on_peer_updated(self, peer: Peer) -> None:
        """Nothing to do: peers are read when they are asked."""

    def on_peer_lost(self, peer: Peer) -> None:
        """An auth worker is gone; who waits for it is told."""
        if peer in self._peers:
            self._peers.remove(peer)
        for asked, future in list(self._waiting.values()):
            if asked is peer and not future.done():
                future.set_exception(_unavailable())

    def on_event(self, peer: Peer, event: AuthEvent) -> None:
        """An answer."""
        if isinstance(event, Settled):
            self._on_settled(event.lease_id)
            return
        if isinstance(event, OrphanUsageNoted):
            self._on_orphans_noted(event)
            return
        if not isinstance(event, Granted | Denied | Adjusted | Keys | Failure):
            return
        asked, future = self._waiting.get(event.request_id, (None, None))
        if future is None or asked is not peer or future.done():
            if isinstance(event, Failure):
                _logger.warning("the auth worker reports %s: %s", event.code, event.message)
                if event.code is ErrorCode.INVALID_REQUEST:
                    self._on_settle_refused(event.request_id)
            elif not isinstance(event, Denied):
                self._give_back(peer, event)
            return
        if isinstance(event, Denied):
            future.set_exception(DeniedError.from_message(event))
        elif isinstance(event, Failure):
            future.set_exception(RemoteFailureError.from_message(event))
        else:
            future.set_result(event)

    async def _ask(self, question: _Question, question_id: str, kind: type[AnswerT]) -> AnswerT:
        peer = self._active()
        if peer is None:
            raise _unavailable()
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[question_id] = (peer, future)
        answer: _Answer | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                self._wire.send(peer, question)
                answer = await future
        except TimeoutError:
            raise _unavailable() from None
        finally:
            self._waiting.pop(question_id, None)
            has_answer = future.done() and not future.cancelled() and future.exception() is None
            if answer is None and has_answer:
                # The client left, or time was up, in the very moment in which the grant came.
                self._give_back(peer, future.result())
        if not isinstance(answer, kind):
            raise GatewayError("The auth worker gave an answer of another kind.")
        return answer

    def _send(self, message: Adjust | Settle | Renew) -> bool:
        peer = self._active()
        if peer is None:
            return False
        self._wire.send(peer, message)
        return True

    def _give_back(self, peer: Peer, granted: _Answer) -> None:
        """A grant that came too late: its client has left or was told that nobody answers."""
        if not isinstance(granted, Granted) or not granted.lease_id:
            return
        self._wire.send(
            peer,
            Settle(
                lease_id=granted.lease_id,
                request_id=granted.request_id,
                prompt_tokens=0,
                completion_tokens=0,
                outcome="aborted",
            ),
        )

    def _active(self) -> Peer | None:
        best: Peer | None = None
        for peer in self._peers:
            if peer.takes_work and (best is None or _epoch(peer) > _epoch(best)):
                best = peer
        return best


def _epoch(peer: Peer) -> int:
    return peer.auth.epoch if peer.auth is not None else -1


def _unavailable() -> WorkerUnavailableError:
    return WorkerUnavailableError(
        "Keys can't be checked at the moment; please try again.",
        retry_after_s=_RETRY_AFTER_S,
    )
