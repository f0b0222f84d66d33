"""Runs what is left of every batch, in capacity that nobody else wants, each line to one answer."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from msgspec import structs

from gateway import bridge
from gateway.batches import lines
from gateway.batches.files import PREFIX as FILE_PREFIX
from gateway.batches.files import FileStore
from gateway.batches.folders import new_id
from gateway.batches.journal import FILES, FileKind, Journal
from gateway.batches.lines import BatchLine
from gateway.batches.records import ENDED, LINE_PRIORITY, Batch, Counts
from gateway.batches.store import BatchStore, Claim
from gateway.request.caller import Caller
from protocol.wire.messages import Settle, Usage

_logger = logging.getLogger("penstock.gateway.batches")

_PAUSE_S: Final = 0.05
"""Until it is looked again whether there is room for a line."""
_SAVE_INTERVAL_S: Final = 1.0
_FIRST_RETRY_S: Final = 0.5
_MAX_RETRY_S: Final = 30.0
_SYNC_LINES: Final = 256
_RETRYABLE: Final = (408, 429, 503)
MAX_OPEN: Final = 32
"""Batches that one gateway works on at a time; each has five files open."""
MAX_OPEN_A_TENANT: Final = 4
TURN_S: Final = 60.0
"""A batch makes room for one that waits after so long, and waits itself."""


class LineAnswer(NamedTuple):
    """What a route answered to a line."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Found(NamedTuple):
    """What a look at the batches found.

    Attributes:
        claims: This gateway's from now on.
        has_waiting: Whether there are more than may be open.
        unfinished: The ids of all that haven't ended.
    """

    claims: list[Claim]
    has_waiting: bool
    unfinished: frozenset[str]


Ask = Callable[[str, bytes, Caller], Awaitable[LineAnswer]]
"""Has a route answer a body for somebody."""


@dataclass(slots=True)
class _LineErrand:
    """One try of a line: notes its leases, and keeps its settlement until the answer is safe.

    A try may be several requests: a prompt that is too long for one model is given to a fallback,
    or again without its oldest items. Those before the last one had no answer and cost nothing.

    Attributes:
        book: Puts a settlement into the outbox.
        settle: Of the last request so far.
    """

    journal: Journal
    line: int
    book: Callable[[Settle], None]
    settle: Settle | None = None
    priority: int = LINE_PRIORITY

    def on_granted(self, lease_id: str) -> None:
        """A request of the try has a lease."""
        self.journal.note_lease(self.line, lease_id)

    def put(self, settle: Settle) -> None:
        """A request of the try is over."""
        if self.settle is not None:
            self.book(structs.replace(self.settle, is_unused=True))
        self.settle = settle


