"""What became of a batch's lines, written so that a killed gateway loses and doubles nothing.

A line has a record when its request gets a lease, and another one behind its answer, which is in an
output file by then. Only then is the lease settled. So after a kill, of each line either its answer
and its settlement are here, which is sent again and booked once (a ledger knows its leases); or
there is no answer, then its lease is settled as unused and the line is run again. What an output
file holds beyond its last record is cut off. A record whose answer isn't in its output file
is cut off with all behind it, and these lines are run again: nothing makes up what is missing.

Records are handed to the kernel and not synced: they outlive this process, and of a machine that
dies the lines since the last sync are run again.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import orjson

from gateway.batches.records import Counts
from protocol.wire import codec
from protocol.wire.messages import Settle

_logger = logging.getLogger("penstock.gateway.batches")

FileKind = Literal["output", "error"]
FILES: Final[dict[FileKind, str]] = {"output": "output.jsonl", "error": "error.jsonl"}
JOURNAL: Final = "journal.jsonl"
MAX_RESENT: Final = 1024
"""Settlements that are sent again after a kill: more than are ever on their way."""

_settles = codec.Decoder[Settle](Settle)


@dataclass(slots=True)
class Recovered:
    """What a journal says.

    Attributes:
        done: Numbers of lines with an answer.
        open_leases: Of lines without one, or whose answer is lost.
        settles: Of the newest answers.
        counts: Of the answers.
    """

    done: set[int] = field(default_factory=set)
    open_leases: dict[int, list[str]] = field(default_factory=dict)
    settles: list[Settle] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


class Journal:
    """The journal and the output files of one batch; one gateway has them open at a time.

    After a write that failed nothing more is taken: it may have left a piece of a line, behind
    which whatever follows would be lost. Who opens the files again cuts that off.

    Args:
        folder: Of the batch.
        is_over: Nothing is written any more, and outputs may have been handed over.

    Raises:
        OSError: A file can't be opened or read.
    """

    def __init__(self, folder: Path, *, is_over: bool = False) -> None:
        self._failure: OSError | None = None
        self._ends: dict[FileKind, int] = dict.fromkeys(FILES, 0)
        self.recovered = Recovered()
        with ExitStack() as stack:
            answers = None if is_over else _Answers(folder, stack)
            good_bytes = self._read(folder / JOURNAL, answers)
        self._journal = _open_at(folder / JOURNAL, good_bytes)
        self._outputs: dict[FileKind, BinaryIO] = {
            kind: _open_at(folder / name, self._ends[kind])
            for kind, name in FILES.items()
            if not is_over
        }

    def note_lease(self, line: int, lease_id: str) -> None:
        """A line's request has a lease.

        Raises:
            OSError: The disk doesn't take it.
        """
        self._write({"begun": line, "lease": lease_id})

    def note_done(
        self, line: int, kind: FileKind, answer: dict[str, Any], settle: Settle | None
    ) -> None:
        """A line has its answer, which is written into an output file first.

        Raises:
            OSError: The disk doesn't take it.
        """
        text = orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE)
        output = self._outputs[kind]
        self._append(output, text)
        self._ends[kind] += len(text)
        record: dict[str, Any] = {"done": line, "file": kind, "end": self._ends[kind]}
        if settle is not None:
            record["settle"] = codec.encode(settle).hex()
        self._write(record)
        count(self.recovered.counts, kind, settle)

    def has_any(self, kind: FileKind) -> bool:
        """Whether an output file holds an answer."""
        return self._ends[kind] > 0

    def sync(self) -> None:
        """Wait until all of it is on the disk.

        Raises:
            OSError: It failed.
        """
        for file in (*self._outputs.values(), self._journal):
            os.fsync(file.fileno())

    def close(self) -> None:
        """Let the files go; idempotent."""
        for file in (*self._outputs.values(), self._journal):
            file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._append(self._journal, orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def _append(self, file: BinaryIO, data: bytes) -> None:
        if self._failure is not None:
            raise OSError(self._failure.errno, "an earlier write failed")
        try:
            _write_all(file, data)
        except OSError as error:
            self._failure = error
            raise

    def _read(self, path: Path, answers: "_Answers | None") -> int:
        """Take what is there; how many bytes of it are whole records with their answers.

        Args:
            path: Of the journal.
            answers: What the output files hold; None takes the journal's word for it.

        Raises:
            OSError: It can't be read.
        """
        found, good_bytes, is_good = self.recovered, 0, True
        lost: deque[tuple[int, str]] = deque(maxlen=MAX_RESENT)
        for text in _whole_lines(path):
            try:
                record = orjson.loads(text)
            except orjson.JSONDecodeError:
                break
            if is_good and "done" in record and answers is not None:
                is_good = answers.ends_at(record["file"], record["end"])
            if is_good:
                good_bytes += len(text)
            if "begun" in record:
                found.open_leases.setdefault(record["begun"], []).append(record["lease"])
                continue
            line, kind = record["done"], record["file"]
            settle = None
            if "settle" in record:
                settle = _settles.decode(bytes.fromhex(record["settle"]))
            # Leases of earlier tries of this line are settled already: each try ends with that.
            found.open_leases.pop(line, None)
            if not is_good:
                if settle is not None:
                    lost.append((line, settle.lease_id))
                continue
            found.done.add(line)
            self._ends[kind] = record["end"]
            if settle is not None:
                found.settles.append(settle)
                del found.settles[:-MAX_RESENT]
            count(found.counts, kind, settle)
        for line, lease_id in lost:
            found.open_leases.setdefault(line, []).append(lease_id)
        if not is_good:
            _logger.error(
                "%s: the output files lack answers that it tells of; from %d bytes on its lines"
                " are run again",
                *(path, good_bytes),
            )
        return good_bytes


class _Answers:
    """What the output files of a batch hold, which may be less than its journal says.

    Args:
        folder: Of the batch.
        stack: Closes the files.

    Raises:
        OSError: A file is there and can't be opened.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files: dict[FileKind, BinaryIO] = {}
        for kind, name in FILES.items():
            with suppress(FileNotFoundError):
                self._files[kind] = stack.enter_context((folder / name).open("rb", buffering=0))

    def ends_at(self, kind: FileKind, end: int) -> bool:
        """Whether a line ends there: a file that is too short has nothing, or NULs."""
        file = self._files.get(kind)
        return file is not None and os.pread(file.fileno(), 1, end - 1) == b"\n"


def count(counts: Counts, kind: FileKind, settle: Settle | None) -> None:
    """Add an answer to what a batch has used."""
    if kind == "output":
        counts.completed += 1
    else:
        counts.failed += 1
    if settle is not None and not settle.is_unused:
        counts.prompt_tokens += settle.prompt_tokens
        counts.completion_tokens += settle.completion_tokens
        counts.cached_tokens += settle.cached_tokens
        counts.reasoning_tokens += settle.reasoning_tokens


def _write_all(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _whole_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for text in file:
                if text.endswith(b"\n"):
                    yield text
    except FileNotFoundError:
        return


def _open_at(path: Path, end: int) -> BinaryIO:
    """A file for appending, cut behind what counts; without a buffer that a kill would lose."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    file = os.fdopen(fd, "wb", buffering=0)
    file.truncate(end)
    file.seek(end)
    return file
