"""Ends a batch: hands its answers over as files, and says how it ended."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from gateway.batches.files import PREFIX as FILE_PREFIX
from gateway.batches.files import FileStore
from gateway.batches.folders import new_id
from gateway.batches.journal import FILES, JOURNAL, FileKind, Journal
from gateway.batches.records import LineError, Status
from gateway.batches.store import INPUT, Claim

_logger = logging.getLogger("penstock.gateway.batches")

_ENDS: Final[dict[str, Status]] = {
    "cancelled": "cancelled",
    "expired": "expired",
    "failed": "failed",
}
_LOST: Final = "The {} file of this batch is gone from this server's disk; run its lines again."
_UNREAD: Final = (
    "This server can't read the answers that it has, and its log says why. Its operator finds them"
    " in the batch's folder until the batch is forgotten."
)


class Finalizer:
    """The last steps of batches; its methods block, so they are called beside the loop.

    Args:
        files: Where outputs go.
        wall_clock: Unix seconds.
    """

    def __init__(self, files: FileStore, wall_clock: Callable[[], float]) -> None:
        self._files = files
        self._wall_clock = wall_clock

    def begin(
        self, claim: Claim, journal: Journal, outcome: str, errors: Sequence[LineError] = ()
    ) -> None:
        """Name the files that the outputs become: from here on nothing more is answered.

        Args:
            claim: The batch.
            journal: Of its lines.
            outcome: How it ends once its files are handed over.
            errors: Why it failed, if it did.

        Raises:
            OSError: The disk doesn't take it; the batch is what it was.
        """
        journal.sync()
        ids = {
            kind: new_id(FILE_PREFIX, self._wall_clock) if journal.has_any(kind) else ""
            for kind in FILES
        }
        claim.save(
            status="finalizing",
            outcome=outcome,
            errors=list(errors),
            stamps=claim.batch.stamps | {"finalizing_at": int(self._wall_clock())},
            output_file_id=ids["output"],
            error_file_id=ids["error"],
        )

    def hand_over(self, claim: Claim) -> None:
        """Make files of the outputs, and end; each step may have been done before.

        The batch keeps its outputs until its end is written, so whatever fails can be done again.
        An output that is gone from the disk ends the batch as `failed`, with the other one.

        Raises:
            OSError: The disk doesn't take it.
        """
        batch = claim.batch
        ids: dict[FileKind, str] = {"output": batch.output_file_id, "error": batch.error_file_id}
        lost = [kind for kind, file_id in ids.items() if file_id and not self._keep(claim, kind)]
        if not lost:
            self.end(claim, _ENDS.get(batch.outcome, "completed"))
            return
        errors = [LineError("internal_error", _LOST.format(kind)) for kind in lost]
        left: dict[str, Any] = {f"{kind}_file_id": "" for kind in lost}
        self.end(claim, "failed", errors=[*batch.errors, *errors], **left)

    def _keep(self, claim: Claim, kind: FileKind) -> bool:
        """Make a file of an output; False when its content isn't anywhere."""
        batch = claim.batch
        file_id = batch.output_file_id if kind == "output" else batch.error_file_id
        path = self._files.new_path(batch.tenant, file_id)
        # A second name and not another one: a sweep takes content for an upload that never ended
        # when what describes it can't be written for long.
        with suppress(FileExistsError, FileNotFoundError):
            os.link(claim.folder / FILES[kind], path)
        if not path.exists():
            return False
        self._files.finish(
            batch.tenant,
            file_id,
            f"{batch.id}_{kind}.jsonl",
            "batch_output",
            batch.output_lifetime_s,
            is_ours=True,
        )
        return True

    def end(
        self, claim: Claim, status: Status, *, keeps_answers: bool = False, **changes: Any
    ) -> None:
        """Say how a batch ended, and keep nothing else of it.

        Args:
            claim: The batch.
            status: How it ended.
            keeps_answers: Whether its answers stay where they are until the batch is forgotten.
            changes: More fields of the batch that change with that.

        Raises:
            OSError: The disk doesn't take it; the batch is what it was.
        """
        stamps = claim.batch.stamps | {f"{status}_at": int(self._wall_clock())}
        claim.save(status=status, stamps=stamps, **changes)
        for name in (INPUT, *(() if keeps_answers else (JOURNAL, *FILES.values()))):
            try:
                (claim.folder / name).unlink(missing_ok=True)
            except OSError as error:
                # The end is written, so nobody tries again; it goes when the batch is forgotten.
                _logger.warning("%s of the batch %s stays: %s", name, claim.batch.id, error)

    def end_unread(self, claim: Claim) -> None:
        """Say that a batch failed whose answers can't be read; they stay where they are.

        Raises:
            OSError: The disk doesn't take it; the batch is what it was.
        """
        errors = [LineError("internal_error", _UNREAD)]
        self.end(claim, "failed", keeps_answers=True, errors=errors)
