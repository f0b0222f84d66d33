"""Reads the audit log back and follows its chain of hashes, beside whoever writes it."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from auth_worker.errors import StoreError
from auth_worker.records.audit_chain import ChainCheck, ChainedEntry
from auth_worker.records.audit_signing import AuditSigner, Checkpoint, CheckpointCheck
from auth_worker.storage.audit_key import CheckpointNotes
from auth_worker.storage.audit_table import read_chain
from auth_worker.storage.reading import Reading
from auth_worker.storage.retention import read_checkpoints

_BEFORE_ALL = -(2**63)
BATCH_ENTRIES = 2000
START_DELAY_S = 1.0
"""Gateways that have just found the worker go first."""
PAUSE_S = 0.01
"""Between two batches at the start, so that deciding goes first."""


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """What came of following the chain.

    Attributes:
        num_entries: That hold, from the first one on.
        head: The last of them; None without any.
        trouble: What is wrong with the next one, or with the whole; None when all hold.
        num_checkpoints: Signed ones that they were compared with.
        num_unverified: Of those, the ones that a key signed which isn't here.
    """

    num_entries: int
    head: ChainedEntry | None
    trouble: str | None
    num_checkpoints: int = 0
    num_unverified: int = 0

    def __str__(self) -> str:
        if self.trouble is not None:
            return f"the audit log does not hold: {self.trouble}; {self.num_entries} before it do"
        head = self.head
        where = "" if head is None else f", the last one is {head.seq}:{head.hash.hex()}"
        signed = ""
        if self.num_checkpoints:
            signed = f"; {self.num_checkpoints} checkpoints agree"
        if self.num_unverified:
            signed += f", {self.num_unverified} of them signed with a key that is not here"
        return f"{self.num_entries} entries of the audit log hold{where}{signed}"


def check_log(
    reading: Reading,
    *,
    signer: AuditSigner | None = None,
    noted: Sequence[Checkpoint] = (),
    pause: Callable[[], None] = lambda: None,
) -> CheckedLog:
    """Follow the chain of a database, which may be in use, and compare it with its checkpoints.

    Where old entries are let go meanwhile, it begins again with what is left, which says so.

    Args:
        reading: Opens it.
        signer: Holds the key that checkpoints and cuts are signed with, where it is known.
        noted: Checkpoints from beside the database.
        pause: Called between batches; what it raises ends the check.

    Raises:
        StoreError: The database can't be read.
    """
    chain = _whole_chain(signer)
    with reading() as connection:
        # Read first: what is written meanwhile is newer than all of them.
        known = {*read_checkpoints(connection), *noted}
        marks = CheckpointCheck(known, signer)
        trouble = None
        while batch := read_chain(connection, _last_seq(chain), BATCH_ENTRIES):
            if _were_let_go(connection, chain, batch[0]):
                chain = _whole_chain(signer)
            problems: list[str] = []
            trouble = chain.first_broken(_marked(batch, marks, problems))
            trouble = trouble or next(iter(problems), None)
            if trouble is not None:
                break
            pause()
    if trouble is None:
        last_seq = 0 if chain.head is None else chain.head.seq
        trouble = chain.trouble_at_end() or marks.trouble_at_end(last_seq)
    return replace(
        checked_log(chain, trouble),
        num_checkpoints=marks.num_held,
        num_unverified=marks.num_unverified,
    )


def _marked(
    entries: Iterable[ChainedEntry], marks: CheckpointCheck, problems: list[str]
) -> Iterator[ChainedEntry]:
    """The entries up to the first one whose checkpoint says something else."""
    for entry in entries:
        trouble = marks.trouble_of(entry)
        if trouble is not None:
            problems.append(trouble)
            return
        yield entry


def checked_log(check: ChainCheck, trouble: str | None) -> CheckedLog:
    """What a check that has ended says."""
    return CheckedLog(check.num_entries, check.head, trouble)


def _whole_chain(signer: AuditSigner | None) -> ChainCheck:
    return ChainCheck() if signer is None else ChainCheck(is_cut=signer.is_cut)


def _last_seq(chain: ChainCheck) -> int:
    return _BEFORE_ALL if chain.head is None else chain.head.seq


def _were_let_go(connection: Connection, chain: ChainCheck, entry: ChainedEntry) -> bool:
    """Whether all entries before one that doesn't follow the last one have gone since that one."""
    if chain.head is None or entry.seq == chain.head.seq + 1:
        return False
    first = read_chain(connection, _BEFORE_ALL, 1)
    return not first or first[0].seq >= entry.seq


class _StoppedError(Exception):
    """The process ends before the check does."""


class BackgroundCheck:
    """Follows the chain of a database once, in a thread of its own.

    Args:
        reading: Opens it.
        signer: As in `check_log`.
        notes: Where checkpoints are noted beside the database; None nowhere.
        on_done: Called in that thread with what came of it; not when it was stopped.
        on_failed: Called in that thread when the log can't be read.
        delay_s: The check begins so long after the start.
    """

    def __init__(
        self,
        reading: Reading,
        *,
        signer: AuditSigner | None = None,
        notes: CheckpointNotes | None = None,
        on_done: Callable[[CheckedLog], None],
        on_failed: Callable[[str], None],
        delay_s: float = START_DELAY_S,
    ) -> None:
        self._reading = reading
        self._signer = signer
        self._notes = notes
        self._delay_s = delay_s
        self._on_done = on_done
        self._on_failed = on_failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-check", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it, whether it is done or not."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        if self._stop.wait(self._delay_s):
            return
        try:
            noted = () if self._notes is None else self._notes.read()
            checked = check_log(self._reading, signer=self._signer, noted=noted, pause=self._pause)
        except _StoppedError:
            return
        except StoreError as error:
            self._on_failed(error.message)
            return
        self._on_done(checked)

    def _pause(self) -> None:
        if self._stop.wait(PAUSE_S):
            raise _StoppedError
