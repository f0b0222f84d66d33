"""Ends a process when the supervisor that started it is gone, even one killed with -9."""

import ctypes
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping

from protocol.errors import ConfigurationError

PARENT_PID_SETTING = "PENSTOCK_PARENT_PID"
RUN_DIR_SETTING = "PENSTOCK_RUN_DIR"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_INTERVAL_S = 1.0
_logger = logging.getLogger("penstock.lifetime")


def exit_with_parent(environ: Mapping[str, str]) -> bool:
    """Send this process SIGTERM, so that it drains, once the parent named in a setting is gone.

    On Linux the kernel does it (`prctl(PR_SET_PDEATHSIG)`); elsewhere a thread looks every second.
    The kernel watches the *thread* that started this process: a supervisor starts its children
    from a thread that lives as long as it does.

    Args:
        environ: Holds PENSTOCK_PARENT_PID when a supervisor started this process.

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
        # The parent may have died before prctl took hold.
        if os.getppid() != parent_pid:
            _parent_is_gone(parent_pid)
    else:
        threading.Thread(
            target=_watch, args=(parent_pid,), name="parent-watch", daemon=True
        ).start()
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


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_INTERVAL_S)
    _parent_is_gone(parent_pid)


def _parent_is_gone(parent_pid: int) -> None:
    _logger.warning("the parent process %d is gone", parent_pid)
    os.kill(os.getpid(), signal.SIGTERM)
