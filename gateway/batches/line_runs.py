"""Has the lines of one batch answered, in capacity that nobody else wants, each exactly once."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Any, Final

import orjson

from gateway import bridge
from gateway.batches import lines
from gateway.batches.journal import FileKind, Journal
from gateway.batches.line_room import LineAnswer, LineRoom, LineUnderWay
from gateway.batches.lines import BatchLine, Place, Wanted
from gateway.batches.records import LINE_PRIORITY, Batch
from gateway.batches.store import Claim
from gateway.request.callers.caller import Caller
from protocol.wire.messages import Settle

_logger = logging.getLogger("penstock.gateway.batches")

SAVE_INTERVAL_S: Final = 1.0
_FIRST_RETRY_S: Final = 0.5
_MAX_RETRY_S: Final = 30.0
_SYNC_LINES: Final = 256
_RETRYABLE: Final = (408, 409, 429, 503)
"""Statuses that pass by themselves; 409 is that of a conversation which another line writes."""
_TOO_LATE: Final = 504
_MAX_LATE: Final = 8
"""Times that a line may be asked again which came to no token in its time: it may need longer."""
_SETTLE_S: Final = 12.0
"""A little more than a request waits for what engines say of it once it is over."""


def _refusal(status: int, type_: str, code: str, message: str) -> LineAnswer:
    error = {"message": message, "type": type_, "param": None, "code": code}
    return LineAnswer(status, {}, orjson.dumps({"error": error}))


_TOO_DEEP: Final = _refusal(
    *(400, "invalid_request_error", "invalid_request"),
    "`body` is nested deeper than 254 levels, which is the limit; nest it less.",
)
_FAILED: Final = _refusal(500, "server_error", "internal_error", "Internal server error.")

_MAX_PASSED_OVER: Final = 64
"""Models whose lines are passed over at a time: each is looked at before a line begins."""


@dataclass(slots=True)
class LineErrand:
    """One try of a line: notes its leases, and keeps its settlement until the answer is safe.

    A try may be several requests: a prompt that is too long for one model is given to a fallback,
    or again without its oldest items. Those before the last one had no answer and cost nothing.

    An engine may still work on a request when its answer is there already, a deadline's for
    instance: a settlement that comes after `close` is sent at once.

    Attributes:
        settle: Puts a settlement into the outbox.
        under_way: The line, which an engine counts once a request has its lease.
        settlement: Of the last request so far.
        failure: Why a lease could not be noted.
    """

    journal: Journal
    line: int
    settle: Callable[[Settle], None]
    under_way: LineUnderWay
    settlement: Settle | None = None
    priority: int = LINE_PRIORITY
    failure: OSError | None = None
    _is_closed: bool = False
    _counts: bool = False
    _has_settled: asyncio.Event = field(default_factory=asyncio.Event)

    def on_granted(self, lease_id: str) -> None:
        """A request of the try has a lease.

        Raises:
            OSError: The disk doesn't take it.
        """
        try:
            self.journal.note_lease(self.line, lease_id)
        except OSError as error:
            self.failure = error
            raise
        self.under_way.on_known()

    def put(self, settle: Settle) -> None:
        """A request of the try is over."""
        if self._is_closed:
            # Only of the last request, which has the answer, is anything used.
            counts = self._counts and self.settlement is None
            self.settle(settle if counts else bridge.as_unused(settle))
        elif self.settlement is not None:
            self.settle(bridge.as_unused(self.settlement))
        if not (self._is_closed and self.settlement is not None):
            self.settlement = settle
        self._has_settled.set()

    async def settled(self) -> None:
        """Wait for the settlement of a request whose time was up, for as long as engines have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await self._has_settled.wait()

    @property
    def has_no_output(self) -> bool:
        """Whether the last request is over and came to no token, as one that only waited."""
        return self.settlement is not None and not self.settlement.completion_tokens

    def close(self, *, counts: bool) -> Settle | None:
        """The try is over; its settlement if it is there by now, which the caller sends.

        Args:
            counts: Whether its answer is the line's; otherwise it costs nothing.
        """
        self._is_closed, self._counts = True, counts
        return self.settlement

    def give_back(self) -> None:
        """The try is over without an answer that counts, so it costs nothing."""
        settle = self.close(counts=False)
        if settle is not None:
            self.settle(bridge.as_unused(settle))


