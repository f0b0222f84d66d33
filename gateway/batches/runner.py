"""Takes every batch that nobody works on, has its lines answered, and hands the outputs over."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final, NamedTuple

from gateway import bridge
from gateway.batches import lines
from gateway.batches.files import FileStore
from gateway.batches.finalizer import Finalizer
from gateway.batches.journal import Journal
from gateway.batches.line_room import Ask, LineRoom, NumFree
from gateway.batches.line_runs import LineRun
from gateway.batches.lines import ChangedInputError
from gateway.batches.records import ENDED, Batch, Counts, LineError
from gateway.batches.store import BatchStore, Claim
from gateway.housekeeping import logs_failure
from protocol.wire.messages import Settle, Usage

_logger = logging.getLogger("penstock.gateway.batches")

MAX_OPEN: Final = 32
"""Batches that one gateway works on at a time; each has five files open."""
MAX_OPEN_A_TENANT: Final = 4
MAX_TRIES: Final = 5
"""Of a batch that fails for no reason that may pass, without an answer in between."""
FIRST_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 30.0
_MAX_DOUBLINGS: Final = 10
TURN_S: Final = 60.0
"""A batch makes room for one that waits after so long, and waits itself."""


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


class _Failures:
    """How often each batch failed without an answer in between."""

    def __init__(self) -> None:
        self._tries: dict[str, tuple[int, int]] = {}  # answers so far, and tries without more

    def count(self, batch: Batch) -> int:
        """A batch failed once more; how often that is now."""
        num_answers = _num_answers(batch)
        last, num_tries = self._tries.get(batch.id, (num_answers, 0))
        num_tries = 1 if num_answers > last else num_tries + 1
        self._tries[batch.id] = (num_answers, num_tries)
        return num_tries

    def forget_all_but(self, unfinished: AbstractSet[str]) -> None:
        """Only batches of these ids are tried again."""
        self._tries = {name: tries for name, tries in self._tries.items() if name in unfinished}


class BatchRunner:
    """Works on every batch that no other gateway works on.

    Args:
        store: The batches.
        files: Where their outputs go.
        ask: Has a line answered.
        settle: Puts a settlement into the outbox.
        num_free: Of a model, see `NumFree`.
        max_lines: Lines under way at a time.
        max_line_bytes: Of one line.
        wall_clock: Unix seconds.
        clock: Monotonic seconds.

    Attributes:
        threads: Of batches, for what blocks; `stop` ends them.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        *,
        ask: Ask,
        settle: Callable[[Settle], None],
        num_free: NumFree,
        max_lines: int,
        max_line_bytes: int,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settle = settle
        self._room = LineRoom(
            ask=ask,
            settle=settle,
            num_free=num_free,
            max_lines=max_lines,
            wall_clock=wall_clock,
            clock=clock,
        )
        self.threads = self._room.threads
        self._checking = asyncio.Lock()
        self._finalizer = Finalizer(files, wall_clock)
        self._max_line_bytes = max_line_bytes
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._open: dict[str, tuple[str, float]] = {}  # their tenants, and since when
        self._served: dict[str, float] = {}  # until when, of those that made room
        self._failures = _Failures()
        self._has_waiting = False
        self._looking: asyncio.Task[None] | None = None

    def look(self) -> "asyncio.Task[None] | None":
        """Take batches that nobody works on; called every second or so, and for a new batch.

        Returns:
            The look under way; None once it is to stop.
        """
        if self._room.is_stopping:
            return None
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(logs_failure("looking for batches"))
        return self._looking

    def begin_to_stop(self) -> None:
        """Begin no more lines."""
        self._room.begin_to_stop()

    async def stop(self) -> None:
        """Wait for the lines under way: they end with their requests, or are run again later."""
        self.begin_to_stop()
        tasks = [*self._tasks.values(), *([self._looking] if self._looking else [])]
        await asyncio.gather(*tasks, return_exceptions=True)
        self.threads.close()

    async def _look(self) -> None:
        found = await self.threads.run(self._find, dict(self._open), dict(self._served))
        if self._room.is_stopping:
            for claim in found.claims:
                claim.release()
            return
        self._has_waiting = found.has_waiting
        unfinished = found.unfinished
        self._served = {name: at for name, at in self._served.items() if name in unfinished}
        self._failures.forget_all_but(unfinished)
        loop = asyncio.get_running_loop()
        for claim in found.claims:
            batch = claim.batch
            self._open[batch.id] = (batch.tenant, self._clock())
            self._tasks[batch.id] = loop.create_task(self._run(claim))

    def _find(self, known: dict[str, tuple[str, float]], served: dict[str, float]) -> "_Found":
        """Take batches within the bounds, those first that haven't had a turn for longest.

        Before these come those that are to end, which takes no time.
        """
        unfinished = self._store.unfinished()
        waiting = [batch for batch in unfinished if batch.id not in known]

        def turn(batch: Batch) -> tuple[bool, float, str]:
            is_to_stay = batch.status != "cancelling"
            return is_to_stay, served.get(batch.id, float("-inf")), batch.id

        waiting.sort(key=turn)
        num_open = Counter(tenant for tenant, _ in known.values())
        claims: list[Claim] = []
        has_waiting = False
        for batch in waiting:
            is_full = num_open.total() >= MAX_OPEN or num_open[batch.tenant] >= MAX_OPEN_A_TENANT
            claim = None if is_full else self._claim(batch)
            has_waiting |= is_full
            if claim is not None:
                num_open[batch.tenant] += 1
                claims.append(claim)
        return _Found(claims, has_waiting, frozenset(batch.id for batch in unfinished))

    def _claim(self, batch: Batch) -> Claim | None:
        try:
            return self._store.claim(batch.tenant, batch.id)
        except OSError as error:
            # What was claimed beside it is worked on anyway.
            _logger.error("the batch %s can't be locked, and waits: %s", batch.id, error)
            return None

    def _has_to_make_room(self, batch_id: str) -> bool:
        """Whether others wait for a place, and a batch has had its turn."""
        _, since = self._open[batch_id]
        return self._has_waiting and self._clock() - since >= TURN_S

    async def _run(self, claim: Claim) -> None:
        try:
            await self._work(claim)
        except ChangedInputError as error:
            if not await self._give_up(claim, [error.error]):
                await self._room.pause(_pause_s(self._failures.count(claim.batch)))
        except Exception as error:
            _logger.exception("the batch %s could not go on", claim.batch.id)
            await self._on_failure(claim, error)
        finally:
            claim.release()
            self._note_served(claim.batch)
            self._tasks.pop(claim.batch.id, None)

    async def _on_failure(self, claim: Claim, error: Exception) -> None:
        """Let a batch be tried again, a bounded number of times while lines are left.

        A disk that is full may have room by then, so that ends with the batch's window only, and
        not at all for a batch that has all its answers.
        """
        batch = claim.batch
        if self._room.is_stopping or batch.status in ENDED:
            return
        num_tries = self._failures.count(batch)
        may_pass = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        has_all = _num_answers(batch) >= batch.counts.total
        is_waited_for = may_pass and (has_all or self._room.now() < batch.expires_at)
        has_ended = False
        if num_tries >= MAX_TRIES and batch.status != "finalizing" and not is_waited_for:
            message = (
                f"This server failed {num_tries} times to go on with the batch, and its log says"
                " why. Lines that were answered are in the output files."
            )
            has_ended = await self._give_up(claim, [LineError("internal_error", message)])
        if not has_ended:
            await self._room.pause(_pause_s(num_tries))

    async def _give_up(self, claim: Claim, errors: list[LineError]) -> bool:
        """End a batch as failed, with the answers that it has; False when it has to wait.

        Only what the disk has is gone on from: where that can't be written, the batch is what it
        was. Answers that can't be handed over stay where they are.
        """
        batch = claim.batch
        _logger.error("the batch %s is to end as failed: %s", batch.id, errors[0].message)
        try:
            journal = await self.threads.run(Journal, claim.folder)
            try:
                self._take_up(claim, journal)
                await self.threads.run(self._finalizer.begin, claim, journal, "failed", errors)
            finally:
                journal.close()
            await self.threads.run(self._finalizer.hand_over, claim)
        except OSError as error:
            _logger.error("the batch %s can't end yet: %s", batch.id, error)
            return False
        except Exception:
            _logger.exception("the answers of the batch %s can't be handed over", batch.id)
            if batch.status == "finalizing":
                return False
            try:
                await self.threads.run(self._finalizer.end_unread, claim)
            except OSError as error:
                _logger.error("the end of the batch %s can't be written: %s", batch.id, error)
                return False
        return True

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
        # Outputs that were handed over before a kill must not be begun again, empty.
        is_over = batch.status == "finalizing"
        journal = await self.threads.run(Journal, claim.folder, is_over=is_over)
        try:
            self._take_up(claim, journal)
            if not is_over:
                outcome = await LineRun(
                    self._room, claim, journal, partial(self._has_to_make_room, batch.id)
                ).run()
                if not outcome:
                    return  # another process, or this one later, goes on
                await self.threads.run(self._finalizer.begin, claim, journal, outcome)
        finally:
            journal.close()
        await self.threads.run(self._finalizer.hand_over, claim)

    async def _validate(self, claim: Claim) -> bool:
        """Look at every line; whether the batch can be run.

        One input is looked at at a time: of a large one that takes seconds of computing, which all
        of this process shares.
        """
        batch = claim.batch
        async with self._checking:
            if self._room.is_stopping:
                return False  # another process, or this one later, looks at it
            num_lines, errors = await self.threads.run(
                lines.check, claim.input_path, batch.endpoint, self._max_line_bytes
            )
        counts = Counts(total=num_lines)
        if errors:
            end = partial(self._finalizer.end, claim, "failed", errors=errors, counts=counts)
            await self.threads.run(end)
            return False
        stamps = batch.stamps | {"in_progress_at": self._room.now()}
        changes = {"status": "in_progress", "stamps": stamps, "counts": counts}
        await self.threads.run(claim.save, **changes)
        return True

    def _take_up(self, claim: Claim, journal: Journal) -> None:
        """Settle again what an earlier process may not have, and take back what it left open."""
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


def _num_answers(batch: Batch) -> int:
    return batch.counts.completed + batch.counts.failed


def _pause_s(num_tries: int) -> float:
    """Before a batch that failed so often is tried again; the exponent of a float has a bound."""
    return min(FIRST_PAUSE_S * 2.0 ** min(num_tries - 1, _MAX_DOUBLINGS), _MAX_PAUSE_S)
