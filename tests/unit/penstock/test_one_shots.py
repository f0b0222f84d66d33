"""What containers run once before a deployment starts: keys, the first admin key, weights."""

import os
import secrets
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auth_worker.principals.given_keys import weakness_of
from penstock.admin_key import make_admin_key
from penstock.cli import app
from penstock.errors import CommandError, ModelError
from penstock.fetch import fetch

MODEL = "organisation/model"


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_made_admin_key_is_private_strong_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "admin" / "admin.key"
    assert make_admin_key(path)
    key = path.read_text().strip()
    assert weakness_of(key) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not make_admin_key(path)
    assert path.read_text().strip() == key


def test_an_empty_admin_key_file_is_not_taken_for_a_key(tmp_path: Path) -> None:
    (tmp_path / "admin.key").touch()
    with pytest.raises(CommandError, match="is empty"):
        make_admin_key(tmp_path / "admin.key")


def test_an_admin_key_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="Cannot write the admin key"):
        make_admin_key(tmp_path / "file" / "admin.key")


def test_an_admin_key_that_is_cut_off_leaves_neither_half_a_key_nor_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("penstock.admin_key.os.fsync", fail)
        with pytest.raises(CommandError, match="No space left"):
            make_admin_key(tmp_path / "admin.key")
    assert list(tmp_path.iterdir()) == []
    assert make_admin_key(tmp_path / "admin.key")


def test_two_that_make_an_admin_key_at_once_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "admin.key"
    make = secrets.token_urlsafe
    made: list[bool] = []

    def make_beside_another(num_bytes: int) -> str:
        monkeypatch.setattr("penstock.admin_key.secrets.token_urlsafe", make)
        made.append(make_admin_key(path))
        return "late"

    monkeypatch.setattr("penstock.admin_key.secrets.token_urlsafe", make_beside_another)
    assert not make_admin_key(path)
    assert made == [True]
    assert weakness_of(path.read_text().strip()) is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "folder", "nowhere"])
def test_an_admin_key_goes_into_a_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "is-not")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match="is a folder|File exists"):
        make_admin_key(Path(name))


def test_keygen_makes_everything_once_and_says_so(tmp_path: Path) -> None:
    keys, admin = tmp_path / "keys", tmp_path / "admin.key"
    command = ["keygen", str(keys), "--by-role", "--admin-key", str(admin)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert (keys / "engine" / "engine.secret").exists()
    assert admin.read_text().strip() not in first.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "Nothing is missing" in again.output
    assert "already" in again.output


@pytest.mark.parametrize("model", [None, "", "penstock-demo"])
def test_the_demo_needs_no_fetching(tmp_path: Path, model: str | None) -> None:
    assert "no download" in fetch(model, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_folder_that_is_there_needs_no_fetching(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    assert "nothing to download" in fetch("mine", tmp_path)
    assert "nothing to download" in fetch(str(folder), tmp_path / "elsewhere")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A hub cache beside the links, and the downloads that were asked for."""
    monkeypatch.setenv("HF_HOME", "set, so that it is restored")
    monkeypatch.delenv("HF_HOME")
    models, asked = tmp_path / "models", list[str]()
    snapshot = models / ".hub" / "snapshots" / "abc"

    def resolve(choice: object, settings: object) -> Path:
        asked.append(os.environ["HF_HOME"])
        if not snapshot.exists():
            make_folder(snapshot)
        return snapshot

    monkeypatch.setattr("penstock.fetch.resolve_model", resolve)
    return models, asked


def test_a_fetched_model_is_found_by_its_id_wherever_the_volume_lies(
    hub: tuple[Path, list[str]], tmp_path: Path
) -> None:
    models, asked = hub
    assert MODEL in fetch(MODEL, models)
    assert asked == [str(models / ".hub")]
    moved = models.rename(tmp_path / "elsewhere")
    assert (moved / MODEL / "config.json").is_file()


def test_a_second_fetch_changes_nothing(hub: tuple[Path, list[str]]) -> None:
    models, _ = hub
    fetch(MODEL, models)
    before = (models / MODEL).lstat().st_ino
    fetch(MODEL, models)
    assert (models / MODEL).lstat().st_ino == before


def test_only_one_downloads_at_a_time(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = hub
    inside, together, release = threading.Semaphore(0), list[int](), threading.Event()
    snapshot = models / ".hub" / "snapshots" / "abc"

    def resolve(choice: object, settings: object) -> Path:
        together.append(1)
        inside.release()
        release.wait(60)
        together.append(-1)
        snapshot.mkdir(parents=True, exist_ok=True)
        return snapshot

    monkeypatch.setattr("penstock.fetch.resolve_model", resolve)
    threads = [threading.Thread(target=fetch, args=(MODEL, models)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=60)
    assert not inside.acquire(timeout=0.2)
    release.set()
    for thread in threads:
        thread.join(60)
    assert together == [1, -1] * 3


def test_a_model_that_cannot_be_fetched_leaves_no_link(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = hub

    def refuse(choice: object, settings: object) -> Path:
        raise ModelError("no such model")

    monkeypatch.setattr("penstock.fetch.resolve_model", refuse)
    with pytest.raises(ModelError):
        fetch(MODEL, models)
    assert not (models / MODEL).is_symlink()
