"""Takes every batch that nobody works on, has its lines answered, and hands the outputs over."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from gateway import bridge
from gateway.batches import lines
from gateway.batches.files import PREFIX as FILE_PREFIX
from gateway.batches.files import FileStore
from gateway.batches.folders import new_id
from gateway.batches.journal import FILES, Journal
from gateway.batches.line_runs import SAVE_INTERVAL_S, Ask, LineRoom, LineRun
from gateway.batches.records import ENDED, Batch, Counts
from gateway.batches.store import BatchStore, Claim
from gateway.housekeeping import logs_failure
from protocol.wire.messages import Settle, Usage

_logger = logging.getLogger("penstock.gateway.batches")

MAX_OPEN: Final = 32
"""Batches that one gateway works on at a time; each has five files open."""
MAX_OPEN_A_TENANT: Final = 4
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
        self._settle = settle
        self._wall_clock = wall_clock
        self._room = LineRoom(
            ask=ask,
            book=settle,
            num_free=num_free,
            max_lines=max_lines,
            max_line_bytes=max_line_bytes,
            wall_clock=wall_clock,
            clock=clock,
        )
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._open: dict[str, tuple[str, float]] = {}  # their tenants, and since when
        self._served: dict[str, float] = {}  # until when, of those that made room
        self._has_waiting = False
        self._looking: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Take batches that nobody works on; called every second or so, and for a new batch."""
        if self._room.is_stopping or (self._looking is not None and not self._looking.done()):
            return
        self._looking = asyncio.get_running_loop().create_task(self._look())
        self._looking.add_done_callback(logs_failure("looking for batches"))

    def begin_to_stop(self) -> None:
        """Begin no more lines."""
        self._room.begin_to_stop()

    async def stop(self) -> None:
        """Wait for the lines under way: they end with their requests, or are run again later."""
        self.begin_to_stop()
        tasks = [*self._tasks.values(), *([self._looking] if self._looking else [])]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        found = await asyncio.to_thread(self._find, dict(self._open), dict(self._served))
        if self._room.is_stopping:
            for claim in found.claims:
                claim.release()
            return
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
            # What was claimed beside it is worked on all the same.
            _logger.error("the batch %s can't be locked, and waits: %s", batch.id, error)
            return None

    def _has_to_make_room(self, batch_id: str) -> bool:
        """Whether others wait for a place, and a batch has had its turn."""
        _, since = self._open[batch_id]
        return self._has_waiting and self._clock() - since >= TURN_S

    async def _run(self, claim: Claim) -> None:
        try:
            await self._work(claim)
        except Exception:
            # It is tried again with the next look: a disk that is full may have room by then.
            _logger.exception("the batch %s could not go on", claim.batch.id)
            await self._room.pause(SAVE_INTERVAL_S)
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
        # Outputs that were handed over before a kill must not be begun anew, empty.
        is_over = batch.status == "finalizing"
        journal = await asyncio.to_thread(Journal, claim.folder, is_over=is_over)
        try:
            self._take_up(claim, journal)
            if not is_over:
                batch.outcome = await LineRun(
                    self._room, claim, journal, partial(self._has_to_make_room, batch.id)
                ).run()
                if not batch.outcome:
                    return  # another process, or this one later, goes on
                await asyncio.to_thread(journal.sync)
                batch.status = "finalizing"
                batch.stamps["finalizing_at"] = self._room.now()
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
            lines.check, claim.input_path, batch.endpoint, self._room.max_line_bytes
        )
        batch.counts = Counts(total=num_lines)
        batch.errors = errors
        batch.status = "failed" if errors else "in_progress"
        batch.stamps["failed_at" if errors else "in_progress_at"] = self._room.now()
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
        batch.stamps[f"{batch.status}_at"] = self._room.now()
        claim.save()
        for name in ("input.jsonl", "journal.jsonl", "output.jsonl", "error.jsonl"):
            (claim.folder / name).unlink(missing_ok=True)
