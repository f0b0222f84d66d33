"""Weights that a backend packs: packed once, read later, and packed again when in doubt."""

import logging
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.errors import CheckpointError
from engine_worker.loading.quality_record import quality_path, read_quality, write_quality
from engine_worker.loading.weights import load_for_backend
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder, TINY_LLAMA)
    return folder


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def int8_backend(folder: Path) -> XlaBackend:
    return XlaBackend(declare(load_spec(folder), "float32"), "int8")


def load(folder: Path, cache_dir: Path | None) -> tuple[list[npt.NDArray[Any]], list[str]]:
    """The leaves, and what was told meanwhile."""
    told: list[str] = []
    decoder = load_for_backend(
        folder, int8_backend(folder), cache_dir, lambda done, text: told.append(text)
    )
    return [np.array(leaf) for leaf in decoder.leaves], told


def assert_same(ours: list[npt.NDArray[Any]], theirs: list[npt.NDArray[Any]]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_are_packed_once_with_progress_and_mapped_at_the_next_start(
    folder: Path, cache_dir: Path
) -> None:
    first, told = load(folder, cache_dir)
    plain, _ = load(folder, None)
    assert told[-1] == "hashed 100% of model.safetensors, once"
    num_weights = len(int8_backend(folder).packing.weights)
    assert [text.split()[0] for text in told if "hashed" not in text] == ["packed"] * num_weights
    again, told = load(folder, cache_dir)
    assert told == []
    assert_same(first, plain)
    assert_same(again, plain)
    (file,) = cache_dir.glob("*.packed")
    # An eighth of float32 and a bit: norms and scales stay wide.
    assert file.stat().st_size < declare(load_spec(folder), "float32").size_bytes / 2


def test_other_weights_in_the_folder_replace_the_packed_ones(folder: Path, cache_dir: Path) -> None:
    first, _ = load(folder, cache_dir)
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] *= -1
    save_file(tensors, path)
    second, told = load(folder, cache_dir)
    assert told
    assert any((a != b).any() for a, b in zip(first, second, strict=True))
    assert len(list(cache_dir.glob("*.packed"))) == 1


def test_weights_that_change_while_they_are_packed_are_refused_and_not_kept(
    folder: Path, cache_dir: Path
) -> None:
    """They were kept as those of the files that had been there before."""
    first, _ = load(folder, None)
    path = next(folder.glob("*.safetensors"))
    original = path.read_bytes()
    replaced: list[str] = []

    def replace_weights(done: float, text: str) -> None:
        # While it is hashed, and open: all numbers are still those of the old file.
        if done < 0.5 and not replaced:
            replaced.append(text)
            tensors = load_file(path)
            tensors["model.embed_tokens.weight"] *= -1
            save_file(tensors, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)

    with pytest.raises(CheckpointError, match="changed while they were loaded; start again"):
        load_for_backend(folder, int8_backend(folder), cache_dir, replace_weights)
    assert not list(cache_dir.glob("*.packed*"))
    path.write_bytes(original)
    assert_same(load(folder, cache_dir)[0], first)


def test_a_file_cut_short_is_told_and_packed_anew(
    folder: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = load(folder, cache_dir)
    (file,) = cache_dir.glob("*.packed")
    file.chmod(0o600)
    os.truncate(file, file.stat().st_size - 64)
    with caplog.at_level(logging.WARNING):
        second, told = load(folder, cache_dir)
    assert told
    assert "cut short" in caplog.text
    assert "packed again" in caplog.text
    assert_same(second, first)
    assert load(folder, cache_dir)[1] == []


@pytest.mark.parametrize("place", [0.4, 0.9])
def test_a_file_with_another_number_is_told_and_packed_anew(
    folder: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture, place: float
) -> None:
    first, _ = load(folder, cache_dir)
    (file,) = cache_dir.glob("*.packed")
    content = bytearray(file.read_bytes())
    # In the middle of the largest part, and in one of the small ones behind it.
    content[int(len(content) * place)] ^= 4
    file.chmod(0o600)
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        second, told = load(folder, cache_dir)
    assert told
    assert "damaged" in caplog.text
    assert_same(second, first)
    assert load(folder, cache_dir)[1] == []


def test_a_cache_that_cannot_be_written_is_told_and_done_without(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        leaves, _ = load(folder, tmp_path / "file" / "cache")
    assert "can't be kept" in caplog.text
    assert_same(leaves, load(folder, None)[0])


def test_a_weight_that_no_scale_can_hold_is_refused_by_name(folder: Path, cache_dir: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = np.inf
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down\.weight holds NaN or inf"):
        load(folder, cache_dir)
    assert not list(cache_dir.glob("*.packed*"))


def test_weights_taken_as_they_are_make_no_file(folder: Path, cache_dir: Path) -> None:
    backend = XlaBackend(declare(load_spec(folder), "bfloat16"))
    decoder = load_for_backend(folder, backend, cache_dir, lambda done, text: None)
    assert decoder.leaves[0].dtype == jnp.bfloat16
    assert [path.name for path in cache_dir.iterdir()] == ["digests"]


def test_a_quality_is_kept_for_its_weights_and_type_only(
    folder: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = int8_backend(folder)
    assert read_quality(cache_dir, folder, backend) == ""
    path = write_quality({"perplexity": 3.5}, cache_dir, folder, backend)
    assert path == quality_path(cache_dir, folder, backend)
    assert read_quality(cache_dir, folder, backend) == '{"perplexity": 3.5}'
    assert read_quality(None, folder, backend) == ""
    other = XlaBackend(declare(load_spec(folder), "bfloat16"))
    assert read_quality(cache_dir, folder, other) == ""
    path.write_text("[1, 2")
    with caplog.at_level(logging.WARNING):
        assert read_quality(cache_dir, folder, backend) == ""
    assert "left out" in caplog.text
