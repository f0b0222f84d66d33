"""When two model folders count as the same model."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_worker.compute.weights import file_digests
from engine_worker.compute.weights.fingerprint import fingerprint
from tests.fakes.tiny_checkpoint import TINY_LLAMA, random_tensors, write_checkpoint

PARTS = {"weights": "float32", "tokenizer": "{}"}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(params=[2**24, 1000])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose file is one piece, or several."""
    monkeypatch.setattr(file_digests, "_PIECE_BYTES", request.param)
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "_known", {})


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


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 1.0])
def test_every_byte_of_a_file_counts(folder: Path, place: float) -> None:
    before = fingerprint(folder, PARTS)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[int(len(content) * place) - 1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert fingerprint(folder, PARTS) != before


def test_a_file_is_hashed_once_while_it_stays_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, told = tmp_path / "cache", []

    def named() -> str:
        # As another process would.
        monkeypatch.setattr(file_digests, "_known", {})
        return fingerprint(
            folder, PARTS, cache_dir=cache, progress=lambda done, text: told.append(text)
        )

    first = named()
    assert told[-1] == "hashed 100% of model.safetensors, once"
    told.clear()
    assert named() == first
    assert told == []
    (record,) = (cache / file_digests.FOLDER).iterdir()
    record.write_text("{broken")
    assert named() == first
    os.utime(folder / "model.safetensors", ns=(5, 5))
    told.clear()
    assert named() == first
    assert told


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert fingerprint(folder, PARTS, cache_dir=tmp_path / "file") == fingerprint(folder, PARTS)
