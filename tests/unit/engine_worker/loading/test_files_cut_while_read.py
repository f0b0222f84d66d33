"""A model's file that is cut short while it is read: refused by name, and the process lives.

Its header was good when the load began. Read through a mapping, each of these would end the
process that runs the tests with SIGBUS.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.config import ModelSettings
from engine_worker.embedding.dense import DenseSpec, load_dense
from engine_worker.errors import CheckpointError
from engine_worker.loading.decoder import choose_for_settings
from engine_worker.loading.weights import load_for_backend
from protocol.runtime import gguf_header
from protocol.runtime.gguf_header import GgufError, read_gguf
from tests.fakes.gguf_blocks import encoded
from tests.fakes.gguf_files import write_gguf
from tests.fakes.packed_decoder import needs_native
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint

LLAMA = TINY_LLAMA | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
"""Of several pages a matrix."""
LORA = Path(__file__).parents[1] / "compute" / "weights" / "lora" / "golden"


def cut_while_loaded(settings: ModelSettings, file: Path) -> str:
    """Loads a model, of which a file loses its numbers behind the first weight; the error."""
    backend = choose_for_settings(settings)
    tensors = open_checkpoint(settings.path, settings.lora).tensors.values()
    stored = [part for tensor in tensors for part in tensor.stored]
    start = min(one.start for one in stored if one.file.resolve() == file.resolve())

    def cut(done: float, text: str) -> None:
        os.truncate(file, start)

    with pytest.raises(CheckpointError) as caught:
        load_for_backend(settings.path, backend, settings.weights_cache_dir, cut, settings.lora)
    return str(caught.value)


def assert_named(message: str, file: Path) -> None:
    assert message.count("\n") == 0
    assert file.name in message
    assert "truncated: tensor '" in message
    assert "cut short" in message
    assert message.endswith("download it again")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_safetensors(tmp_path: Path, num_shards: int, dtype: str) -> None:
    write_checkpoint(tmp_path, LLAMA, num_shards=num_shards)
    file = max(tmp_path.glob("*.safetensors"))
    settings = ModelSettings(
        path=tmp_path, name="m", dtype=dtype, weights_cache_dir=tmp_path / "cache"
    )
    assert_named(cut_while_loaded(settings, file), file)
    assert not list((tmp_path / "cache").glob("*.packed*"))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("F32", "float32"),
        ("BF16", "float32"),
        ("Q8_0", "bfloat16"),
        pytest.param("Q4_K", "auto", marks=needs_native),
    ],
)
def test_gguf(tmp_path: Path, kind: str, dtype: str) -> None:
    (tmp_path / "original").mkdir()
    write_checkpoint(tmp_path / "original", LLAMA)
    file = tmp_path / "m.gguf"
    write_gguf(file, tmp_path / "original", kind=kind, encode=encoded)
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copy(tmp_path / "original" / "config.json", folder)
    file = file.rename(folder / file.name)
    settings = ModelSettings(path=folder, name="m", dtype=dtype)
    assert_named(cut_while_loaded(settings, file), file)


def test_an_adapter(tmp_path: Path) -> None:
    shutil.copytree(LORA / "plain", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    settings = ModelSettings(
        path=LORA / "base", name="m", dtype="float32", lora=tmp_path / "adapter"
    )
    assert_named(cut_while_loaded(settings, file), file)


def test_a_dense_layer_of_an_embedding_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"

    save_file({"linear.weight": np.ones((64, 64), np.float32)}, file)

    def open_and_cut(folder: Path) -> object:
        checkpoint = open_checkpoint(folder)
        os.truncate(file, checkpoint.tensors["linear.weight"].start)
        return checkpoint

    monkeypatch.setattr("engine_worker.embedding.dense.open_checkpoint", open_and_cut)
    with pytest.raises(CheckpointError) as caught:
        load_dense(DenseSpec(tmp_path, 64, 64, False, "Tanh"))
    assert_named(str(caught.value), file)


def test_the_header_of_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, LLAMA)
    path = tmp_path / "m.gguf"
    write_gguf(path, tmp_path)
    tensors = read_gguf(path).tensors
    read_entry = gguf_header._Reader._entry
    cut_at: list[str] = []

    def read_and_cut(self: gguf_header._Reader, name: str, alignment: int) -> object:
        if not cut_at:
            os.truncate(path, 0)
        cut_at.append(name)
        return read_entry(self, name, alignment)

    monkeypatch.setattr(gguf_header, "_BUFFER_BYTES", 64)
    monkeypatch.setattr(gguf_header._Reader, "_entry", read_and_cut)
    with pytest.raises(GgufError, match=r"m\.gguf: is cut off.*a tensor; download it again"):
        read_gguf(path)
    assert 0 < len(cut_at) < len(tensors)
