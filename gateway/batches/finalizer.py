"""Ends a batch: hands its answers over as files, and says how it ended."""

from collections.abc import Callable
from typing import Final

from gateway.batches.files import PREFIX as FILE_PREFIX
from gateway.batches.files import FileStore
from gateway.batches.folders import new_id
from gateway.batches.journal import FILES, Journal
from gateway.batches.records import Status
from gateway.batches.store import Claim

_ENDS: Final[dict[str, Status]] = {
    "cancelled": "cancelled",
    "expired": "expired",
    "failed": "failed",
}


class Finalizer:
    """The last steps of batches; its methods block, so they are called beside the loop.

    Args:
        files: Where outputs go.
        wall_clock: Unix seconds.
    """

    def __init__(self, files: FileStore, wall_clock: Callable[[], float]) -> None:
        self._files = files
        self._wall_clock = wall_clock

    def begin(self, claim: Claim, journal: Journal) -> None:
        """Name the files that the outputs become: from here on nothing more is answered.

        Raises:
            OSError: The disk doesn't take it.
        """
        batch = claim.batch
        journal.sync()
        batch.status = "finalizing"
        batch.stamps["finalizing_at"] = int(self._wall_clock())
        for kind in FILES:
            if journal.has_any(kind):
                file_id = new_id(FILE_PREFIX, self._wall_clock)
                if kind == "output":
                    batch.output_file_id = file_id
                else:
                    batch.error_file_id = file_id
        claim.save()

    def hand_over(self, claim: Claim) -> None:
        """Make files of the outputs, and end; each step may have been done before.

        Raises:
            OSError: The disk doesn't take it.
        """
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
        self.end(claim, _ENDS.get(batch.outcome, "completed"))

    def end(self, claim: Claim, status: Status) -> None:
        """Say how a batch ended, and keep nothing else of it.

        Raises:
            OSError: The disk doesn't take it.
        """
        batch = claim.batch
        batch.status = status
        batch.stamps[f"{status}_at"] = int(self._wall_clock())
        claim.save()
        for name in ("input.jsonl", "journal.jsonl", "output.jsonl", "error.jsonl"):
            (claim.folder / name).unlink(missing_ok=True)