class BatchRunner:
    """Works on every batch that no other gateway works on.

    Args:
        store: The batches.
        files: Where their outputs go.
        ask: Has a line answered.
        settle: Puts a settlement into the outbox.
        num_free: How many more requests the engines could take now beside everybody else's.
        max_lines: Lines under way at a time.
        max_line_bytes: Of one line.
        wall_clock: Unix seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        *,
        ask: Ask,
        settle: Callable[[Settle], None],
        num_free: Callable[[], int],
        max_lines: int,
        max_line_bytes: int,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._files = files
        self._ask = ask
        self._settle = settle
        self._num_free = num_free
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes
        self._wall_clock = wall_clock
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._open: dict[str, tuple[str, float]] = {}  # their tenants, and since when
        self._served: dict[str, float] = {}  # until when, of those that made room
        self._has_waiting = False
        self._looking: asyncio.Task[None] | None = None
        self._is_stopping = asyncio.Event()
        self.num_running = 0

    def look(self) -> None:
        """Take batches that nobody works on; called every second or so, and for a new batch."""
        if self.is_stopping or (self._looking is not None and not self._looking.done()):
            return
        self._looking = asyncio.get_running_loop().create_task(self._look())

    def begin_to_stop(self) -> None:
        """Begin no more lines."""
        self._is_stopping.set()

    async def stop(self) -> None:
        """Wait for the lines under way: they end with their requests, or are run again later."""
        self.begin_to_stop()
        tasks = [*self._tasks.values(), *([self._looking] if self._looking else [])]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        found = await asyncio.to_thread(self._find, dict(self._open), dict(self._served))
        self._has_waiting = found.has_waiting
        self._served = {
            batch_id: at for batch_id, at in self._served.items() if batch_id in found.unfinished
        }
        loop = asyncio.get_running_loop()
        for claim in found.claims:
            batch = claim.batch
            self._open[batch.id] = (batch.tenant, self._clock())
            self._tasks[batch.id] = loop.create_task(self._run(claim))

    def _find(self, known: dict[str, tuple[str, float]], served: dict[str, float]) -> "_Found":
        """Take batches within the bounds, those first that haven't had a turn for longest."""
        unfinished = self._store.unfinished()
        waiting = [batch for batch in unfinished if batch.id not in known]
        waiting.sort(key=lambda batch: (served.get(batch.id, float("-inf")), batch.id))
        num_open = Counter(tenant for tenant, _ in known.values())
        claims: list[Claim] = []
        has_waiting = False
        for batch in waiting:
            is_full = num_open.total() >= MAX_OPEN or num_open[batch.tenant] >= MAX_OPEN_A_TENANT
            claim = None if is_full else self._store.claim(batch.tenant, batch.id)
            has_waiting |= is_full
            if claim is not None:
                num_open[batch.tenant] += 1
                claims.append(claim)
        return _Found(claims, has_waiting, frozenset(batch.id for batch in unfinished))

    def has_to_make_room(self, batch_id: str) -> bool:
        """Whether others wait for a place, and a batch has had its turn."""
        _, since = self._open[batch_id]
        return self._has_waiting and self._clock() - since >= TURN_S

    async def _run(self, claim: Claim) -> None:
        try:
            await self._work(claim)
        except Exception:
            # It is tried again with the next look: a disk that is full may have room by then.
            _logger.exception("the batch %s could not go on", claim.batch.id)
            await self.pause(_SAVE_INTERVAL_S)
        finally:
            claim.release()
            self._note_served(claim.batch)
            self._tasks.pop(claim.batch.id, None)

    def _note_served(self, batch: Batch) -> None:
        del self._open[batch.id]
        if batch.status in ENDED:
            self._served.pop(batch.id, None)
        else:
            self._served[batch.id] = self._clock()

    async def _work(self, claim: Claim) -> None:
        batch = claim.batch
        if batch.status == "validating" and not await self._validate(claim):
            return
        journal = await asyncio.to_thread(Journal, claim.folder)
        try:
            self._take_up(claim, journal)
            if batch.status != "finalizing":
                batch.outcome = await _Lines(self, claim, journal).run()
                if not batch.outcome:
                    return  # another process, or this one later, goes on
                await asyncio.to_thread(journal.sync)
                batch.status = "finalizing"
                batch.stamps["finalizing_at"] = self.now()
                for kind in FILES:
                    if journal.has_any(kind):
                        file_id = new_id(FILE_PREFIX, self._wall_clock)
                        if kind == "output":
                            batch.output_file_id = file_id
                        else:
                            batch.error_file_id = file_id
                await asyncio.to_thread(claim.save)
        finally:
            journal.close()
        await asyncio.to_thread(self._finalize, claim)

    async def _validate(self, claim: Claim) -> bool:
        """Look at every line; whether the batch can be run."""
        batch = claim.batch
        num_lines, errors = await asyncio.to_thread(
            lines.check, claim.input_path, batch.endpoint, self._max_line_bytes
        )
        batch.counts = Counts(total=num_lines)
        batch.errors = errors
        batch.status = "failed" if errors else "in_progress"
        batch.stamps["failed_at" if errors else "in_progress_at"] = self.now()
        await asyncio.to_thread(claim.save)
        if errors:
            await asyncio.to_thread(claim.input_path.unlink, missing_ok=True)
        return not errors

    def _take_up(self, claim: Claim, journal: Journal) -> None:
        """Book again what an earlier process may not have, and take back what it left open."""
        found = journal.recovered
        found.counts.total = claim.batch.counts.total
        claim.batch.counts = found.counts
        for settle in found.settles:
            self._settle(settle)
        for line, lease_ids in found.open_leases.items():
            for lease_id in lease_ids:
                request_id = f"{claim.batch.id}-{line}"
                self._settle(
                    bridge.settle(lease_id, request_id, Usage(), "aborted", is_unused=True)
                )

    def _finalize(self, claim: Claim) -> None:
        """Hand the outputs over as files, and end; each step may have been done before."""
        batch = claim.batch
        for kind, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
            if file_id:
                source = claim.folder / f"{kind}.jsonl"
                if source.exists():
                    source.replace(self._files.new_path(batch.tenant, file_id))
                self._files.finish(
                    batch.tenant,
                    file_id,
                    f"{batch.id}_{kind}.jsonl",
                    "batch_output",
                    batch.output_lifetime_s,
                    is_ours=True,
                )
        if batch.outcome == "cancelled":
            batch.status = "cancelled"
        elif batch.outcome == "expired":
            batch.status = "expired"
        else:
            batch.status = "completed"
        batch.stamps[f"{batch.status}_at"] = self.now()
        claim.save()
        for name in ("input.jsonl", "journal.jsonl", "output.jsonl", "error.jsonl"):
            (claim.folder / name).unlink(missing_ok=True)

    # For `_Lines`.

    def now(self) -> int:
        """Unix seconds."""
        return int(self._wall_clock())

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        return self._clock

    @property
    def is_stopping(self) -> bool:
        """Whether no more lines are begun."""
        return self._is_stopping.is_set()

    async def pause(self, duration_s: float) -> None:
        """Wait a while, or until no more lines are begun."""
        with suppress(TimeoutError):
            async with asyncio.timeout(duration_s):
                await self._is_stopping.wait()

    @property
    def has_room(self) -> bool:
        """Whether one more line would find engines that nobody else wants."""
        return self.num_running < self._max_lines and self._num_free() > 0

    @property
    def max_lines(self) -> int:
        """Lines under way at a time, of one batch those that wait to be asked again among them."""
        return self._max_lines

    @property
    def max_line_bytes(self) -> int:
        """Of one line."""
        return self._max_line_bytes

    async def ask(self, endpoint: str, body: bytes, caller: Caller) -> LineAnswer:
        """Have a body answered."""
        return await self._ask(endpoint, body, caller)

    def book(self, settle: Settle) -> None:
        """Put a settlement into the outbox."""
        self._settle(settle)


