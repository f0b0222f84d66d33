"""Questions on their way to workers: who was asked, and who waits for the one answer."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from gateway.errors import GatewayError
from gateway.telemetry.worker_records import WorkerRecords
from protocol.wire.peers import Peer


class _Question(NamedTuple):
    """One question.

    Attributes:
        kind: The message that answers it.
        since: When it was sent, on the loop's clock.
        late_at: When nobody waits any more, likewise; None when its asker bounds that.
    """

    peer: Peer
    kind: type[Any]
    answer: "asyncio.Future[Any]"
    since: float
    late_at: float | None


class QuestionTable:
    """The unanswered questions to the workers of one role, by their ids.

    Futures carry the answers; a timeout is one timer for all of a table, not one a question.

    Args:
        timeout_s: How long an answer may take; None leaves that to the askers.
        too_late: Makes the error of a question whose time ran out.
        records: Where answers are counted.
    """

    def __init__(
        self,
        timeout_s: float | None = None,
        too_late: Callable[[], GatewayError] | None = None,
        records: WorkerRecords | None = None,
    ) -> None:
        self._records = records or WorkerRecords()
        self._timeout_s = timeout_s
        self._too_late = too_late
        self._questions: OrderedDict[str, _Question] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._questions)

    def open(self, question_id: str, peer: Peer, kind: type[Any]) -> "asyncio.Future[Any]":
        """A future for the answer to a question that is about to be sent.

        Raises:
            ValueError: A question of this id is open, whose answer would never be seen.
        """
        if question_id in self._questions:
            raise ValueError(f"the question {question_id} is open already")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        late_at, now = None, loop.time()
        if self._timeout_s is not None:
            late_at = now + self._timeout_s
            if self._timer is None:
                self._timer = loop.call_at(late_at, self._expire)
        self._questions[question_id] = _Question(peer, kind, answer, now, late_at)
        return answer

    def close(self, question_id: str) -> bool:
        """Nobody waits any more, or the answer was taken; whether the question was still open."""
        question = self._questions.pop(question_id, None)
        # An asker that was cancelled has cancelled its future.
        return question is not None and (not question.answer.done() or question.answer.cancelled())

    def is_open(self, question_id: str, peer: Peer) -> bool:
        """Whether somebody waits for this peer's answer."""
        question = self._questions.get(question_id)
        return question is not None and question.peer is peer and not question.answer.done()

    def answer(self, question_id: str, peer: Peer, message: Any) -> bool:
        """Hand an answer to who waits for it; False when nobody does, or for another kind."""
        question = self._questions.get(question_id)
        if question is None or question.peer is not peer or question.answer.done():
            return False
        if not isinstance(message, question.kind):
            return False
        question.answer.set_result(message)
        self._records.note(peer, question.answer.get_loop().time() - question.since)
        return True

    def fail(self, question_id: str, peer: Peer, error: GatewayError) -> bool:
        """The answer is an error; False when nobody waits for it."""
        question = self._questions.get(question_id)
        if question is None or question.peer is not peer or question.answer.done():
            return False
        question.answer.set_exception(error)
        took_s = question.answer.get_loop().time() - question.since
        self._records.note(peer, took_s, error)
        return True

    def fail_peer(self, peer: Peer, error: GatewayError) -> None:
        """A peer is gone; who waits for it is told."""
        for question in list(self._questions.values()):
            if question.peer is peer and not question.answer.done():
                question.answer.set_exception(error)

    def _expire(self) -> None:
        """Tell those whose time ran out, and set the timer for the next; they stand in order."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for question in self._questions.values():
            if question.late_at is None or question.answer.done():
                continue
            if question.late_at > now:
                self._timer = loop.call_at(question.late_at, self._expire)
                return
            if self._too_late is not None:
                error = self._too_late()
                question.answer.set_exception(error)
                self._records.note(question.peer, failure=error)
