"""The end of a process whose parent is gone: a signal, the same one again, then a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from protocol.runtime.lifetime import (
    end_at_once,
    exit_with_parent,
    remove_orphaned_run_dir,
    wait_for_end,
)


def test_a_process_is_told_twice_and_then_killed() -> None:
    done: list[tuple[str, float]] = []
    end_at_once(
        kill=lambda pid, number: done.append((f"{signal.Signals(number).name} {pid}", 0.0)),
        sleep=lambda seconds: done.append(("sleep", seconds)),
    )
    me = os.getpid()
    names = [name for name, _ in done]
    assert names == [f"SIGTERM {me}", "sleep", f"SIGTERM {me}", "sleep", f"SIGKILL {me}"]
    assert sum(seconds for _, seconds in done) < 5.0


def test_a_parent_that_is_gone_already_is_not_waited_for() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    wait_for_end(gone.pid)


def test_another_process_of_that_id_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        wait_for_end(stranger.pid)
        assert stranger.poll() is None


def test_without_the_kernels_help_the_parent_is_looked_for_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    parents = iter([7, 7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    slept: list[float] = []
    wait_for_end(7, sleep=slept.append)
    assert len(slept) == 3


def test_nothing_is_watched_without_a_supervisor_and_a_wrong_setting_is_named() -> None:
    assert not exit_with_parent({})
    with pytest.raises(ConfigurationError, match="PENSTOCK_PARENT_PID must be a process id"):
        exit_with_parent({"PENSTOCK_PARENT_PID": "x"})


def test_the_sockets_of_a_living_supervisor_stay(tmp_path: Path) -> None:
    environ = {"PENSTOCK_RUN_DIR": str(tmp_path), "PENSTOCK_PARENT_PID": str(os.getppid())}
    remove_orphaned_run_dir(environ)
    assert tmp_path.exists()
    remove_orphaned_run_dir({**environ, "PENSTOCK_PARENT_PID": "1" + str(os.getppid())})
    assert not tmp_path.exists()
