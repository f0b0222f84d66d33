"""One auth worker on a database, and how long the next one waits for its end."""

import logging
import os
from pathlib import Path

import pytest

from auth_worker.errors import StoreLockedError
from auth_worker.storage.file_lock import take_lock


class Waiting:
    """A clock that moves while somebody sleeps; at `ends_at` the holder lets go."""

    def __init__(self, holder: int, ends_at: float) -> None:
        self.now = 0.0
        self._holder: int | None = holder
        self._ends_at = ends_at

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self._holder is not None and self.now >= self._ends_at:
            os.close(self._holder)
            self._holder = None


def test_a_predecessor_that_is_about_to_end_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "auth.lock"
    waiting = Waiting(take_lock(path), ends_at=2.0)
    with caplog.at_level(logging.WARNING, "penstock.auth"):
        fd = take_lock(path, 5.0, clock=waiting.clock, sleep=waiting.sleep)
    os.close(fd)
    assert 2.0 <= waiting.now < 2.1
    (line,) = caplog.messages
    assert f"(process {os.getpid()}) holds {tmp_path}; waiting up to 5 s" in line


def test_one_that_stays_is_named_when_the_patience_is_over(tmp_path: Path) -> None:
    path = tmp_path / "auth.lock"
    waiting = Waiting(take_lock(path), ends_at=100.0)
    with pytest.raises(StoreLockedError, match=rf"\(process {os.getpid()}\) holds"):
        take_lock(path, 5.0, clock=waiting.clock, sleep=waiting.sleep)
    assert 5.0 <= waiting.now < 5.1


def test_without_patience_nobody_sleeps(tmp_path: Path) -> None:
    path = tmp_path / "auth.lock"
    waiting = Waiting(take_lock(path), ends_at=0.0)
    with pytest.raises(StoreLockedError):
        take_lock(path, clock=waiting.clock, sleep=waiting.sleep)
    assert waiting.now == 0.0
