"""Processes that are started beside an event loop."""

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import uvloop

from protocol.runtime import child_process
from protocol.runtime.child_environment import child_environment
from protocol.runtime.child_process import ChildProcess, start_child

PATIENCE_S = 60
PACKAGES = ("gateway", "protocol", "auth_worker", "toolparser_worker", "engine_worker", "penstock")
ROOT = Path(__file__).parents[4]


async def start(code: str, *, limit: int = 1 << 16) -> ChildProcess:
    command = (sys.executable, "-c", code)
    return await start_child(command, child_environment(os.environ), limit=limit)


@asynccontextmanager
async def running(code: str) -> AsyncIterator[ChildProcess]:
    child = await start(code)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield child
    finally:
        await child.end()


ECHO = """
import sys
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(line.upper())
    sys.stdout.buffer.flush()
"""


async def test_it_reads_and_writes() -> None:
    async with running(ECHO) as child:
        for line in (b"one\n", b"two\n", b"x" * 50_000 + b"\n"):
            child.writer.write(line)
            assert await child.reader.readline() == line.upper()
        assert child.returncode is None


def test_it_does_so_under_uvloop() -> None:
    async def talk() -> bytes:
        async with running(ECHO) as child:
            child.writer.write(b"one\n")
            return await child.reader.readline()

    assert uvloop.run(talk()) == b"ONE\n"


async def test_it_ends_with_its_input() -> None:
    async with running(ECHO) as child:
        child.release()
        assert await child.wait() == 0
        assert child.returncode == 0


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
async def test_its_end_is_told(code: str, expected: int) -> None:
    async with running(code) as child:
        assert await child.wait() == expected
        assert await child.end() == expected


async def test_what_it_said_before_its_end_is_read_after_it() -> None:
    async with running("print('x' * 30000)") as child:
        await child.wait()
        assert await child.reader.read() == b"x" * 30000 + b"\n"


async def test_without_the_program_it_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError, match="No such file"):
        await start_child(("/nonexistent",), {}, limit=1)


async def test_a_thread_that_cannot_be_started_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(OSError, match="can't start new thread"):
        await start_child((sys.executable,), {}, limit=1)


async def test_its_children_end_with_it() -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
"""
    async with running(code) as child:
        grandchild = psutil.Process(int(await child.reader.readline()))
        await child.end()
        await asyncio.to_thread(psutil.wait_procs, [grandchild], PATIENCE_S)
        assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


async def test_they_end_too_when_it_dies_by_itself() -> None:
    code = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
os._exit(3)
"""
    async with running(code) as child:
        grandchild = psutil.Process(int(await child.reader.readline()))
        assert await child.wait() == 3
        await asyncio.to_thread(psutil.wait_procs, [grandchild], PATIENCE_S)
        assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


async def test_it_has_a_session_of_its_own_and_nothing_of_ours() -> None:
    code = """
import os, sys
has_it = True
try:
    os.fstat(int(sys.argv[1]))
except OSError:
    has_it = False
print(os.getsid(0) == os.getpid(), has_it, dict(os.environ))
"""
    kept, other = os.pipe()  # what a library might have left open for others
    os.set_inheritable(other, True)
    try:
        command = (sys.executable, "-Ic", code, str(other))
        child = await start_child(command, {"LC_CTYPE": "C.UTF-8"}, limit=1 << 16)
        said = await child.reader.readline()
        await child.end()
    finally:
        os.close(kept)
        os.close(other)
    has_it = not hasattr(child_process._libc(), "posix_spawn_file_actions_addclosefrom_np")
    assert said.decode() == f"True {has_it} {{'LC_CTYPE': 'C.UTF-8'}}\n"


async def test_a_signal_that_python_ignores_is_not_ignored_there() -> None:
    """A program that isn't Python would go on writing into a pipe that nobody reads."""
    child = await start_child(("/bin/sh", "-c", "kill -PIPE $$; echo alive"), {}, limit=1 << 16)
    assert await child.wait() == -signal.SIGPIPE
    await child.end()


class SlowSpawn:
    """Starts processes once it is let, as a machine without a free core does."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.has_begun = threading.Event()
        self.child: psutil.Process | None = None
        self.has_spawned = threading.Event()

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], descriptor: int
    ) -> int:
        self.has_begun.set()
        assert self.may_go_on.wait(PATIENCE_S)
        pid = child_process._posix_spawn(command, environment, descriptor)
        self.child = psutil.Process(pid)
        self.has_spawned.set()
        return pid


FOR_EVER = (sys.executable, "-c", "import time; time.sleep(10_000)")


async def test_the_loop_goes_on_while_a_process_starts() -> None:
    spawn = SlowSpawn()
    starting = asyncio.create_task(start_child(FOR_EVER, {}, limit=1, spawn=spawn))
    # Only a loop that goes on lets it.
    while not spawn.has_begun.is_set():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0)
    spawn.may_go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        child = await starting
    assert await child.end() == -signal.SIGKILL


async def test_who_is_cancelled_meanwhile_leaves_no_process() -> None:
    spawn = SlowSpawn()
    starting = asyncio.create_task(start_child(FOR_EVER, {}, limit=1, spawn=spawn))
    await asyncio.to_thread(spawn.has_begun.wait, PATIENCE_S)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    spawn.may_go_on.set()
    await asyncio.to_thread(spawn.has_spawned.wait, PATIENCE_S)
    assert spawn.child is not None
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [spawn.child], PATIENCE_S)
    assert gone


def test_a_loop_that_ends_meanwhile_leaves_no_process() -> None:
    spawn = SlowSpawn()

    async def leave() -> None:
        asyncio.get_running_loop().create_task(start_child(FOR_EVER, {}, limit=1, spawn=spawn))
        await asyncio.to_thread(spawn.has_begun.wait, PATIENCE_S)

    asyncio.run(leave())
    spawn.may_go_on.set()
    assert spawn.has_spawned.wait(PATIENCE_S)
    assert spawn.child is not None
    gone, _ = psutil.wait_procs([spawn.child], PATIENCE_S)
    assert gone


def test_other_threads_run_while_c_starts_it() -> None:
    """`CDLL` releases Python's lock for each call; `PyDLL`, and Python's own spawn, keep it."""
    assert type(child_process._libc()) is ctypes.CDLL


def test_no_process_of_ours_forks_in_its_event_loop() -> None:
    wanted = ("create_subprocess_exec", "create_subprocess_shell", "subprocess_exec(")
    found = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in wanted)
    ]
    assert found == []


async def test_many_at_a_time_are_all_waited_for() -> None:
    children = await asyncio.gather(*(start(f"raise SystemExit({n})") for n in range(8)))
    async with asyncio.timeout(PATIENCE_S):
        assert [await child.wait() for child in children] == list(range(8))
        for child in children:
            await child.end()
