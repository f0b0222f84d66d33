"""Ends a process when the supervisor that started it is gone, even one killed with -9.

The end is a quick one. A drain would wait for parts of the server that end at the same moment: a
stream whose lease needs another slice, when auth is gone already, waits until the drain's limit.
"""

import ctypes
import logging
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

from protocol.errors import ConfigurationError

PARENT_PID_SETTING = "PENSTOCK_PARENT_PID"
RUN_DIR_SETTING = "PENSTOCK_RUN_DIR"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_INTERVAL_S = 1.0
_SIGNAL_INTERVAL_S = 0.3
"""Two signals of a kind become one while the first is pending, so the second one comes later."""

_LAST_WORDS_S = 2.0
"""For telling clients, settling what was used and saying goodbye, after the second signal."""

_logger = logging.getLogger("penstock.lifetime")


def exit_with_parent(environ: Mapping[str, str]) -> bool:
    """End this process at once when the parent named in a setting is gone.

    It gets SIGTERM twice, which ends what runs with a clear event instead of draining, and is
    killed if it is still there after that. A thread waits for the parent's end. On Linux the kernel
    sends a SIGTERM too (`prctl(PR_SET_PDEATHSIG)`), should the thread not come to run; the kernel
    watches the *thread* that started this process: a supervisor starts its children from a thread
    that lives as long as it does.

    Args:
        environ: Holds PENSTOCK_PARENT_PID when a supervisor started this process, and
            PENSTOCK_RUN_DIR, the supervisor's folder, which is removed in its place.

    Returns:
        Whether a parent is watched.

    Raises:
        ConfigurationError: The setting is no process id.
    """
    text = environ.get(PARENT_PID_SETTING, "").strip()
    if not text:
        return False
    if not text.isdecimal():
        raise ConfigurationError(f"{PARENT_PID_SETTING} must be a process id, not {text!r}.")
    parent_pid = int(text)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
            _logger.warning("prctl failed with errno %d", ctypes.get_errno())
    settings = dict(environ)

    def watch() -> None:
        wait_for_end(parent_pid)
        _logger.warning("the parent process %d is gone", parent_pid)
        remove_orphaned_run_dir(settings)
        end_at_once()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    return True


def remove_orphaned_run_dir(environ: Mapping[str, str]) -> None:
    """Remove the supervisor's folder of sockets if the supervisor is gone and can't do it itself.

    Args:
        environ: Holds PENSTOCK_RUN_DIR and PENSTOCK_PARENT_PID when a supervisor started us.
    """
    run_dir = environ.get(RUN_DIR_SETTING, "").strip()
    parent_pid = environ.get(PARENT_PID_SETTING, "").strip()
    if run_dir and parent_pid and str(os.getppid()) != parent_pid:
        shutil.rmtree(run_dir, ignore_errors=True)


def wait_for_end(parent_pid: int, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return once the process that started this one is gone; it may be already.

    Args:
        parent_pid: Its process id.
        sleep: Waits some seconds, where the system can't tell by itself.
    """
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(parent_pid)
        except OSError:  # It is gone, or the kernel (before 5.3, or a sandbox) has no such call.
            pass
        else:
            # The id may already be that of another process.
            if os.getppid() == parent_pid:
                select.select([descriptor], [], [])
            os.close(descriptor)
    while os.getppid() == parent_pid:
        sleep(_POLL_INTERVAL_S)


def end_at_once(
    *,
    kill: Callable[[int, int], None] = os.kill,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """End this process within a few seconds, whatever it is doing.

    Args:
        kill: Sends a process a signal.
        sleep: Waits some seconds.
    """
    pid = os.getpid()
    kill(pid, signal.SIGTERM)
    sleep(_SIGNAL_INTERVAL_S)
    kill(pid, signal.SIGTERM)
    sleep(_LAST_WORDS_S)
    kill(pid, signal.SIGKILL)
