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
