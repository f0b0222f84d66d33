"""The folder beside OUTPUT: ours alone, with an id that stays, free of an earlier server."""

import fcntl
import os
import stat
from pathlib import Path

import pytest

from gateway.ledger.journal import LOCK_NAME
from penstock.errors import CommandError, UsageError
from penstock.run_folder import GATEWAY_LOCK, MAX_WAIT_S, RunFolder


class Wait:
    """Time that only passes where something waits; the lock is left at a moment of it."""

    def __init__(self, lock: int, left_after_s: float) -> None:
        self.now = 0.0
        self.lock = lock
        self.left_after_s = left_after_s

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.left_after_s:
            fcntl.flock(self.lock, fcntl.LOCK_UN)


def test_it_is_made_for_its_owner_alone_and_kept_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.make()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.path.chmod(0o755)
    folder.make()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_link_or_a_file_by_its_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o755)
    (target / "kept").touch()
    folder = RunFolder(tmp_path / "out")
    folder.path.symlink_to(target)
    with pytest.raises(UsageError, match="is a link; run-batch keeps"):
        folder.make()
    folder.remove()
    assert (target / "kept").exists()
    assert folder.path.is_symlink()
    folder.path.unlink()
    folder.path.touch()
    with pytest.raises(UsageError, match="is no folder"):
        folder.make()


def test_a_folder_of_another_user_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.path.mkdir(mode=0o777)
    monkeypatch.setattr(RunFolder, "_own_uid", lambda self: os.geteuid() + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        folder.make()
    folder.remove()
    assert folder.path.is_dir()


def test_it_is_removed_with_what_it_holds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.remove()
    folder.make()
    folder.run_id()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_its_id_stays_and_is_another_ones_of_every_folder(tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path / "out"), RunFolder(tmp_path / "other")
    for one in (folder, other):
        one.make()
    known = folder.run_id()
    assert len(known) == 32
    assert RunFolder(tmp_path / "out").run_id() == known
    assert other.run_id() != known
    (folder.path / "run-id").write_bytes(b"\xff\n")
    assert folder.run_id() not in (known, "\ufffd")


def test_a_server_that_still_ends_is_waited_for(tmp_path: Path) -> None:
    RunFolder(tmp_path / "out").make()
    said: list[str] = []
    RunFolder(tmp_path / "out").wait_until_free(said.append)  # no server has been there
    with (RunFolder(tmp_path / "out").path / LOCK_NAME).open("w") as lock:
        for left_after_s, num_said in ((1.0, 0), (10.0, 1)):
            fcntl.flock(lock, fcntl.LOCK_EX)
            wait = Wait(lock.fileno(), left_after_s)
            folder = RunFolder(tmp_path / "out", clock=wait.clock, sleep=wait.sleep)
            folder.wait_until_free(said.append)
            assert left_after_s <= wait.now < left_after_s + 1
            assert len(said) == num_said
        fcntl.flock(lock, fcntl.LOCK_EX)
        wait = Wait(lock.fileno(), 2 * MAX_WAIT_S)
        folder = RunFolder(tmp_path / "out", clock=wait.clock, sleep=wait.sleep)
        with pytest.raises(CommandError, match="server of an earlier run still uses"):
            folder.wait_until_free(said.append)


def test_the_lock_is_the_gateways() -> None:
    assert GATEWAY_LOCK == LOCK_NAME
