"""A worker whose I/O thread stands still ends, and says where it stood."""

import os
import subprocess
import sys
import threading

import pytest

from protocol.wire.stall_watch import LOOK_S, StallWatch

WORKER = """
import threading
from protocol.wire import stall_watch
from protocol.wire.codec import Decoder
from protocol.wire.messages import ParserCommand
from protocol.wire.worker import Worker, WorkerSettings

class Handler:
    def num_unfinished(self): return 0
    def load(self): return None

def takes_hours():
    while True:
        pass

stall_watch.LOOK_S = 0.02
worker = Worker(
    role="toolparser", decoder=Decoder(ParserCommand), handler=Handler(), endpoints=(),
    settings=WorkerSettings(stall_s=0.2, heartbeat_interval_s=0.01),
)
worker.start()
worker.call_soon(takes_hours)
worker.wait()
"""


def watch(beats: list[float], exits: list[int]) -> StallWatch:
    return StallWatch(
        lambda: beats[-1], stall_s=3 * LOOK_S, exit_code=1, on_stall=lambda code: exits.append(code)
    )


def test_a_thread_that_does_nothing_for_so_long_ends_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exits: list[int] = []
    watching = watch([5.0], exits)
    for _ in range(4):
        assert exits == []
        watching.look(threading.current_thread())
    assert exits == [1]
    assert "stands still for 3 s" in caplog.text
    assert "test_a_thread_that_does_nothing" in caplog.text


def test_a_thread_that_beats_now_and_then_goes_on() -> None:
    beats, exits = [0.0], list[int]()
    watching = watch(beats, exits)
    for number in range(30):
        if number % 3 == 0:
            beats.append(float(number + 1))
        watching.look(threading.current_thread())
    assert exits == []


def test_a_command_without_end_ends_its_process_and_names_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "takes_hours" in done.stderr
