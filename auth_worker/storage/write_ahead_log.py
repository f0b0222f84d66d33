"""Finds damage in SQLite's write-ahead log, which SQLite itself takes for the log's end.

SQLite reads the log up to the first frame that doesn't check and silently passes over the rest
(https://www.sqlite.org/fileformat2.html#the_write_ahead_log). That is right after a crash, which
can spoil only what was not yet acknowledged; anything else loses commits silently.
"""

import struct
from pathlib import Path
from typing import BinaryIO

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MAGIC = 0x377F0682  # with the lowest bit set, checksums are over big-endian words
_VERSION = 3007000
_MASK = 0xFFFFFFFF
_MAX_OLDER_GENERATIONS = 1 << 20
MAX_CHECKED_BYTES = 64 * 1024 * 1024
"""A longer log is read up to here only; checkpoints keep it at about 4 MB."""


def damage_of(path: Path) -> str | None:
    """What is wrong with a write-ahead log; None when a crash explains all of it.

    Call it while nobody else writes the database.

    Raises:
        OSError: It can't be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        return _damage(file)


def _damage(file: BinaryIO) -> str | None:
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not any(header):
        return None  # it was being made; nothing in it was committed
    magic, version, page_bytes, _, salt_1, salt_2, *stored = struct.unpack(">8I", header)
    order = ">" if magic & 1 else "<"
    if magic & ~1 != _MAGIC or version != _VERSION:
        return "it has no header of a write-ahead log"
    sums = _checksum(header[:24], (0, 0), order)
    if list(sums) != stored:
        return "the checksum of its header is wrong"
    frames = _Frames(file, page_bytes, (salt_1, salt_2), order)
    return frames.damage_after(frames.num_good(sums))


class _Frames:
    """The frames of a log: a header of 24 bytes and a page each."""

    def __init__(self, file: BinaryIO, page_bytes: int, salts: tuple[int, int], order: str) -> None:
        self._file = file
        self._page_bytes = page_bytes
        self._salts = salts
        self._order = order

    def num_good(self, sums: tuple[int, int]) -> int:
        """How many frames from the beginning SQLite would read."""
        frame_bytes = _FRAME_HEADER_BYTES + self._page_bytes
        number = 0
        while number * frame_bytes < MAX_CHECKED_BYTES:
            frame = self._file.read(frame_bytes)
            if len(frame) < frame_bytes:
                break
            _, _, *salts, sum_1, sum_2 = struct.unpack(">6I", frame[:_FRAME_HEADER_BYTES])
            sums = _checksum(frame[:8], sums, self._order)
            sums = _checksum(frame[_FRAME_HEADER_BYTES:], sums, self._order)
            if tuple(salts) != self._salts or sums != (sum_1, sum_2):
                break
            number += 1
        return number

    def damage_after(self, num_good: int) -> str | None:
        """What stands behind the last good frame and can't come from a crash.

        Each commit is on the disk before the next one begins, so a crash spoils the frames of one
        commit at most; frames of before the log was last begun again have a smaller first salt.
        """
        frame_bytes = _FRAME_HEADER_BYTES + self._page_bytes
        num_commits = 0
        for number in range(num_good, MAX_CHECKED_BYTES // frame_bytes):
            self._file.seek(_HEADER_BYTES + number * frame_bytes)
            header = self._file.read(_FRAME_HEADER_BYTES)
            if len(header) < _FRAME_HEADER_BYTES:
                break
            _, num_pages, *salts, _, _ = struct.unpack(">6I", header)
            if tuple(salts) == self._salts:
                num_commits += num_pages > 0
            elif salts[0] == self._salts[0] or not any(header):
                continue  # half written, or not at all
            elif (self._salts[0] - salts[0]) & _MASK > _MAX_OLDER_GENERATIONS:
                return f"frame {number + 1} does not belong to this log"
            if num_commits > 1:
                return f"frame {num_good + 1} has a wrong checksum, and committed frames follow it"
        return None


def _checksum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """SQLite's running checksum; `data` is a multiple of 8 bytes."""
    first, second = sums
    for one, other in struct.iter_unpack(f"{order}2I", data):
        first = (first + one + second) & _MASK
        second = (second + other + first) & _MASK
    return first, second
