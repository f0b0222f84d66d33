"""When two model folders count as the same model."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_worker.compute.weights import fingerprint as module
from engine_worker.compute.weights.fingerprint import fingerprint
from tests.fakes.tiny_checkpoint import TINY_LLAMA, random_tensors, write_checkpoint

PARTS = {"weights": "float32", "tokenizer": "{}"}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(params=["whole", "sampled"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "sampled":
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)
        monkeypatch.setattr(module, "NUM_SAMPLES", 4)
        monkeypatch.setattr(module, "SAMPLE_BYTES", 64)
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder)
    return folder


def rewrite(folder: Path, **differences: Any) -> None:
    write_checkpoint(folder, TINY_LLAMA | differences, random_tensors(TINY_LLAMA))


def test_a_copy_of_a_folder_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(folder, PARTS) == fingerprint(tmp_path / "elsewhere", PARTS)
    assert len(fingerprint(folder, PARTS)) == 64


def test_every_part_counts_by_name_and_in_any_order(folder: Path) -> None:
    prints = {
        fingerprint(folder, PARTS),
        fingerprint(folder, dict(reversed(PARTS.items()))),
        fingerprint(folder, PARTS | {"weights": "bfloat16"}),
        fingerprint(folder, PARTS | {"tokenizer": "{}\n"}),
        fingerprint(folder, {"weights": "{}", "tokenizer": "float32"}),
    }
    assert len(prints) == 4


def test_the_config_counts(folder: Path) -> None:
    before = fingerprint(folder, PARTS)
    rewrite(folder, rope_theta=5.0)
    assert fingerprint(folder, PARTS) != before


def test_readme_files_do_not_count(folder: Path) -> None:
    before = fingerprint(folder, PARTS)
    (folder / "README.md").write_text("hello", encoding="utf-8")
    assert fingerprint(folder, PARTS) == before


@pytest.mark.parametrize("name", [EMBEDDING, "model.norm.weight"])
def test_other_weights_of_the_same_shapes_are_another_model(folder: Path, name: str) -> None:
    before = fingerprint(folder, PARTS)
    tensors = random_tensors(TINY_LLAMA)
    tensors[name] = tensors[name] + np.float32(1e-3)
    write_checkpoint(folder, tensors=tensors)
    assert fingerprint(folder, PARTS) != before


@pytest.mark.parametrize("index", [0, -1])
def test_the_first_and_the_last_number_of_a_tensor_are_always_looked_at(
    folder: Path, index: int
) -> None:
    before = fingerprint(folder, PARTS)
    tensors = random_tensors(TINY_LLAMA)
    tensors[EMBEDDING].reshape(-1)[index] += 1
    write_checkpoint(folder, tensors=tensors)
    assert fingerprint(folder, PARTS) != before
