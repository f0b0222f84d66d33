"""Python processes that begin with their imports done, which takes a second of each otherwise.

`python -m tests.fakes.fork_server SOCKET MODULE…` imports modules and then forks a process for each
connection: it runs a module as `python -m` does, in the environment, the folder and with the
standard streams that were sent along. `Forked` is one of them, used as a `subprocess.Popen`;
`fork_client.py` is a command of a shell that is one of them.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests.fakes.fork_client import CODE, ask

ROOT = Path(__file__).parents[2]
AUTH_WORKER = (
    "auth_worker",
    "auth_worker.service",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
)
COMMANDS = ("penstock.cli", "penstock.api_client", "penstock.tables", "httpx", "rich.table")
_MAX_REQUEST_BYTES = 1 << 20


class Forked:
    """A process of a server of forks.

    Args:
        module: What it runs, as `python -m` does.
        preloaded: Modules that are imported already.
        environ: All of its environment.
        stderr: Its standard error, as `subprocess.Popen` takes it; it shares the standard output of
            this process.
        max_file_bytes: See `ask`.
    """

    def __init__(
        self,
        module: str,
        *,
        preloaded: tuple[str, ...],
        environ: Mapping[str, str],
        stderr: IO[Any] | int,
        max_file_bytes: int = -1,
    ) -> None:
        self.returncode: int | None = None
        self.stderr: IO[str] | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(fork_server(preloaded))
        with contextlib.ExitStack() as opened:
            if stderr == subprocess.PIPE:
                reading, writing = os.pipe()
                self.stderr = os.fdopen(reading)
                stderr = opened.enter_context(os.fdopen(writing, "wb"))
            nothing = opened.enter_context(Path(os.devnull).open("rb"))
            last = stderr if isinstance(stderr, int) else stderr.fileno()
            fds = (nothing.fileno(), 1, last)
            self.pid = ask(
                self._connection, [module], dict(environ), str(ROOT), fds, max_file_bytes
            )

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it still says, of which standard output is nothing, once it has ended."""
        assert self.stderr is not None
        with self.stderr:
            said = self.stderr.read()
        self.wait(timeout)
        return "", said

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._code(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        code = self._code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _code(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                told = self._connection.recv(CODE.size, socket.MSG_WAITALL)
            except (TimeoutError, BlockingIOError):
                return None
            (self.returncode,) = CODE.unpack(told)
            self._connection.close()
        return self.returncode


@cache
def fork_server(preloaded: tuple[str, ...]) -> str:
    """The path of the socket of this process's server with these modules; it ends with it."""
    path = str(Path(tempfile.mkdtemp(prefix="pst-fork-")) / "s")
    command = [sys.executable, "-m", "tests.fakes.fork_server", path, *preloaded]
    server = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"

    def end() -> None:
        server.communicate()
        Path(path).unlink(missing_ok=True)
        Path(path).parent.rmdir()

    atexit.register(end)
    return path


def serve(path: str) -> list[str] | None:
    """Fork until standard input ends.

    Returns:
        In a forked process, the module that it is to run with its arguments.
    """
    children: dict[int, socket.socket] = {}
    ended, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with (
        socket.socket(socket.AF_UNIX) as listener,
        selectors.DefaultSelector() as selector,
    ):
        listener.bind(path)
        listener.listen(64)
        for source in (listener, ended, sys.stdin):
            selector.register(source, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is ended:
                    ended.recv(4096)
                    _tell_codes(children)
                    continue
                connection, _ = listener.accept()
                request, fds = _received(connection)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for one in (connection, ended, wakeup, *children.values()):
                        one.close()
                    return _become(request, fds)
                for fd in fds:
                    os.close(fd)
                connection.sendall(CODE.pack(pid))
                children[pid] = connection


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    found = b""
    fds: list[int] = []
    size = 0
    while not size or len(found) < 4 + size:
        data, ancillary, _, _ = connection.recvmsg(_MAX_REQUEST_BYTES, socket.CMSG_SPACE(12))
        found += data
        for _, _, told in ancillary:
            fds += array.array("i", told)
        if len(found) >= 4:
            (size,) = struct.unpack_from("!I", found)
    request: dict[str, Any] = json.loads(found[4:])
    return request, fds


def _tell_codes(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as connection:
            try:
                connection.sendall(CODE.pack(os.waitstatus_to_exitcode(status)))
            except OSError:
                continue  # nobody waits for it any more


def _become(request: dict[str, Any], fds: Sequence[int]) -> list[str]:
    """Take over what was sent; the module and its arguments."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    if request["max_file_bytes"] >= 0:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_file_bytes"], hard))
        # Python would leave half of a module's bytecode behind, which breaks every later process.
        sys.dont_write_bytecode = True
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    arguments: list[str] = request["arguments"]
    return arguments


def main() -> None:
    """See the module."""
    _, path, *preloaded = sys.argv
    for name in preloaded:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    arguments = serve(path)
    if arguments is not None:
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
