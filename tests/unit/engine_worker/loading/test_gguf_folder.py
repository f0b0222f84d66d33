"""The model folder that is made of a GGUF file."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.fingerprint import fingerprint
from engine_worker.compute.weights.sampling_defaults import load_sampling_defaults
from engine_worker.config import ModelSettings
from engine_worker.demo import demo_model_path
from engine_worker.errors import TokenizerLoadError, UnsupportedFormatError
from engine_worker.loading.gguf_folder import with_model_folder
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ConfigurationError
from tests.fakes.gguf_files import write_gguf
from tests.fakes.tiny_checkpoint import write_checkpoint

DEMO = demo_model_path()


def served(path: Path, cache: Path | None, tokenizer: Path | None = None) -> Path:
    settings = ModelSettings(path=path, name="m", weights_cache_dir=cache, tokenizer_path=tokenizer)
    return with_model_folder(settings).path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"

    def more(writer: object) -> None:
        writer.add_sampling_temp(0.6)  # type: ignore[attr-defined]
        writer.add_sampling_top_k(20)  # type: ignore[attr-defined]

    write_gguf(path, DEMO, more=more)
    return path


def test_a_file_becomes_a_folder_that_says_the_same_as_its_original(
    demo: Path, tmp_path: Path
) -> None:
    folder = served(demo, tmp_path)
    ours, theirs = Tokenizer.load(folder), Tokenizer.load(DEMO)
    for text in (
        "Hello, world! 123",
        "<|im_start|>user\nhé<|im_end|>",
        "<tool_call>{}</tool_call>",
    ):
        expected = theirs.encode(text, add_special_tokens=True)
        assert ours.encode(text, add_special_tokens=True) == expected
    assert ours.eos_token_ids == theirs.eos_token_ids
    for has_tools in (True, False):
        expected_template = theirs.chat_template_source(has_tools=has_tools)
        assert ours.chat_template_source(has_tools=has_tools) == expected_template
    assert set(open_checkpoint(folder).tensors) == set(open_checkpoint(DEMO).tensors)
    defaults = load_sampling_defaults(folder)
    assert (defaults.temperature, defaults.top_k) == (0.6, 20)
    # Kept as the model's date.
    assert (folder / "config.json").stat().st_mtime == demo.stat().st_mtime


def test_it_is_made_once_and_anew_when_the_file_changes(demo: Path, tmp_path: Path) -> None:
    folder = served(demo, tmp_path)
    inode = (folder / "config.json").stat().st_ino
    assert served(demo, tmp_path) == folder
    assert (folder / "config.json").stat().st_ino == inode
    copy = tmp_path / "demo.gguf"
    copy.write_bytes(demo.read_bytes())
    second = served(copy, tmp_path)
    assert second != folder
    assert fingerprint(second, {}) == fingerprint(folder, {})
    os.utime(copy, ns=(1, 1))
    assert served(copy, tmp_path) not in (folder, second)


def test_an_unfinished_folder_is_never_taken(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "symlink_to", fail)
    with pytest.raises(KeyboardInterrupt):
        served(demo, tmp_path)
    monkeypatch.undo()
    assert list((tmp_path / "gguf").iterdir()) == []
    assert open_checkpoint(served(demo, tmp_path)).tensors


def test_without_a_cache_the_folder_is_a_temporary_one(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_checkpoint(served(demo, None)).tensors
    no_folder = tmp_path / "file"
    no_folder.touch()
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(served(demo, no_folder)).tensors
    assert "can't be kept" in caplog.text


def test_a_folder_with_one_file_is_served_by_it(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.gguf").symlink_to(demo)
    # As some publishers have it: a config for people, no tokenizer.
    (tmp_path / "config.json").write_text("{}")
    folder = served(tmp_path, tmp_path / "cache")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    (tmp_path / "other.gguf").symlink_to(demo)
    with pytest.raises(UnsupportedFormatError, match=r"demo\.gguf, other\.gguf"):
        served(tmp_path, tmp_path / "cache")


def test_folders_of_their_own_stay_as_they_are(demo: Path, tmp_path: Path) -> None:
    assert served(DEMO, tmp_path) == DEMO
    write_checkpoint(tmp_path)
    (tmp_path / "demo.gguf").symlink_to(demo)
    assert served(tmp_path, tmp_path) == tmp_path
    folder = served(demo, tmp_path)
    assert served(folder, tmp_path) == folder


def test_a_tokenizer_that_cant_be_read_needs_one_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "m.gguf"
    write_gguf(path, tmp_path)
    with pytest.raises(TokenizerLoadError, match="--tokenizer"):
        served(path, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        folder = served(path, tmp_path / "cache", tokenizer=DEMO)
    assert str(DEMO) in caplog.text
    assert not (folder / "tokenizer.json").exists()


def test_the_setting_takes_files_and_names_the_model_after_them(demo: Path, tmp_path: Path) -> None:
    parts = tmp_path / "big-00001-of-00002.gguf"
    parts.touch()
    for path, name in ((demo, "demo"), (parts, "big"), (DEMO, DEMO.name)):
        settings = ModelSettings.from_env({"PENSTOCK_MODEL_PATH": str(path)})
        assert (settings.path, settings.name) == (path, name)
    with pytest.raises(ConfigurationError, match=r"no folder \(or \.gguf file\)"):
        ModelSettings.from_env({"PENSTOCK_MODEL_PATH": str(tmp_path / "none.gguf")})


def test_a_model_in_the_place_of_another_leaves_nothing_of_it(demo: Path, tmp_path: Path) -> None:
    path, cache = tmp_path / "m.gguf", tmp_path / "cache"
    shutil.copy(demo, path)
    first = served(path, cache)
    packed = cache / f"{first.name}-1234abcd-layout-0123456789abcdef.packed"
    packed.write_text("of the first")
    # Another model of the same name elsewhere is none of its business.
    shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("cache"))
    other = served(tmp_path / "elsewhere" / "m.gguf", cache)
    os.utime(path, ns=(5, 5))
    second = served(path, cache)
    assert second != first
    assert {one.name for one in (cache / "gguf").iterdir()} == {second.name, other.name}
    assert not packed.exists()
    # Made anew under another date only.
    assert served(path, cache) == second
