"""What takes long in the process that tries grammars gives way to everything else."""

import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe

import pytest

from engine_worker.grammar import trial_process
from engine_worker.grammar.trial_process import answer_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def answers(work: Callable[[bytes], int], *messages: bytes) -> list[int]:
    """What comes of messages, one after the other."""
    ours, theirs = Pipe()
    ended: list[EOFError] = []

    def serve() -> None:
        try:
            answer_all(theirs, lambda message: b"%d" % work(message))
        except EOFError as error:
            ended.append(error)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    found = []
    for message in messages:
        ours.send_bytes(message)
        found.append(int(ours.recv_bytes()))
    ours.close()
    server.join(30)
    assert len(ended) == 1
    return found


def test_costly_work_loses_priority_and_the_next_has_it_again() -> None:
    before, lowered = niceness(), trial_process._COSTLY_NICENESS
    if before >= lowered:
        pytest.skip("the tests themselves have less priority")

    def work(message: bytes) -> int:
        until = time.monotonic() + 30
        while message == b"costly" and niceness() == before and time.monotonic() < until:
            pass
        return niceness()

    messages = (b"quick", b"costly", b"quick", b"costly", b"quick")
    assert answers(work, *messages) == [before, lowered, before, lowered, before]


def test_costly_work_after_a_long_rest_loses_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_process, "_IDLE_LOOKS", 0)
    test_costly_work_loses_priority_and_the_next_has_it_again()


def test_work_that_only_waits_keeps_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    before, looks = niceness(), threading.Semaphore(0)

    def computed_s() -> float:
        looks.release()
        return 0.0

    monkeypatch.setattr(trial_process, "_COSTLY_S", 0.001)
    monkeypatch.setattr("engine_worker.grammar.trial_process.time.process_time", computed_s)

    def waits(_: bytes) -> int:
        for _look in range(5):
            looks.acquire()
        return niceness()

    assert answers(waits, b"one", b"other") == [before, before]


def test_what_the_work_raises_ends_the_process() -> None:
    ours, theirs = Pipe()
    ours.send_bytes(b"any")

    def raises(_: bytes) -> bytes:
        raise MemoryError

    with pytest.raises(MemoryError):
        answer_all(theirs, raises)
