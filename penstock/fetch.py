"""`penstock fetch`: a model of the hub into a folder that engines share, downloaded once."""

import fcntl
import hashlib
import os
from pathlib import Path

from penstock.config import DEMO_MODEL, ModelChoice, ServeSettings
from penstock.errors import CommandError
from penstock.model_source import resolve_model
from protocol.runtime.gguf_header import shard_names

_LOCK_NAME = ".fetch.lock"


def fetch(model: str | None, folder: Path, revision: str | None = None) -> str:
    """Make `folder/<model>` a checkpoint, so that an engine in that folder finds it by its id.

    Several may run at once: one downloads, the others wait and find it done.

    Args:
        model: A Hugging Face id, of a GGUF model `org/repo:Q4_K_M`; None and the demo's name need
            nothing, nor does a local folder.
        folder: Holds the models; made if missing.
        revision: Branch, tag or commit; the hub's default when None.

    Returns:
        One line for people.

    Raises:
        ModelError: The model can't be found, fetched or read.
        CommandError: The folder can't be written, or something else lies there.
    """
    if model in (None, "", DEMO_MODEL):
        return "The bundled model needs no download."
    assert model is not None  # noqa: S101
    place = folder / model  # an absolute path stays itself
    if place.is_dir() and not place.is_symlink():
        return f"{place} is a folder; nothing to download."
    # Beside the links, so that they hold wherever the volume is mounted.
    os.environ.setdefault("HF_HOME", str(folder.absolute() / ".hub"))
    choice = ModelChoice(name=model, source=model)
    settings = ServeSettings(models=(choice,), revision=revision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            snapshot = resolve_model(choice, settings)
            assert snapshot is not None  # noqa: S101 - only the demo has no folder
            _link(place, snapshot if snapshot.is_dir() else _folder_of(snapshot, folder))
    except OSError as error:
        raise CommandError(f"Cannot write to {folder}: {error.strerror}.") from error
    return f"{model} is in {place}."


def _folder_of(file: Path, models: Path) -> Path:
    """A folder with nothing but the files of one GGUF model, beside which others may lie."""
    snapshot = file.parent
    names = shard_names(file.name)
    digest = hashlib.sha256("\0".join((str(snapshot), *names)).encode()).hexdigest()
    folder = models / ".hub" / "gguf" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        _link(folder / name, snapshot / name)
    return folder


def _link(place: Path, snapshot: Path) -> None:
    """Point `place` at a snapshot, relative to it, so that the volume may be mounted anywhere."""
    place.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(snapshot, place.parent)
    if place.is_symlink() and os.readlink(place) == target:  # noqa: PTH115 - text, not a Path
        return
    fresh = place.with_name(f"{place.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(place)
