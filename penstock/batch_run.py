"""One run of `penstock run-batch` at a server: parts become batches, batches become answers.

A run that was cut off is taken up: its batches bear the id that is kept beside the output and a
digest of the input, and their answers are fetched before anything is asked again.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final

import httpx

from penstock.batch_client import BatchClient
from penstock.batch_input import BatchInput, InputLine, Part, parts_of, write_part
from penstock.batch_output import BatchOutput, answer_in, is_good
from penstock.errors import CommandError, ServerError, UsageError

_MAX_OPEN: Final = 4
"""Batches of one caller that a gateway works on at a time."""
_POLL_S: Final = 0.1
_LOOK_S: Final = 0.5
_ENDED: Final = ("failed", "completed", "expired", "cancelled")
_NOT_RUN: Final = ("batch_cancelled", "batch_expired")
"""Codes of lines that were not begun: no answers."""


@dataclass
class BatchCounts:
    """How a run went: requests in all, answered before this run, answered well, with an error."""

    total: int = 0
    skipped: int = 0
    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Watch:
    """What a run looks at while it waits.

    Attributes:
        poll: Called several times a second; raises where nothing is to be waited for any more.
        is_stopping: Whether no more is to be begun.
        sleep: Waits so many seconds.
    """

    poll: Callable[[], None]
    is_stopping: Callable[[], bool]
    sleep: Callable[[float], None] = time.sleep

    def pause(self) -> None:
        """Wait a moment."""
        for _ in range(round(_LOOK_S / _POLL_S)):
            self.poll()
            self.sleep(_POLL_S)


class BatchRun:
    """Has the lines of an input answered that have no good answer yet.

    Args:
        source: The requests.
        output: The answers; those of earlier runs are kept and not asked for again.
        batches: Of the server.
        watch: What is looked at meanwhile.
        run_id: Batches that bear another one, or none, are not of this output.
        default_model: For bodies that name none.
        on_progress: Called with how it stands.

    Attributes:
        counts: How it went.
    """

    def __init__(
        self,
        source: BatchInput,
        output: BatchOutput,
        batches: BatchClient,
        watch: Watch,
        *,
        run_id: str,
        default_model: str | None,
        on_progress: Callable[[BatchCounts], None],
    ) -> None:
        self._source = source
        self._output = output
        self._batches = batches
        self._watch = watch
        self._default_model = default_model
        self._on_progress = on_progress
        self._ids = {line.custom_id for line in source.lines}
        self._good_before = frozenset(self._ids & output.answered)
        self._answered: dict[str, bool] = {}  # in this run, and whether well
        self._open: dict[str, Part | None] = {}  # without the part where another run sent it
        self._max_open = _MAX_OPEN
        self._labels = _labels(source, run_id, default_model)
        self.counts = BatchCounts(total=len(source.lines), skipped=len(self._good_before))

    def run(self) -> None:
        """Until every line has an answer, or a stop is asked for.

        Raises:
            CommandError: A line is wrong, the server refused or is away, or an answer can't be
                written.
        """
        self._take_up()
        while not self._watch.is_stopping() and (missing := self._missing()):
            before = len(self._answered)
            self._finish(deque(parts_of(missing)))
            if len(self._answered) == before:
                break  # whoever waits longer gets no answers either

    def _missing(self) -> list[InputLine]:
        known = self._good_before | self._answered.keys()
        return [line for line in self._source.lines if line.custom_id not in known]

    def _take_up(self) -> None:
        """Fetch what earlier runs left on the server, and end what is of another input."""
        for batch in self._batches.known():
            labels = batch.get("metadata") or {}
            if labels.get("penstock_run") != self._labels["penstock_run"]:
                continue
            if labels.get("penstock_input") == self._labels["penstock_input"]:
                self._open[str(batch.get("id"))] = None
            elif batch.get("status") not in _ENDED:
                self._batches.cancel(str(batch.get("id")))
        self._finish(deque())

    def _finish(self, waiting: deque[Part]) -> None:
        """Run parts, some at a time, and take the answers of all batches that are open."""
        failure: CommandError | None = None
        is_cancelled = False
        self._max_open = _MAX_OPEN
        while waiting or self._open:
            if self._watch.is_stopping() or failure is not None:
                waiting.clear()
                if not is_cancelled:
                    is_cancelled = True
                    self._cancel_open()
            while waiting and len(self._open) < self._max_open and failure is None:
                failure = self._try_to_begin(waiting)
            found = self._look()
            failure = failure or found
            if self._open:
                self._watch.pause()
        if failure is not None:
            raise failure

    def _try_to_begin(self, waiting: deque[Part]) -> CommandError | None:
        """Begin the next part, or put it back until a batch has ended; why it can't be begun.

        Raises:
            CommandError: The server is away, or the part can't be written.
        """
        part = waiting.popleft()
        try:
            self._begin(part)
        except UsageError as error:
            return error
        except ServerError as error:
            if not httpx.codes.is_client_error(error.status):
                raise
            if error.status != httpx.codes.BAD_REQUEST or not self._open:
                return error
            # Limits of what a caller may have there at a time are a 400, like much else; whether
            # it is one shows when the batches that are open have ended.
            waiting.appendleft(part)
            self._max_open = len(self._open)
        return None

    def _begin(self, part: Part) -> None:
        with _file_of(self._source, part, self._output.path, self._default_model) as file:
            try:
                batch_id = self._batches.create(part.url, file, self._labels)
            except ServerError as error:
                if error.param != "endpoint":
                    raise
                where = f"{self._source.path}:{part.lines[0].number}"
                raise UsageError(f"{where}: {error.message}") from error
        self._open[batch_id] = part

    def _look(self) -> CommandError | None:
        """Take what has ended; why a batch could not be run, if one of this run couldn't."""
        failure = None
        num_under_way = [0, 0]
        for batch_id, part in list(self._open.items()):
            batch = self._batches.find(batch_id)
            if batch["status"] not in _ENDED:
                counts = batch.get("request_counts") or {}
                num_under_way[0] += int(counts.get("completed") or 0)
                num_under_way[1] += int(counts.get("failed") or 0)
                continue
            self._batches.take(batch, self._on_line, self._output.sync)
            del self._open[batch_id]
            if batch["status"] == "failed" and part is not None:
                failure = failure or _failure(batch, part, self._source.path)
        num_good = sum(self._answered.values())
        self.counts.succeeded, self.counts.failed = num_good, len(self._answered) - num_good
        shown = BatchCounts(self.counts.total, self.counts.skipped)
        shown.succeeded = self.counts.succeeded + num_under_way[0]
        shown.failed = self.counts.failed + num_under_way[1]
        self._on_progress(shown)
        return failure

    def _on_line(self, line: bytes) -> None:
        answer = answer_in(line)
        if answer is None:
            raise ServerError("The server gave a line that is no answer of a batch.", status=400)
        custom_id, error = answer["custom_id"], answer["error"]
        is_run = not (isinstance(error, dict) and error.get("code") in _NOT_RUN)
        # What an earlier run wrote is there although it didn't get to have the file forgotten.
        is_known = custom_id in self._good_before or custom_id in self._answered
        if is_run and custom_id in self._ids and not is_known:
            self._output.append(line)
            self._answered[custom_id] = is_good(answer)

    def _cancel_open(self) -> None:
        for batch_id in self._open:
            self._batches.cancel(batch_id)


