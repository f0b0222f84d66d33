"""The output of `penstock run-batch`: a file that only grows, put in the input's order at the end.

Killed at any moment it holds every answer that was written and at most one half line, the last.
After a power cut a file system may show bytes that never came to the disk as NULs at its end.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from penstock.durable_files import sync_folder
from penstock.errors import CommandError, UsageError

SYNC_INTERVAL_S: Final = 5.0
"""A power cut costs at most the answers of so long."""

_BEGINNINGS: Final = (b'{"id":"', b'{"id": "')
"""Of every line, of this release and of earlier ones; an end of a file that begins otherwise was
not written here."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an answer lies in the file, in bytes, with its line feed."""

    offset: int
    num_bytes: int
    is_good: bool


class BatchOutput:
    """The answers of a batch; a context manager that holds the file's lock.

    Args:
        path: Made when missing; what an earlier run has written is kept.
        clock: Monotonic seconds.

    Raises:
        UsageError: When entered: the file holds something else, or another run writes to it.
        CommandError: The file can't be read or written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path.resolve()  # A link stays a link: what it points to is replaced.
        self._clock = clock
        self._descriptor = -1
        self._places: dict[str, _Place] = {}
        self._num_bytes = 0
        self._synced_at = clock()
        self._is_entry_synced = False
        self._has_failed = False

    def __enter__(self) -> "BatchOutput":
        try:
            self._descriptor = self._open()
            self._read()
        except OSError as error:
            self._close()
            raise self._failure("opened", error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            os.fsync(self._descriptor)
        self._close()

    @property
    def path(self) -> Path:
        """Of the file, links followed."""
        return self._path

    @property
    def answered(self) -> set[str]:
        """The requests that have a good answer."""
        return {custom_id for custom_id, place in self._places.items() if place.is_good}

    def append(self, line: bytes) -> None:
        """Write one answer, a whole line; the operating system has it when this returns.

        Raises:
            CommandError: It is none, or can't be written, such as for lack of room.
        """
        answer = answer_in(line)
        if answer is None:
            raise CommandError("The server gave a line that is no answer of a batch.")
        if self._has_failed:  # A line after a half one would make two answers unreadable.
            raise CommandError(f"{self._path} could not be written.")
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            if self._clock() - self._synced_at >= SYNC_INTERVAL_S:
                os.fsync(self._descriptor)
                self._synced_at = self._clock()
        except OSError as error:
            self._has_failed = True
            raise self._failure("written", error) from error
        self._note(answer["custom_id"], len(line), is_good=is_good(answer))

    def sync(self) -> None:
        """Bring to the disk what was written, and at the first time the file's entry in its folder.

        Raises:
            CommandError: The disk fails.
        """
        try:
            os.fsync(self._descriptor)
            self._synced_at = self._clock()
            if not self._is_entry_synced:
                sync_folder(self._path.parent)
                self._is_entry_synced = True
        except OSError as error:
            self._has_failed = True
            raise self._failure("written", error) from error

    def put_in_order(self, custom_ids: Iterable[str]) -> None:
        """Replace the file by one with an answer a request, in this order; then the others.

        A new file is written beside it and renamed, so that at any moment one of the two is whole.

        Raises:
            CommandError: There is no room for it; the answers stay as they are.
        """
        wanted = dict.fromkeys(custom_ids)
        order = [self._places[name] for name in wanted if name in self._places]
        order += [place for name, place in self._places.items() if name not in wanted]
        fresh = self._path.with_name(f"{self._path.name}.penstock-new")
        try:
            os.fsync(self._descriptor)
            if _fills(order, self._num_bytes):
                return
            with fresh.open("wb") as file:
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._descriptor).st_mode))
                for place in order:
                    file.write(os.pread(self._descriptor, place.num_bytes, place.offset))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise CommandError(
                f"{self._path} holds every answer, but can't be sorted: {error.strerror}. "
                "The same command does just that once there is room."
            ) from error

    def _open(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise UsageError(
                        f"{self._path} is not a regular file; name one that a later run can resume."
                    )
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run that held the lock until now may just have replaced the file.
                if os.fstat(descriptor).st_ino == self._path.stat().st_ino:
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise UsageError(
                    f"Another run-batch writes to {self._path}; wait for it or name another file."
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _read(self) -> None:
        """Find what was answered, and drop a half last line."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            for number, line in enumerate(file, start=1):
                answer = answer_in(line)
                if answer is None and line.strip() and not _is_torn(line):
                    raise UsageError(
                        f"{self._path}:{number}: the file exists and is not the output of a batch; "
                        "name another file."
                    )
                if answer is None and not line.endswith(b"\n"):
                    os.ftruncate(self._descriptor, self._num_bytes)
                elif answer is None:
                    self._num_bytes += len(line)
                else:
                    if not line.endswith(b"\n"):
                        os.write(self._descriptor, b"\n")
                        line += b"\n"
                    self._note(answer["custom_id"], len(line), is_good=is_good(answer))

    def _note(self, custom_id: str, num_bytes: int, *, is_good: bool) -> None:
        old = self._places.get(custom_id)
        if old is None or is_good or not old.is_good:
            self._places[custom_id] = _Place(self._num_bytes, num_bytes, is_good)
        self._num_bytes += num_bytes

    def _failure(self, what: str, error: OSError) -> CommandError:
        return CommandError(
            f"{self._path} can't be {what}: {error.strerror}. Answers that it holds are kept; the "
            "same command goes on there."
        )

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def answer_in(line: bytes) -> dict[str, Any] | None:
    """The answer that a line holds; None when it is none."""
    try:
        value = json.loads(line)
        if isinstance(value["custom_id"], str) and {"response", "error"} <= value.keys():
            return dict(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


def is_good(answer: dict[str, Any]) -> bool:
    """Whether an answer is one that need not be asked for again."""
    response = answer["response"]
    return isinstance(response, dict) and response.get("status_code") == 200


def _is_torn(line: bytes) -> bool:
    """Whether a line is what a kill or a power cut left of one that was written here."""
    if not line.strip(b"\0"):
        return True  # the file had grown already, and its bytes never came to the disk
    if not any(line.startswith(one) or one.startswith(line) for one in _BEGINNINGS):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _fills(order: Iterable[_Place], num_bytes: int) -> bool:
    """Whether the places follow each other from the beginning to the end of the file."""
    end = 0
    for place in order:
        if place.offset != end:
            return False
        end += place.num_bytes
    return end == num_bytes
