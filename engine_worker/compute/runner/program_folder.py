"""Keeps the folder of traced programs small, with any number of engines at work in it."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

SUFFIX: Final = ".program"
UNFINISHED: Final = ".tmp"
MAX_PROGRAMS: Final = 512
"""Files that stay, those used last. A model has some 15 for each code, setting and size of its
cache, of about 100 KB: some 30 of these sets, or 50 MB. A number and not a size, so that programs
of a very large model don't remove each other."""
ABANDONED_S: Final = 3600.0
"""What is unfinished for so long has no writer: one takes milliseconds."""
_log = logging.getLogger("penstock.runner")


def mark_used(path: Path) -> None:
    """Notes that a program is still of use: what isn't used for longest goes first."""
    with suppress(OSError):
        os.utime(path)


def tidy(written: Path) -> None:
    """Removes what is too much in a folder to which a program was written.

    Others may write, read and remove files there meanwhile: whoever wanted one that is gone traces
    its program again.

    Args:
        written: The program. Ages are counted from its time, which the folder's own clock gave.
    """
    with suppress(OSError):
        now = written.stat().st_mtime
        used: list[tuple[float, str]] = []
        with os.scandir(written.parent) as entries:
            for entry in entries:
                with suppress(OSError):
                    modified = entry.stat(follow_symlinks=False).st_mtime
                    if entry.name.endswith(SUFFIX):
                        used.append((modified, entry.path))
                    elif entry.name.endswith(UNFINISHED) and abs(now - modified) > ABANDONED_S:
                        Path(entry.path).unlink()
        too_many = sorted(used)[: max(0, len(used) - MAX_PROGRAMS)]
        for _, path in too_many:
            with suppress(OSError):
                Path(path).unlink()
        if too_many:
            _log.debug("%d programs used least recently are removed", len(too_many))
