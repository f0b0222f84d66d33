"""Which threads give way to steps while programs are compiled."""

import os
import sys
import threading
from pathlib import Path

import pytest

from engine_worker.compute.runner.compiler_threads import NICENESS, CompilerThreads


class Tasks:
    """A folder of threads as `/proc/self/task` shows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, thread_id: int, name: str, ticks: int) -> None:
        (self.folder / str(thread_id)).mkdir(exist_ok=True)
        # utime and stime are the 14th and 15th field.
        fields = ["S", *["0"] * 10, str(ticks - 1), "1", *["0"] * 30]
        text = f"{thread_id} ({name}) {' '.join(fields)}\n"
        (self.folder / str(thread_id) / "stat").write_text(text, encoding="utf-8")


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return Tasks(tmp_path)


def test_native_threads_that_worked_while_something_compiled_give_way(tasks: Tasks) -> None:
    own = threading.get_native_id()
    niceness: dict[int, int] = {}
    threads = CompilerThreads(tasks.folder, niceness.__setitem__)
    for thread_id, name in ((1, "python"), (2, "odd) name"), (3, "python"), (4, "tf_XLAEigen")):
        tasks.put(thread_id, name, 100)
    tasks.put(own, "python", 100)
    with threads.watch() as found:
        tasks.put(1, "python", 150)
        tasks.put(2, "odd) name", 150)
        tasks.put(3, "python", 101)  # it did next to nothing
        tasks.put(4, "tf_XLAEigen", 150)  # programs run in it
        tasks.put(own, "python", 150)  # Python knows it: it holds the interpreter's lock at times
        tasks.put(5, "python", 50)  # it is new
    assert found == {1, 2, 5}
    threads.give_way(found)
    assert niceness == dict.fromkeys((1, 2, 5), NICENESS)


def test_a_thread_that_is_gone_or_may_not_be_changed_is_left_alone(tasks: Tasks) -> None:
    def refuse(_thread_id: int, _niceness: int) -> None:
        raise PermissionError

    threads = CompilerThreads(tasks.folder, refuse)
    with threads.watch() as found:
        tasks.put(1, "python", 50)
        (tasks.folder / "2").mkdir()
    assert found == {1}
    threads.give_way(found)


def test_elsewhere_than_on_linux_nothing_is_found(tmp_path: Path) -> None:
    threads = CompilerThreads(tmp_path / "missing")
    with threads.watch() as found:
        pass
    assert found == set()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities by thread are Linux's")
def test_the_priority_of_a_single_thread_is_lowered() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    release, native_ids = threading.Event(), []
    ready = threading.Event()

    def wait() -> None:
        native_ids.append(threading.get_native_id())
        ready.set()
        release.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    assert ready.wait(60)
    CompilerThreads().give_way(native_ids)
    priorities = [os.getpriority(os.PRIO_PROCESS, native_ids[0])]
    priorities.append(os.getpriority(os.PRIO_PROCESS, 0))
    release.set()
    thread.join()
    assert priorities == [min(19, before + NICENESS), before]
