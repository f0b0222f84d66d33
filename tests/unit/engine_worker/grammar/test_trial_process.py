"""What takes long in the process that tries grammars gives way to everything else."""

import os
import sys
import threading
import time

import pytest

from engine_worker.grammar import trial_process
from engine_worker.grammar.trial_process import run_yielding

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def compute_until_lowered(before: int) -> int:
    """Take CPU time until the own priority is lower; how low."""
    until = time.monotonic() + 30
    while (now := niceness()) == before and time.monotonic() < until:
        pass
    return now


def test_costly_work_loses_priority_and_the_next_has_it_again() -> None:
    before, lowered = niceness(), trial_process._COSTLY_NICENESS
    if before >= lowered:
        pytest.skip("the tests themselves have less priority")
    assert run_yielding(lambda: compute_until_lowered(before)) == lowered
    assert run_yielding(niceness) == before
    assert niceness() == before


def test_work_that_only_waits_keeps_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    before, looks = niceness(), threading.Semaphore(0)

    def computed_s() -> float:
        looks.release()
        return 0.0

    monkeypatch.setattr(trial_process, "_COSTLY_S", 0.001)
    monkeypatch.setattr("engine_worker.grammar.trial_process.time.process_time", computed_s)

    def waits() -> int:
        for _ in range(3):
            looks.acquire()
        return niceness()

    assert run_yielding(waits) == before


def test_what_the_work_raises_is_raised() -> None:
    with pytest.raises(MemoryError):
        run_yielding(lambda: bytearray(2**62))
