"""`penstock auth …` runs what it says on the database of the data directory."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from auth_worker.storage.sqlite_store import SqliteStore
from penstock.cli import app
from tests.fakes.auth_parts import FakeClock


def run(*arguments: str) -> int:
    return CliRunner().invoke(app, ["auth", *arguments]).exit_code


def test_a_database_is_backed_up_checked_and_restored_from_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("PENSTOCK_DATABASE_URL", "PENSTOCK_DATABASE_URL_FILE"):
        monkeypatch.delenv(name, raising=False)
    old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    SqliteStore(old, clock=FakeClock()).close()
    assert run("backup", str(file), "--data-dir", str(old)) == 0
    assert run("restore", str(file), "--data-dir", str(new)) == 0
    assert run("check", "--data-dir", str(new)) == 0
    assert run("downgrade", "2", "--data-dir", str(new)) == 0
    said = capfd.readouterr()
    assert "has schema version 2 now" in said.out
    assert said.err == ""
    assert run("restore", str(file), "--data-dir", str(old)) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_data_folder_in_the_home_is_found_where_no_shell_replaces_the_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    """As in the environment of a service manager, or after `--data-dir=`."""
    for name in ("PENSTOCK_DATABASE_URL", "PENSTOCK_DATABASE_URL_FILE"):
        monkeypatch.delenv(name, raising=False)
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    SqliteStore(tmp_path / "old", clock=FakeClock()).close()
    file = str(tmp_path / "backup")
    assert run("backup", file, "--data-dir", str(tmp_path / "old")) == 0
    if by_variable:
        monkeypatch.setenv("PENSTOCK_DATA_DIR", "~/data")
        assert run("restore", file) == 0
    else:
        assert run("restore", file, "--data-dir=~/data") == 0
    assert (home / "data" / "auth.sqlite3").is_file()
    assert list(here.iterdir()) == []