def _labels(source: BatchInput, run_id: str, default_model: str | None) -> dict[str, str]:
    """What the batches of a run are known by, also to a later one."""
    asked = f"{source.digest}\0{default_model or ''}"
    return {
        "penstock_run": run_id,
        "penstock_input": hashlib.sha256(asked.encode()).hexdigest(),
    }


@contextmanager
def _file_of(
    source: BatchInput, part: Part, output_path: Path, default_model: str | None
) -> Iterator[BinaryIO]:
    """A part as a file without a name, where the answers will lie as well.

    Raises:
        CommandError: It can't be written.
    """
    try:
        file = TemporaryFile(dir=output_path.parent)  # noqa: SIM115 - closed below
    except OSError as error:
        raise CommandError(f"{output_path.parent} takes no file: {error.strerror}.") from error
    with file:
        try:
            write_part(source, part, file, default_model)
        except OSError as error:
            message = f"{output_path.parent} has no room for the requests: {error.strerror}."
            raise CommandError(message) from error
        yield file


def _failure(batch: dict[str, Any], part: Part, path: Path) -> CommandError:
    """Why a batch could not be run, in the server's words, with the line of the input."""
    found = batch.get("errors")
    errors = found.get("data") if isinstance(found, dict) else None
    return _wrong_line(errors if isinstance(errors, list) else [], part, path)


def _wrong_line(errors: Iterable[Any], part: Part, path: Path) -> CommandError:
    told = [one for one in errors if isinstance(one, dict)]
    if not told:
        return ServerError("The server could not run the batch, and doesn't say why.")
    message, number = str(told[0].get("message")), told[0].get("line")
    if not isinstance(number, int) or not 1 <= number <= len(part.lines):
        return ServerError(message)
    more = f" ({len(told) - 1} more lines are wrong, too)" if len(told) > 1 else ""
    return UsageError(f"{path}:{part.lines[number - 1].number}: {message}{more}")


def check_lines(source: BatchInput, parts: Iterable[Part], output_path: Path) -> None:
    """Have lines checked by the code that the server checks them with, before it is started.

    Raises:
        UsageError: One is wrong.
        CommandError: They can't be checked.
    """
    for part in parts:
        with _file_of(source, part, output_path, None) as file:
            command = [sys.executable, "-m", "gateway.batches.check", part.url]
            done = subprocess.run(  # noqa: S603 - our own module
                command, stdin=file, stdout=subprocess.PIPE, check=False
            )
        if done.returncode:
            raise CommandError("The requests can't be checked.")
        if errors := json.loads(done.stdout):
            raise _wrong_line(errors, part, source.path)
