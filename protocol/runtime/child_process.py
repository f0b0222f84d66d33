"""Starts processes beside an event loop, which goes on meanwhile.

uvloop forks in the loop's thread: it copies the tables of all pages, waits until the child has been
scheduled and has become the other program, and pays for each page that is written afterwards: 5 ms
in a process of 60 MB, 40 ms on a busy machine. `subprocess` and `os.posix_spawn` copy nothing, but
keep Python's lock until the child has become the other program. Here C's `posix_spawn` is called by
`ctypes`, which releases that lock, in a thread that then waits for the child's end.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Protocol

_SETSIGDEF: Final = 0x04
_SETSID: Final = 0x400 if sys.platform == "darwin" else 0x80
_ROOM_BYTES: Final = 1024
"""Of C's structures, whose sizes aren't told; the largest has 336 bytes."""
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
_UNKNOWN: Final = 255
"""The exit code of a child that somebody else has waited for."""

Spawn = Callable[[Sequence[str], Mapping[str, str], int], int]
"""Starts a program of an argument list, an environment, and the descriptor that is its standard
input and output; returns its process id, or raises OSError."""


class ChildProcess:
    """A process that was started: a group and a session of its own, which end with it.

    Args:
        pid: Its id, and that of its group.
        reader: Of its standard output.
        writer: To its standard input.
        ended: Becomes its exit code, or minus the signal that ended it.
        kill: Kills it and its children, if it lives.
    """

    def __init__(
        self,
        pid: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ended: "asyncio.Future[int]",
        kill: Callable[[], None],
    ) -> None:
        self.pid = pid
        self.reader = reader
        self.writer = writer
        self._ended = ended
        self._kill = kill

    @property
    def returncode(self) -> int | None:
        """None while it lives, as far as is known."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait for its end; its exit code."""
        return await asyncio.shield(self._ended)

    def release(self) -> None:
        """Let it end by the end of its input; nobody reads it any more."""
        if self.writer.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):  # it has ended
                self.writer.write_eof()
        self._ended.add_done_callback(lambda _: self.writer.transport.abort())

    async def end(self) -> int:
        """Kill it and its children, and wait for its end; idempotent."""
        self._kill()
        self.writer.transport.abort()
        return await self.wait()


class StartChild(Protocol):
    """What starts a process."""

    async def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], *, limit: int
    ) -> ChildProcess:
        """Start it.

        Args:
            command: The program's path and its arguments.
            environment: All of its own.
            limit: Of bytes that are read ahead, and of a line.

        Raises:
            OSError: The system has no such program, or no room.
        """
        ...


async def start_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    limit: int,
    spawn: Spawn | None = None,
) -> ChildProcess:
    """As `StartChild` says; cancelled, it ends what was started or is about to be.

    The child has a socket for its standard input and output, and this process's standard error.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    start = _Start(loop, command, environment, theirs, spawn or _posix_spawn)
    try:
        start.begin()
        pid = await start.started
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=limit)
    except BaseException:
        start.abandon()
        ours.close()
        raise
    return ChildProcess(pid, reader, writer, start.ended, start.abandon)


class _Start:
    """A thread that starts a process and waits for its end.

    Args:
        loop: Is told both.
        command: As `StartChild` has it, like `environment`.
        theirs: The child's end of its socket; closed here.
        spawn: Starts the process.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        command: Sequence[str],
        environment: Mapping[str, str],
        theirs: socket.socket,
        spawn: Spawn,
    ) -> None:
        self.started: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._command = command
        self._environment = environment
        self._theirs = theirs
        self._spawn = spawn
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._is_abandoned = False

    def begin(self) -> None:
        """Start the thread.

        Raises:
            OSError: The system has no room for one.
        """
        try:
            threading.Thread(target=self._run, name="child", daemon=True).start()
        except RuntimeError as error:
            self._theirs.close()
            raise BlockingIOError(str(error)) from error

    def abandon(self) -> None:
        """Nobody wants the process any more, whether it is there or will be in a moment."""
        with self._lock:
            self._is_abandoned = True
            if self._pid is not None:
                _kill_group(self._pid)

    def _run(self) -> None:
        try:
            with self._theirs:
                pid = self._spawn(self._command, self._environment, self._theirs.fileno())
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
            self._tell(self.started.set_exception, self.started, error)
            return
        with self._lock:
            self._pid = pid
            is_abandoned = self._is_abandoned
        if is_abandoned:
            _kill_group(pid)
        self._tell(self.started.set_result, self.started, pid)
        try:
            # Until it is waited for, no other process can get its number, nor one of its group.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                self._pid = None
            _kill_group(pid)  # what it leaves behind
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            code = _UNKNOWN
        self._tell(self.ended.set_result, self.ended, code)

    def _tell(self, tell: Callable[[Any], None], future: "asyncio.Future[int]", news: Any) -> None:
        def on_loop() -> None:
            if not future.done():  # else it was cancelled
                tell(news)

        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(on_loop)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _posix_spawn(command: Sequence[str], environment: Mapping[str, str], descriptor: int) -> int:
    c = _libc()
    actions, attributes, defaults = (ctypes.create_string_buffer(_ROOM_BYTES) for _ in range(3))
    pid = ctypes.c_int()
    arguments = _strings(command)
    variables = _strings([f"{name}={value}" for name, value in environment.items()])
    _check(c.posix_spawn_file_actions_init(actions))
    _check(c.posix_spawnattr_init(attributes))
    try:
        for number in (0, 1):
            _check(c.posix_spawn_file_actions_adddup2(actions, descriptor, number))
        if hasattr(c, "posix_spawn_file_actions_addclosefrom_np"):  # glibc since 2.34
            # Python's own descriptors aren't inherited anyway; those of libraries might be.
            _check(c.posix_spawn_file_actions_addclosefrom_np(actions, 3))
        c.sigemptyset(defaults)
        for number in _IGNORED_BY_PYTHON:
            c.sigaddset(defaults, int(number))
        _check(c.posix_spawnattr_setsigdefault(attributes, defaults))
        _check(c.posix_spawnattr_setflags(attributes, ctypes.c_short(_SETSIGDEF | _SETSID)))
        path = os.fsencode(command[0])
        _check(c.posix_spawn(ctypes.byref(pid), path, actions, attributes, arguments, variables))
    finally:
        c.posix_spawn_file_actions_destroy(actions)
        c.posix_spawnattr_destroy(attributes)
    return pid.value


def _strings(texts: Sequence[str]) -> Any:
    return (ctypes.c_char_p * (len(texts) + 1))(*map(os.fsencode, texts), None)


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