class _Lines:
    """The lines of one batch that have no answer yet.

    Args:
        runner: Whose room they share.
        claim: The batch.
        journal: What became of its lines.
    """

    def __init__(self, runner: BatchRunner, claim: Claim, journal: Journal) -> None:
        self._runner = runner
        self._claim = claim
        self._journal = journal
        self._running: set[asyncio.Task[None]] = set()
        self._saved_at = runner.clock()
        self._num_unsynced = 0
        self._failure: BaseException | None = None

    async def run(self) -> str:
        """Until every line has an answer; `completed`, `expired`, `cancelled` or empty."""
        left = self._left()
        outcome = "completed"
        try:
            while (line := await asyncio.to_thread(next, left, None)) is not None:
                outcome = await self._wait_for_room()
                if outcome != "completed":
                    break
                self._begin(line)
            while self._running:
                await asyncio.wait(self._running, timeout=_SAVE_INTERVAL_S)
                await self._save()
        finally:
            if self._running:
                await asyncio.wait(self._running)
        if self._failure is not None:
            raise self._failure
        if outcome in ("expired", "cancelled"):
            await asyncio.to_thread(self._end_unbegun, outcome)
        is_whole = len(self._journal.recovered.done) >= self._claim.batch.counts.total
        await self._save(is_due=True)
        return outcome if is_whole else ""

    def _left(self) -> Iterator[BatchLine]:
        batch, done = self._claim.batch, self._journal.recovered.done
        for number, text in lines.texts(self._claim.input_path, self._runner.max_line_bytes):
            if number not in done:
                line = lines.parse(number, text, batch.endpoint)
                assert isinstance(line, BatchLine), "the input was checked, and is nobody else's"
                yield line

    async def _wait_for_room(self) -> str:
        """`completed` once a line may begin; otherwise why none may any more."""
        while True:
            if self._failure is not None or self._runner.is_stopping:
                return ""
            if self._runner.has_to_make_room(self._claim.batch.id):
                return ""
            if self._claim.is_cancelled:
                return "cancelled"
            if self._runner.now() >= self._claim.batch.expires_at:
                return "expired"
            if self._runner.has_room and len(self._running) < self._runner.max_lines:
                return "completed"
            await self._save()
            await self._runner.pause(_PAUSE_S)

    def _begin(self, line: BatchLine) -> None:
        self._runner.num_running += 1
        task = asyncio.get_running_loop().create_task(self._answer(line))
        self._running.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._runner.num_running -= 1
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _answer(self, line: BatchLine) -> None:
        """Ask until there is an answer that counts, or this process is to end."""
        pause_s = _FIRST_RETRY_S
        body = orjson.dumps(line.body)
        while True:
            errand = _LineErrand(self._journal, line.number, self._runner.book)
            answer = None
            try:
                answer = await self._runner.ask(
                    self._claim.batch.endpoint, body, self._caller(errand)
                )
            finally:
                if answer is None or self._is_to_be_asked_again(answer):
                    self._give_back(errand)
            if not self._is_to_be_asked_again(answer):
                break
            if not await self._wait_again(min(max(pause_s, _retry_after_s(answer)), _MAX_RETRY_S)):
                return
            pause_s *= 2
        kind: FileKind = "output" if answer.status == 200 else "error"
        self._note(line, kind, _told(line, answer), errand.settle)
        if errand.settle is not None:
            self._runner.book(errand.settle)
        self._num_unsynced += 1
        await self._save()

    def _is_ending(self) -> bool:
        runner = self._runner
        has_to_go = runner.is_stopping or runner.has_to_make_room(self._claim.batch.id)
        return has_to_go or self._claim.is_cancelled

    async def _wait_again(self, pause_s: float) -> bool:
        """Wait until a line may be asked again; False when it isn't to be any more.

        Meanwhile its place is anybody's: a caller whose limits are used up would hold it for hours.
        """
        runner = self._runner
        runner.num_running -= 1
        try:
            if not self._is_ending():
                await runner.pause(pause_s)
            is_late = runner.now() >= self._claim.batch.expires_at
            while not (self._is_ending() or runner.has_room or is_late):
                await runner.pause(_FIRST_RETRY_S)
                is_late = runner.now() >= self._claim.batch.expires_at
            return not self._is_ending()
        finally:
            runner.num_running += 1

    def _note(
        self, line: BatchLine, kind: FileKind, told: dict[str, Any], settle: Settle | None
    ) -> None:
        self._journal.note_done(line.number, kind, told, settle)
        self._journal.recovered.done.add(line.number)

    def _give_back(self, errand: _LineErrand) -> None:
        """A try without an answer that counts costs nothing."""
        if errand.settle is not None:
            self._runner.book(structs.replace(errand.settle, is_unused=True))

    def _is_to_be_asked_again(self, answer: LineAnswer) -> bool:
        is_late = self._runner.now() >= self._claim.batch.expires_at
        return (
            answer.status in _RETRYABLE
            and answer.headers.get("x-should-retry") != "false"
            and not is_late
        )

    def _caller(self, errand: _LineErrand) -> Caller:
        batch = self._claim.batch
        digest = bytes.fromhex(batch.key_digest) if batch.key_digest else None
        return Caller(digest, batch.address, batch.id, end_user=batch.end_user, errand=errand)

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
        now = self._runner.clock()
        if is_due or now - self._saved_at >= _SAVE_INTERVAL_S:
            self._saved_at = now
            if self._claim.is_cancelled and self._claim.batch.status == "in_progress":
                self._claim.batch.status = "cancelling"
                self._claim.batch.stamps.setdefault("cancelling_at", self._runner.now())
            await asyncio.to_thread(self._claim.save)
        if self._num_unsynced >= _SYNC_LINES:
            self._num_unsynced = 0
            await asyncio.to_thread(self._journal.sync)


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
    return _record(line, response, None)


def _retry_after_s(answer: LineAnswer) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0
