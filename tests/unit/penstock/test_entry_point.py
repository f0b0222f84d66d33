"""The entry point: one clear line and an exit code, never a traceback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.__main__ import main, refusal


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    return int(exit_info.value.code or 0), capsys.readouterr().err


def test_windows_is_refused_pointing_at_wsl() -> None:
    assert "WSL" in (refusal("Windows") or "")
    assert refusal("Linux") is None
    assert refusal("Darwin") is None


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(capsys, "serve", "--prot", "1")
    assert code == 2
    assert "--prot" in err


def test_a_wrong_setting_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(capsys, "serve", "--engines", "0")
    assert (code, err) == (2, "penstock: --engines: 0 is below 1.\n")


def test_a_missing_folder_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = ("--data-dir", str(tmp_path / "d"), "--cache-dir", str(tmp_path / "c"), "--port", "0")
    code, err = run(capsys, "serve", str(tmp_path / "nowhere"), *data)
    assert code == 1
    assert err.count("\n") == 1
    assert "is neither a folder nor a GGUF file" in err


def test_a_port_in_use_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, err = run(capsys, "serve", "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert err.count("\n") == 1
    assert "can't be bound: Address already in use" in err


def test_output_that_has_no_room_is_one_line_and_exit_code_1() -> None:
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "penstock", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "penstock: No space left on device\n")


def test_a_character_that_the_terminal_does_not_have_is_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "ü€"
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "keygen", str(folder)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
        encoding="latin-1",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "ü\\u20ac; give each machine" in done.stdout


def test_a_name_that_no_file_can_have_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, err = run(capsys, "serve", "x" * 5000)
    assert code == 1
    assert err.count("\n") == 1
    assert "File name too long" in err


@pytest.mark.parametrize("arguments", [("keys", "show", "a\udcff"), ("usage", "--key", "a\udcff")])
def test_bytes_that_are_no_text_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """As a shell passes them on, where they were copied from a file of another encoding."""
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "psk-x")
    code, err = run(capsys, *arguments)
    assert (code, err) == (2, "penstock: 'a\\udcff' is no text in UTF-8.\n")
