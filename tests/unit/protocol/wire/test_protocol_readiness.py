"""The file that is there while a worker gets work, and the command that looks at it."""

import os
from pathlib import Path

import pytest

from protocol.__main__ import EXIT_NO_ANSWER, EXIT_OK, EXIT_USAGE, main
from protocol.errors import ConfigurationError
from protocol.wire.readiness import MAX_AGE_S, READY_FILE_SETTING, ReadyFile, why_not_ready

NOW_S = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ready"


def reason_at(path: Path, wall_s: float, *, is_alive: bool = True) -> str | None:
    return why_not_ready(path, wall_s=lambda: wall_s, is_alive=lambda _pid: is_alive)


def test_a_file_of_an_earlier_life_is_removed_at_the_start(path: Path) -> None:
    path.write_text("1\n")
    ReadyFile(path)
    assert not path.exists()


def test_a_file_that_cannot_be_removed_stops_the_start_and_names_the_setting(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ConfigurationError, match=READY_FILE_SETTING):
        ReadyFile(path)


def test_the_file_is_there_while_the_worker_is_ready_and_names_its_process(path: Path) -> None:
    file = ReadyFile(path)
    file.touch()
    assert not path.exists()
    file.set_ready(True)
    assert path.read_text() == f"{os.getpid()}\n"
    file.set_ready(False)
    assert list(path.parent.iterdir()) == []


def test_a_touch_makes_the_file_young_again(path: Path) -> None:
    file = ReadyFile(path)
    file.set_ready(True)
    os.utime(path, (NOW_S, NOW_S))
    file.touch()
    assert path.stat().st_mtime > NOW_S


def test_a_file_that_somebody_removed_comes_back_with_the_next_heartbeat(path: Path) -> None:
    file = ReadyFile(path)
    file.set_ready(True)
    path.unlink()
    file.touch()
    assert path.exists()


def test_a_folder_that_cannot_be_written_is_told_once_and_tried_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = path / "file"
    file = ReadyFile(path)
    for _ in range(3):
        file.set_ready(True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    path.parent.mkdir()
    file.set_ready(True)
    assert path.exists()


def test_a_young_file_of_a_live_process_is_ready(path: Path) -> None:
    ReadyFile(path).set_ready(True)
    os.utime(path, (NOW_S, NOW_S))
    assert reason_at(path, NOW_S + MAX_AGE_S) is None


@pytest.mark.parametrize("age_s", [MAX_AGE_S + 1, -MAX_AGE_S - 1])
def test_a_file_that_was_not_touched_for_long_is_not_ready(path: Path, age_s: float) -> None:
    ReadyFile(path).set_ready(True)
    os.utime(path, (NOW_S, NOW_S))
    assert "not touched" in str(reason_at(path, NOW_S + age_s))


def test_a_file_of_a_process_that_is_gone_is_not_ready(path: Path) -> None:
    ReadyFile(path).set_ready(True)
    os.utime(path, (NOW_S, NOW_S))
    assert "is gone" in str(reason_at(path, NOW_S, is_alive=False))


@pytest.mark.parametrize("content", ["", "0", "-1", "1 2", "x", "\u0663", "9" * 30])
def test_a_file_that_names_no_process_is_not_ready(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
    assert why_not_ready(path) is not None


def test_no_file_is_not_ready(path: Path) -> None:
    assert "no gateway gives" in str(reason_at(path, NOW_S))


def test_the_command_says_by_its_exit_code_whether_a_worker_is_ready(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ready"], {}) == EXIT_USAGE
    assert main(["ready", str(path)], {}) == EXIT_NO_ANSWER
    assert main(["ready"], {READY_FILE_SETTING: str(path)}) == EXIT_NO_ANSWER
    assert "no gateway gives this worker work" in capsys.readouterr().err
    ReadyFile(path).set_ready(True)
    assert main(["ready", str(path)], {}) == EXIT_OK
    assert main(["ready"], {READY_FILE_SETTING: str(path)}) == EXIT_OK
