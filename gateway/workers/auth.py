"""The auth worker: questions to it, and their answers."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway import bridge
from gateway.errors import DeniedError, RemoteFailureError, WorkerUnavailableError
from gateway.telemetry.worker_records import WorkerRecords
from gateway.workers.questions import QuestionTable
from gateway.workers.wire import Wire
from protocol.errors import ErrorCode
from protocol.version import (
    AUDIT_LISTS_VERSION,
    KEY_ACTION_VERSION,
    MINUTES_VERSION,
    ORPHAN_USAGE_VERSION,
    PEOPLE_VERSION,
    PRINCIPALS_VERSION,
    ProtocolVersion,
)
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    AnswerClaimed,
    AnswerKept,
    AuditPage,
    AuthEvent,
    Authorize,
    ChangeKeyStatus,
    ChangeResource,
    ClaimAnswer,
    CountKeys,
    Denied,
    Failure,
    FindKeys,
    FindResources,
    Granted,
    KeepAnswer,
    KeysCounted,
    KeysFound,
    LeaseReport,
    MakeKey,
    MakeResource,
    Message,
    OrphanUsage,
    OrphanUsageNoted,
    ReadAudit,
    ReadStanding,
    ReadUsage,
    Renew,
    ResourcesFound,
    RotateKey,
    SetMember,
    Settle,
    Settled,
    Standing,
    TokenWanted,
    UpdateKey,
    UpdateResource,
    UsageFound,
)
from protocol.wire.peers import Peer

Report = ReadUsage | ReadStanding
ResourceQuestion = MakeResource | UpdateResource | ChangeResource | SetMember | FindResources
AdminQuestion = (
    MakeKey
    | UpdateKey
    | RotateKey
    | ChangeKeyStatus
    | FindKeys
    | CountKeys
    | ReadAudit
    | ClaimAnswer
    | KeepAnswer
    | ResourceQuestion
    | Report
)
AdminAnswer = (
    KeysFound
    | KeysCounted
    | AuditPage
    | ResourcesFound
    | UsageFound
    | Standing
    | AnswerClaimed
    | AnswerKept
)
AnswerT = TypeVar(
    "AnswerT",
    KeysFound,
    KeysCounted,
    AuditPage,
    ResourcesFound,
    UsageFound,
    Standing,
    AnswerClaimed,
    AnswerKept,
)

_ANSWER = Granted | Adjusted | AdminAnswer
"""Made once, not for each answer."""

_logger = logging.getLogger("penstock.gateway.auth")
_RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class AuthNews:
    """Who is told what the auth worker says unasked; every callback returns at once.

    Attributes:
        on_settled: A lease whose settlement is durable.
        on_settle_refused: The request id of a settlement that can never be booked.
        on_ready: An auth worker came.
        on_orphans_noted: An engine's report is durable.
    """

    on_settled: Callable[[str], None]
    on_settle_refused: Callable[[str], None]
    on_ready: Callable[[], None]
    on_orphans_noted: Callable[[OrphanUsageNoted], None]


class AuthLink:
    """Asks the auth worker with the highest epoch; fails closed while none is there.

    One that was not heard for some seconds, as on a machine that others use, is asked all the same
    while no other one is there: it may answer within the time that a question has.

    Of a database that several auth workers share, one that was active before a later one is asked
    nothing more, even if the later one is gone: what it still grants, others may have been granted.

    It is long because every message to and from the auth worker is a method.

    Args:
        wire: The socket of the auth workers.
        timeout_s: How long an answer may take.
        require_keys: An auth worker that lets anonymous callers in is not asked when this is set.
        news: Who is told the rest.
        carries_tokens: Whether bearer tokens may cross this socket: nobody else can read it.
        take_refused: How many keys of an address this gateway refused by itself, since it was last
            asked; the auth worker is told with the next question that comes from there.
        records: Where answers are counted.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        timeout_s: float,
        require_keys: bool,
        news: AuthNews,
        carries_tokens: bool = True,
        take_refused: Callable[[str], int] = lambda _address: 0,
        records: WorkerRecords | None = None,
    ) -> None:
        self._wire = wire
        self.timeout_s = timeout_s
        self._require_keys = require_keys
        self._news = news
        self._carries_tokens = carries_tokens
        self._take_refused = take_refused
        self._tokens: dict[str, Authorize] = {}
        self._peers: list[Peer] = []
        self._questions = QuestionTable(timeout_s, _unavailable, records)
        self._numbers = itertools.count(1)
        self._epochs: dict[str, int] = {}  # the latest of each shared database

    @property
    def is_ready(self) -> bool:
        """Whether an auth worker takes questions, and was heard of late."""
        peer = self._active()
        return peer is not None and peer.takes_work

    def ask(self, authorize: Authorize, token: str = "") -> "asyncio.Future[Granted]":
        """Ask whether a caller may do something, without waiting yet.

        A token is handed on when the auth worker asks for it: mostly it knows its digest.

        The future raises `DeniedError`, or `WorkerUnavailableError` when nobody answers. Whoever
        asked calls `close` afterwards, however it ended; a grant that comes later is given back.

        Raises:
            WorkerUnavailableError: Nobody is there to be asked.
            DeniedError: There is a token, which may not cross the wire as it is.
        """
        if token and not self._carries_tokens:
            raise _no_tokens()
        num_refused = self._take_refused(authorize.address)
        if num_refused:
            authorize = bridge.with_refused_guesses(authorize, num_refused)
        if token:
            # An auth worker that asks for the token has forgotten the question without it.
            self._tokens[authorize.request_id] = bridge.with_token(authorize, token)
        try:
            return self._open(authorize, authorize.request_id, Granted)
        except BaseException:
            self._tokens.pop(authorize.request_id, None)
            raise

    def close(self, question_id: str) -> None:
        """Nobody waits for an answer any more; idempotent."""
        self._questions.close(question_id)
        self._tokens.pop(question_id, None)

    async def authorize(self, authorize: Authorize, token: str = "") -> Granted:
        """Ask whether a caller may do something.

        Raises:
            DeniedError: No.
            WorkerUnavailableError: Nobody answers.
        """
        answer = self.ask(authorize, token)
        granted: Granted | None = None
        try:
            granted = await answer
        finally:
            self.close(authorize.request_id)
            if granted is None:
                self.give_back(answer)
        return granted

    async def adjust(
        self, request_id: str, lease_id: str, prompt_tokens: int, completion_tokens: int
    ) -> Adjusted:
        """Replace a lease's upper bound.

        Raises:
            DeniedError: It would grow beyond what the caller may have.
            RemoteFailureError: The lease is not known.
            WorkerUnavailableError: Nobody answers.
        """
        question = self._adjustment(request_id, lease_id, prompt_tokens, completion_tokens)
        answer = self._open(question, question.request_id, Adjusted)
        try:
            adjusted: Adjusted = await answer
        finally:
            self.close(question.request_id)
        return adjusted

    def shrink(
        self, request_id: str, lease_id: str, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Lower a lease's bound; never refused, so nobody waits for the answer."""
        self._send(self._adjustment(request_id, lease_id, prompt_tokens, completion_tokens))

    async def administer(self, question: AdminQuestion, kind: type[AnswerT]) -> AnswerT:
        """Read or change keys and other resources, or read the audit log.

        Raises:
            RemoteFailureError: It can't be done.
            WorkerUnavailableError: Nobody answers, or an auth worker of an older release would
                ignore rules.
        """
        peer = self._active()
        if peer is not None and peer.protocol_version < _needed_version(question):
            raise WorkerUnavailableError(
                "The auth worker is of an older release, which knows no such commands; upgrade it.",
                retry_after_s=_RETRY_AFTER_S,
            )
        answer = self._open(question, question.request_id, kind)
        try:
            found: AnswerT = await answer
        finally:
            self.close(question.request_id)
        return found

    def settle(self, settle: Settle) -> bool:
        """Send a settlement in the loop's next turn; False when no auth worker is there.

        The answer that it is for may just be on its way: to send here wakes others before that.
        """
        peer = self._active()
        if peer is None:
            return False
        asyncio.get_running_loop().call_soon(self._wire.send, peer, settle)
        return True

    def renew(self, leases: tuple[LeaseReport, ...]) -> None:
        """Report open leases."""
        self._send(bridge.renew(leases))

    def report_orphans(self, usage: OrphanUsage) -> None:
        """Hand on an engine's report; the engine repeats it while no answer comes."""
        peer = self._active()
        if peer is not None and peer.protocol_version >= ORPHAN_USAGE_VERSION:
            self._wire.send(peer, usage)

    def give_back(self, answer: "asyncio.Future[Granted]") -> None:
        """A grant that came in the very moment in which nobody waited for it any more."""
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            self._give_back(self._active(), answer.result())

    # What the socket reports.

    def on_peer_ready(self, peer: Peer) -> None:
        """An auth worker takes questions: for the first time, or again after a silence."""
        if self._require_keys and peer.auth is not None and peer.auth.allow_anonymous:
            _logger.error(
                "auth worker %s lets callers in without a key, but this gateway requires keys; "
                "it is not asked (PENSTOCK_ALLOW_ANONYMOUS and PENSTOCK_REQUIRE_KEYS contradict)",
                peer.instance_id,
            )
            return
        if not self._is_of_last_epoch(peer):
            return
        if peer not in self._peers:
            self._peers.append(peer)
        for other in list(self._peers):
            if not self._is_of_last_epoch(other):
                self.on_peer_lost(other)
        self._news.on_ready()

    def on_peer_updated(self, peer: Peer) -> None:
        """Nothing to do: peers are read when they are asked."""

    def on_peer_lost(self, peer: Peer) -> None:
        """An auth worker is gone; who waits for it is told."""
        if peer in self._peers:
            self._peers.remove(peer)
        self._questions.fail_peer(peer, _unavailable())

    def on_event(self, peer: Peer, event: AuthEvent) -> None:
        """An answer."""
        if isinstance(event, Settled):
            self._news.on_settled(event.lease_id)
        elif isinstance(event, _ANSWER):
            if not self._questions.answer(event.request_id, peer, event) and isinstance(
                event, Granted
            ):
                self._give_back(self._active(), event)
        elif isinstance(event, TokenWanted):
            question = self._tokens.pop(event.request_id, None)
            if question is not None and self._questions.is_open(event.request_id, peer):
                self._wire.send(peer, question)
        elif isinstance(event, Denied):
            self._questions.fail(event.request_id, peer, DeniedError.from_message(event))
        elif isinstance(event, OrphanUsageNoted):
            self._news.on_orphans_noted(event)
        elif isinstance(event, Failure):
            self._on_failure(peer, event)

    def _on_failure(self, peer: Peer, failure: Failure) -> None:
        error = RemoteFailureError.from_message(failure)
        if not self._questions.fail(failure.request_id, peer, error):
            _logger.warning("the auth worker reports %s: %s", failure.code, failure.message)
            if failure.code is ErrorCode.INVALID_REQUEST:
                self._news.on_settle_refused(failure.request_id)

    # Small parts.

    def _is_of_last_epoch(self, peer: Peer) -> bool:
        """Whether no other worker has been active on its database since it was; notes the epoch."""
        offer = peer.auth
        if offer is None or not offer.database_id:
            return True
        last = max(offer.epoch, self._epochs.get(offer.database_id, 0))
        self._epochs = {offer.database_id: last}
        if offer.epoch < last:
            _logger.warning(
                "auth worker %s says epoch %d, but epoch %d was here: it is not asked. If the"
                " database was set back by other means than `penstock auth restore`, restart the"
                " gateways.",
                peer.instance_id,
                offer.epoch,
                last,
            )
        return offer.epoch == last

    def _open(
        self, question: Message, question_id: str, kind: type[Message]
    ) -> "asyncio.Future[Any]":
        peer = self._active()
        if peer is None:
            raise _unavailable()
        answer = self._questions.open(question_id, peer, kind)
        try:
            self._wire.send(peer, question)
        except BaseException:
            self._questions.close(question_id)
            raise
        return answer

    def _adjustment(
        self, request_id: str, lease_id: str, prompt_tokens: int, completion_tokens: int
    ) -> Adjust:
        # Several may be on their way for one request, so each gets an id of its own.
        question_id = f"{request_id}:{next(self._numbers)}"
        return bridge.adjust(question_id, lease_id, prompt_tokens, completion_tokens)

    def _send(self, message: Adjust | Renew) -> None:
        peer = self._active()
        if peer is not None:
            self._wire.send(peer, message)

    def _give_back(self, peer: Peer | None, granted: Granted) -> None:
        """A grant that came too late: its client has left or was told that nobody answers."""
        if peer is not None and granted.lease_id:
            self._wire.send(peer, bridge.unused(granted))

    def _active(self) -> Peer | None:
        best: Peer | None = None
        for peer in self._peers:
            if peer.may_answer and (best is None or _rank(peer) > _rank(best)):
                best = peer
        return best


def _needed_version(question: AdminQuestion) -> ProtocolVersion:
    """What an auth worker has to speak that ignores nothing of a command."""
    if isinstance(question, ReadUsage) and question.bucket == "minute":
        return MINUTES_VERSION
    if isinstance(question, ReadAudit) and (
        question.actors or question.actions or question.subjects
    ):
        return AUDIT_LISTS_VERSION
    if isinstance(question, ResourceQuestion | Report | ClaimAnswer | KeepAnswer):
        return PEOPLE_VERSION
    if isinstance(question, FindKeys) and (question.user_id or question.team_id):
        return PEOPLE_VERSION
    if isinstance(question, UpdateKey) and question.action:
        return KEY_ACTION_VERSION
    if isinstance(question, MakeKey | UpdateKey):
        settings = question.settings
        if settings.user_id or settings.team_id or settings.may_name_end_users:
            return PEOPLE_VERSION
    return PRINCIPALS_VERSION


def _rank(peer: Peer) -> tuple[bool, int]:
    return not peer.is_silent, peer.auth.epoch if peer.auth is not None else -1


def _no_tokens() -> DeniedError:
    return DeniedError(
        "This server takes no bearer tokens: its auth worker is connected over plain TCP. Use a "
        "key, or let them talk over ipc:// or with CURVE keys (PENSTOCK_KEY_DIR).",
        code=ErrorCode.INVALID_API_KEY,
    )


def _unavailable() -> WorkerUnavailableError:
    return WorkerUnavailableError(
        "Keys can't be checked at the moment; please try again.",
        retry_after_s=_RETRY_AFTER_S,
    )
