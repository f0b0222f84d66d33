"""`penstock fetch org/model:Q4_0` against a hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine_worker.demo import demo_model_path
from tests.fakes import fork_client
from tests.fakes.fork_server import COMMANDS, fork_server
from tests.fakes.model_hub import ModelHub, model_hub
from tests.unit.penstock.test_gguf_source import written

pytestmark = pytest.mark.process


def content(tmp_path: Path, name: str) -> bytes:
    return written(tmp_path / name).read_bytes()


def repository(tmp_path: Path) -> dict[str, bytes]:
    files = {name: content(tmp_path, name) for name in ("m-Q4_0.gguf", "m-Q8_0.gguf")}
    written(tmp_path / "m-F16.gguf", split=1)
    parts = {path.name: path.read_bytes() for path in tmp_path.glob("m-F16-*.gguf")}
    return {"README.md": b"", "mmproj-m.gguf": b"x", **files, **parts}


def fetch(
    hub: ModelHub, tmp_path: Path, model: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | hub.environment(tmp_path / "home") | more
    forked = [sys.executable, "-IS", fork_client.__file__, fork_server(COMMANDS), "penstock"]
    return subprocess.run(
        [*forked, "fetch", str(tmp_path / "models"), "--model", model],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_only_the_file_that_is_meant_is_downloaded_and_once(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with model_hub({"org/m": repository(tmp_path / "files")}, total=352) as hub:
        done = fetch(hub, tmp_path, "hf:org/m:Q4_0")
        assert done.returncode == 0, done.stderr
        assert hub.downloaded == ["m-Q4_0.gguf"]
        folder = tmp_path / "models" / "hf:org" / "m:Q4_0"
        assert [path.name for path in folder.iterdir()] == ["m-Q4_0.gguf"]
        assert (folder / "m-Q4_0.gguf").read_bytes() == hub.repos["org/m"]["m-Q4_0.gguf"]
        # Neither the network nor the file is needed again, and the volume may lie elsewhere.
        assert fetch(hub, tmp_path, "hf:org/m:Q4_0", HF_HUB_OFFLINE="1").returncode == 0
        moved = (tmp_path / "models").rename(tmp_path / "moved")
        assert (moved / "hf:org" / "m:Q4_0" / "m-Q4_0.gguf").is_file()
        moved.rename(tmp_path / "models")
        done = fetch(hub, tmp_path, "org/m:F16")
        assert done.returncode == 0, done.stderr
        parts = [f"m-F16-0000{number}-of-00002.gguf" for number in (1, 2)]
        # Several at a time, in whatever order.
        assert sorted(hub.downloaded) == sorted(["m-Q4_0.gguf", *parts])
        folder = tmp_path / "models" / "org" / "m:F16"
        assert sorted(path.name for path in folder.iterdir()) == parts


def test_a_model_of_safetensors_is_downloaded_once_too(tmp_path: Path) -> None:
    folder = demo_model_path()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    # The same weights once more, as Mistral's and gpt-oss's repositories have them.
    others = ("consolidated.safetensors", "original/model.safetensors")
    with model_hub({"org/m": files | dict.fromkeys(others, b"x")}) as hub:
        done = fetch(hub, tmp_path, "org/m")
        assert done.returncode == 0, done.stderr
        assert "model.safetensors" in hub.downloaded
        assert not set(others) & set(hub.downloaded)
        hub.downloaded.clear()
        assert fetch(hub, tmp_path, "org/m", HF_HUB_OFFLINE="1").returncode == 0
        assert hub.downloaded == []


@pytest.mark.parametrize(
    ("model", "size", "named"),
    [
        ("org/m", None, "several GGUF models"),
        ("org/m:Q5_K_M", None, "no single GGUF file for 'Q5_K_M'"),
        ("hf:org/none:Q4_0", None, "no hub model"),
        # What may stay in its size takes at least as much as its file.
        ("org/m:Q4_0", 10**15, "needs about"),
    ],
)
def test_what_cant_be_had_is_refused_before_any_download(
    tmp_path: Path, model: str, size: int | None, named: str
) -> None:
    (tmp_path / "files").mkdir()
    with model_hub({"org/m": repository(tmp_path / "files")}, total=352, size=size) as hub:
        done = fetch(hub, tmp_path, model)
        assert done.returncode == 1
        assert named in " ".join(done.stderr.split())
        assert hub.downloaded == []
