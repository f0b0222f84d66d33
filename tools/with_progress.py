"""Runs a command and shows that it goes on, and with what; `make` installs with it.

    python tools/with_progress.py "Installing packages" COMMAND ...

On a terminal this is one line that is drawn again, with the time so far and the last line that the
command wrote. Elsewhere it is a line after two seconds and then every fifteen. What the command
writes is shown when it fails; of one that succeeds only its warnings. The exit status is the
command's. Python's own modules suffice: nothing is installed yet when this runs.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

FIRST_S = 2.0
AGAIN_S = 15.0
REDRAW_S = 1.0
MAX_DETAIL_CHARACTERS = 100
MAX_WARNING_CHARACTERS = 160
"""A compiler's command stands in some."""
MAX_LINES = 500
"""How much of the end of a failed command's output is shown."""


class Progress:
    """What is shown of one command.

    Args:
        title: What it does.
        out: Where to write.
        is_terminal: Whether a line can be drawn again there.
        columns: Of the terminal.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        title: str,
        out: TextIO,
        *,
        is_terminal: bool,
        columns: int = 80,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._out = out
        self._is_terminal = is_terminal
        self._columns = columns
        self._clock = clock
        self._begun_s = clock()
        self._next_s = self._begun_s + (0.0 if is_terminal else FIRST_S)
        self._was_shown = False
        self._detail = ""
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._warnings: list[str] = []

    def take(self, line: str) -> None:
        """A line that the command wrote."""
        line = line.rstrip()
        self._lines.append(line)
        if line.lstrip().lower().startswith(("warning", "deprecation")):
            self._warnings.append(
                line if len(line) <= MAX_WARNING_CHARACTERS else f"{line[:MAX_WARNING_CHARACTERS]}…"
            )
        self._detail = detail_of(line) or self._detail

    def show(self) -> None:
        """Say how it stands, if it is time to."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + (REDRAW_S if self._is_terminal else AGAIN_S)
        self._was_shown = True
        text = f"{self._title}: {now_s - self._begun_s:.0f} s"
        if self._detail:
            text += f", {self._detail}"
        self._out.write(
            f"\r\x1b[K{text[: self._columns - 1]}" if self._is_terminal else f"{text}\n"
        )
        self._out.flush()

    def end(self, status: int) -> None:
        """The command ended."""
        if self._is_terminal and self._was_shown:
            self._out.write("\r\x1b[K")
        for line in self._lines if status else self._warnings:
            self._out.write(f"{line}\n")
        took_s = self._clock() - self._begun_s
        if status:
            self._out.write(f"{self._title}: failed after {took_s:.0f} s\n")
        elif took_s >= FIRST_S:
            self._out.write(f"{self._title}: done in {took_s:.0f} s\n")
        self._out.flush()


def detail_of(line: str) -> str:
    """What a line of output says in short; empty for one that is long, a compiler's command say."""
    text = line.strip()
    if len(text) > MAX_DETAIL_CHARACTERS:
        text, colon, _ = text.partition(": ")  # `Installing collected packages: a, b, …`
        text = text if colon else ""
    is_short = len(text) <= MAX_DETAIL_CHARACTERS
    return "".join(filter(str.isprintable, text)) if is_short else ""


def run(command: Sequence[str], progress: Progress) -> int:
    """Runs the command to its end; its exit status, 128 and more after a signal."""
    process = subprocess.Popen(  # noqa: S603 - make's own commands, no shell
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    # The terminal sends an interrupt to the command, too; it ends, and is waited for.
    signal.signal(signal.SIGINT, lambda *_: None)
    output = process.stdout or ()
    reader = threading.Thread(target=_read, args=(output, progress.take), daemon=True)
    reader.start()
    while reader.is_alive():
        progress.show()
        reader.join(REDRAW_S / 4)
    status = process.wait()
    status = 128 - status if status < 0 else status
    progress.end(status)
    return status


def _read(output: Iterable[str], take: Callable[[str], None]) -> None:
    for line in output:
        take(line)


def main(arguments: Sequence[str]) -> int:
    """Runs what the arguments say: a title, then the command."""
    title, *command = arguments
    progress = Progress(
        title,
        sys.stderr,
        is_terminal=sys.stderr.isatty(),
        columns=shutil.get_terminal_size().columns,
    )
    return run(command, progress)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
