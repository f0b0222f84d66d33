"""Starts a module of ours as a process that answers over a pipe, and can be ended at any moment."""

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from protocol.runtime import give_way
from protocol.runtime.child_environment import child_environment

_OWN_SIGNALS: Final = frozenset(
    {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGXCPU}
)
_PACKAGES: Final = str(Path(__file__).parents[2])


def start_helper(module: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Run a module of ours; it ends at the end of its connection, so with its parent.

    It gives way to others: see `give_way`.

    Args:
        module: Its only argument is the file descriptor of its end of the connection.

    Returns:
        The process, which its owner kills and waits for, and our end.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        path = [_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-P", "-m", give_way.MODULE, module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**child_environment(os.environ), "PYTHONPATH": os.pathsep.join(path)},
        )
        return process, Connection(ours.detach())


def died_of_its_work(returncode: int | None) -> bool:
    """Whether a helper ended by what it did: an error, or a signal that a process brings on itself.

    Others, such as SIGKILL of the kernel when memory is short, come from outside.
    """
    return returncode is not None and (returncode >= 0 or -returncode in _OWN_SIGNALS)