class LineRun:
    """The lines of one batch that have no answer yet.

    The input is read once, and the lines of a model begin in its order. Those whose model is away
    or busy are passed over, so that they take no place of those of other models; where they are is
    kept, in some 130 bytes a line, and they are read again once the model has room.

    It is long because beginning, asking, waiting and ending are methods of a few lines.

    Args:
        room: That they share with those of other batches.
        claim: The batch.
        journal: What became of its lines.
        has_to_make_room: Whether others wait for a place, and the batch has had its turn.
    """

    def __init__(
        self,
        room: LineRoom,
        claim: Claim,
        journal: Journal,
        has_to_make_room: Callable[[], bool],
    ) -> None:
        self._room = room
        self._has_to_make_room = has_to_make_room
        self._claim = claim
        self._journal = journal
        self._running: set[asyncio.Task[None]] = set()
        self._unread: Iterator[BatchLine] | None = self._left()
        self._passed_over: dict[Wanted, list[Place]] = {}  # heaps, none of them empty
        self._saved_at = room.clock()
        self._num_unsynced = 0
        self._failure: BaseException | None = None

    async def run(self) -> str:
        """Until every line has an answer; `completed`, `expired`, `cancelled` or empty.

        Raises:
            ChangedInputError: The input isn't what was checked.
            OSError: Of this server's disk.
        """
        try:
            outcome = await self._begin_all()
            while outcome == "completed" and self._running:
                await self._save()
                if self._running:  # they may have ended while the disk was waited for
                    await asyncio.wait(self._running, timeout=SAVE_INTERVAL_S)
                outcome = await self._begin_all()
            if outcome == "cancelled":
                await self._save(is_due=True)  # it is `cancelling` while the last lines run
        finally:
            if self._running:
                await asyncio.wait(self._running)
        if self._failure is not None:
            raise self._failure
        if self._is_whole():
            outcome = outcome and "completed"  # it ended with its last answer
        elif outcome in ("expired", "cancelled"):
            await self._room.threads.run(self._end_unbegun, outcome)
        await self._save(is_due=True)
        return outcome if self._is_whole() else ""

    def _is_whole(self) -> bool:
        """Whether every line has an answer."""
        return len(self._journal.recovered.done) >= self._claim.batch.counts.total

    def _left(self) -> Iterator[BatchLine]:
        batch, done = self._claim.batch, self._journal.recovered.done
        return lines.left(self._claim.input_path, batch.endpoint, done)

    async def _begin_all(self) -> str:
        """Begin the lines that are left; `completed`, or why no more may begin."""
        room = self._room
        while self._unread is not None or self._passed_over:
            await self._save()
            if (outcome := self._why_ended()) != "completed":
                return outcome
            has_place = len(self._running) < room.max_lines and room.num_running < room.max_lines
            if not (has_place and await self._go_on()):
                await room.wait_for_room()
        return "completed"

    async def _go_on(self) -> bool:
        """Take the next line that was passed over or not read yet; False when there is none."""
        wanted = next(filter(self._has_room, self._passed_over), None)
        if wanted is not None:
            path, endpoint = self._claim.input_path, self._claim.batch.endpoint
            line = await self._room.threads.run(lines.at, path, endpoint, self._take(wanted))
        elif self._unread is None or len(self._passed_over) >= _MAX_PASSED_OVER:
            return False
        elif (next_line := await self._room.threads.run(next, self._unread, None)) is None:
            self._unread = None
            return True
        else:
            line = next_line
        # Now that it is read, other batches may have taken the room.
        if self._has_room(line.wanted):
            self._begin(line)
        else:
            self._pass_over(line)
        return True

    def _pass_over(self, line: BatchLine) -> None:
        heappush(self._passed_over.setdefault(line.wanted, []), line.place)

    def _take(self, wanted: Wanted) -> Place:
        """The first place of the lines passed over that want this."""
        places = self._passed_over[wanted]
        place = heappop(places)
        if not places:
            del self._passed_over[wanted]
        return place

    def _why_ended(self) -> str:
        """`completed` while lines may begin; otherwise why none may any more."""
        if self._failure is not None or self._room.is_stopping or self._has_to_make_room():
            return ""
        if self._claim.cancelled_at is not None:
            return "cancelled"
        return "expired" if self._room.now() >= self._claim.batch.expires_at else "completed"

    def _num_free(self, wanted: Wanted) -> int | None:
        return self._room.num_free(self._claim.batch.endpoint, wanted)

    def _has_room(self, wanted: Wanted) -> bool:
        return (self._num_free(wanted) or 0) > 0

    def _begin(self, line: BatchLine) -> None:
        under_way = LineUnderWay(self._room, self._claim.batch.endpoint, line.wanted)
        task = asyncio.get_running_loop().create_task(self._answer(line, under_way))
        self._running.add(task)
        task.add_done_callback(partial(self._on_done, under_way))

    def _on_done(self, under_way: LineUnderWay, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        under_way.end()
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _answer(self, line: BatchLine, under_way: LineUnderWay) -> None:
        """Ask until there is an answer that counts, or this process is to end."""
        pause_s, num_late = _FIRST_RETRY_S, 0
        try:
            body = orjson.dumps(line.body)
        except orjson.JSONEncodeError:
            # It reads what is nested deeper than it writes; every route refuses much less.
            await self._answered(line, _TOO_DEEP, None)
            return
        while True:
            errand = LineErrand(self._journal, line.number, self._room.settle, under_way)
            answer = None
            try:
                answer = await self._ask(line, body, errand)
                if answer.status == _TOO_LATE:
                    num_late += 1
                    await errand.settled()
            finally:
                is_passing = answer is not None and self._is_to_be_asked_again(
                    answer, errand, num_late
                )
                if answer is None or errand.failure or is_passing:
                    errand.give_back()
            if errand.failure is not None:
                raise errand.failure  # of this server's disk; it is no answer to the line
            if not is_passing:
                break
            wait_s = min(max(pause_s, _retry_after_s(answer)), _MAX_RETRY_S)
            if not await self._wait_again(line, under_way, wait_s):
                return
            pause_s *= 2
        await self._answered(line, answer, errand.close(counts=True))

    async def _ask(self, line: BatchLine, body: bytes, errand: LineErrand) -> LineAnswer:
        """One try; what it raises is a fault of this server with this line, and no other's."""
        batch = self._claim.batch
        try:
            return await self._room.ask(batch.endpoint, body, _caller(batch, errand))
        except Exception:
            if errand.failure is None:
                if self._room.is_stopping:
                    raise  # it is run again by whoever goes on
                _logger.exception("line %d of the batch %s failed", line.number, batch.id)
            return _FAILED

    async def _answered(self, line: BatchLine, answer: LineAnswer, settle: Settle | None) -> None:
        kind: FileKind = "output" if answer.status == 200 else "error"
        self._note(line, kind, _told(line, answer), settle)
        if settle is not None:
            self._room.settle(settle)
        self._num_unsynced += 1
        await self._save()

    def _is_ending(self) -> bool:
        room = self._room
        has_to_go = room.is_stopping or self._has_to_make_room()
        return has_to_go or self._claim.cancelled_at is not None

    async def _wait_again(self, line: BatchLine, under_way: LineUnderWay, pause_s: float) -> bool:
        """Wait until a line may be asked again; False when it isn't to be, or is passed over.

        Meanwhile its place is anybody's: a caller whose limits are used up would hold it for hours.
        """
        room, wanted = self._room, line.wanted
        under_way.wait()
        try:
            if not self._is_ending() and self._num_free(wanted) is not None:
                await room.pause(pause_s)
            if self._is_ending():
                return False
            if self._has_room(wanted) or room.now() >= self._claim.batch.expires_at:
                return True
            self._pass_over(line)
            return False
        finally:
            under_way.go_on()

    def _note(
        self, line: BatchLine, kind: FileKind, told: dict[str, Any], settle: Settle | None
    ) -> None:
        self._journal.note_done(line.number, kind, told, settle)
        self._journal.recovered.done.add(line.number)

    def _is_to_be_asked_again(self, answer: LineAnswer, errand: LineErrand, num_late: int) -> bool:
        is_late = self._room.now() >= self._claim.batch.expires_at
        # A line stands behind everybody's requests: it may wait for longer than any of them may.
        may_have_waited = answer.status == _TOO_LATE and errand.has_no_output
        return (
            (answer.status in _RETRYABLE or (may_have_waited and num_late <= _MAX_LATE))
            and answer.headers.get("x-should-retry") != "false"
            and not is_late
        )

    def _end_unbegun(self, outcome: str) -> None:
        """An error for each line that has no answer, now that none is under way."""
        why = {
            "expired": "This request could not be begun within the batch's completion window.",
            "cancelled": "The batch was cancelled before this request was begun.",
        }
        error = {"code": f"batch_{outcome}", "message": why[outcome]}
        for line in self._left():
            self._note(line, "error", _record(line, None, error), None)

    async def _save(self, *, is_due: bool = False) -> None:
        now = self._room.clock()
        if is_due or now - self._saved_at >= SAVE_INTERVAL_S:
            self._saved_at = now
            changes: dict[str, Any] = {}
            batch, cancelled_at = self._claim.batch, self._claim.cancelled_at
            if cancelled_at is not None and batch.status == "in_progress":
                stamps = {"cancelling_at": cancelled_at} | batch.stamps
                changes = {"status": "cancelling", "stamps": stamps}
            await self._room.threads.run(self._claim.save, **changes)
        if self._num_unsynced >= _SYNC_LINES:
            self._num_unsynced = 0
            await self._room.threads.run(self._journal.sync)


def _caller(batch: Batch, errand: LineErrand) -> Caller:
    digest = bytes.fromhex(batch.key_digest) if batch.key_digest else None
    return Caller(digest, batch.address, batch.id, end_user=batch.end_user, errand=errand)


def _record(
    line: BatchLine, response: dict[str, Any] | None, error: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }


def _told(line: BatchLine, answer: LineAnswer) -> dict[str, Any]:
    body: Any = orjson.Fragment(answer.body)
    try:
        orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = {"error": {"message": "The answer was no JSON.", "type": "server_error"}}
    response = {
        "status_code": answer.status,
        "request_id": answer.headers.get("x-penstock-request-id", ""),
        "body": body,
    }
    # A line's answer has no headers, and what was ignored of it is told nowhere else.
    ignored = answer.headers.get("x-penstock-ignored-fields")
    if ignored:
        response["ignored_fields"] = ignored.split(", ")
    return _record(line, response, None)


def _retry_after_s(answer: LineAnswer) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0
