"""Which engines may go on with each other's streams."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine_worker.config import ModelSettings
from engine_worker.loading.identity import model_fingerprint
from engine_worker.text.tokenizer import Tokenizer
from tests.fakes.tiny_checkpoint import write_checkpoint
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TYPES = {"weights": "float32", "cache": "float32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(byte_level_tokenizer().serialized(), encoding="utf-8")
    edit(folder / "tokenizer_config.json", eos_token="<|im_end|>", chat_template="{{ 1 }}")


def edit(file: Path, **changes: Any) -> None:
    contents = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(contents | changes), encoding="utf-8")


def identity(
    folder: Path, tokenizer_path: Path | None = None, types: dict[str, str] = TYPES, **changes: Any
) -> str:
    """The fingerprint of an engine with these settings."""
    settings = ModelSettings(path=folder, name="m", tokenizer_path=tokenizer_path)
    tokenizer = Tokenizer.load(tokenizer_path or folder, folder)
    return model_fingerprint(dataclasses.replace(settings, **changes), tokenizer, types, {})


def test_a_copy_elsewhere_with_its_tokenizer_beside_it_is_the_same(
    folder: Path, tmp_path: Path
) -> None:
    copy, beside = tmp_path / "copy", tmp_path / "tokenizer"
    shutil.copytree(folder, copy)
    write_tokenizer(beside)
    assert identity(folder) == identity(copy) == identity(folder, beside)


def other_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    vocabulary = json.loads(file.read_text(encoding="utf-8"))
    tokens = vocabulary["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    edit(file, **vocabulary)


@pytest.mark.parametrize(
    "change",
    [
        other_vocabulary,
        lambda folder: edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>"),
        lambda folder: edit(folder / "tokenizer_config.json", chat_template="{{ 2 }}"),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ 2 }}", encoding="utf-8"),
        lambda folder: edit(
            folder / "tokenizer_config.json",
            chat_template=[
                {"name": "default", "template": "{{ 1 }}"},
                {"name": "tool_use", "template": "{{ 2 }}"},
            ],
        ),
    ],
    ids=["vocabulary", "end of sequence", "template", "template file", "template for tools"],
)
def test_another_tokenizer_at_its_own_path_is_another_model(
    folder: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    """Only the model's folder counted: engines with other tokenizers resumed each other's
    streams."""
    beside = tmp_path / "tokenizer"
    write_tokenizer(beside)
    before = identity(folder, beside)
    change(beside)
    assert identity(folder, beside) != before


def test_end_of_sequence_ids_of_the_generation_config_count(folder: Path) -> None:
    before = identity(folder)
    edit(folder / "generation_config.json", eos_token_id=[7])
    assert identity(folder) != before


def test_each_type_counts(folder: Path) -> None:
    prints = {
        identity(folder, types={"weights": weights, "cache": cache})
        for weights in ("float32", "bfloat16", "int8")
        for cache in ("float32", "bfloat16", "int8")
    }
    assert len(prints) == 9


def test_deterministic_engines_are_of_their_own_and_of_one_compiler(folder: Path) -> None:
    settings = ModelSettings(path=folder, name="m", deterministic=True)
    tokenizer = Tokenizer.load(folder)
    plain = model_fingerprint(settings, tokenizer, TYPES, {})
    flagged = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}
    assert plain == model_fingerprint(settings, tokenizer, TYPES, {"HOME": "/"})
    assert plain != identity(folder)
    assert plain != model_fingerprint(settings, tokenizer, TYPES, flagged)


def test_how_fast_and_how_large_an_engine_is_does_not_count(folder: Path) -> None:
    assert identity(folder) == identity(folder, kv_memory_bytes=2**20, max_num_seqs=3)
    flagged = {"XLA_FLAGS": "--xla_dump_to=/tmp"}
    settings = ModelSettings(path=folder, name="m")
    tokenizer = Tokenizer.load(folder)
    assert identity(folder) == model_fingerprint(settings, tokenizer, TYPES, flagged)
