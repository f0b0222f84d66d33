"""Large tables are read and packed in pieces: the same bits, in the memory that is told."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine_worker.compute.backends.packing_plan import plain
from engine_worker.compute.models.decoder import Parameter
from engine_worker.compute.models.spec import MlpSpec
from engine_worker.compute.models.tensors import Source
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.loader import WeightReader
from engine_worker.compute.weights.tensor_info import DTYPE_SIZES, TensorInfo
from engine_worker.config import ModelSettings
from engine_worker.demo import demo_model_path
from engine_worker.loading import row_pieces
from engine_worker.loading.decoder import choose_for_settings
from engine_worker.loading.gguf_folder import with_model_folder
from engine_worker.loading.memory_estimate import estimate_memory
from engine_worker.loading.weights import load_for_backend
from tests.fakes.gguf_blocks import encoded
from tests.fakes.gguf_files import write_gguf
from tests.fakes.packed_decoder import needs_native
from tests.fakes.tiny_checkpoint import TINY_LLAMA, random_tensors, write_checkpoint

TYPES = [
    *(("xla", one) for one in ("float32", "bfloat16", "int8")),
    *(
        pytest.param("cpu_native", one, marks=needs_native)
        for one in ("float32", "bfloat16", "int8", "int4", "auto")
    ),
]
VOCAB = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSettings]:
    """The bundled model as a folder and as a GGUF file."""
    folder = tmp_path_factory.mktemp("pieces")
    write_gguf(folder / "demo.gguf", demo_model_path(), kind="Q4_K", encode=encoded)
    in_gguf = ModelSettings(path=folder / "demo.gguf", name="m", weights_cache_dir=folder)
    return {
        "folder": ModelSettings(path=demo_model_path(), name="m"),
        "gguf": with_model_folder(in_gguf),
    }


@pytest.mark.parametrize(("backend", "dtype"), TYPES)
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_pieces_give_the_bits_of_the_whole(
    settings: dict[str, ModelSettings],
    kind: str,
    backend: str,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = settings[kind].path
    chosen = choose_for_settings(settings[kind], dtype=dtype, backend=backend)

    def leaves() -> list[Any]:
        decoder = load_for_backend(path, chosen, None, lambda *_: None)
        return [np.array(leaf).view(np.uint8) for leaf in decoder.leaves]

    whole = leaves()
    # The last piece has fewer rows than the others, and the number is no multiple of a panel's.
    monkeypatch.setattr(row_pieces, "NUMBERS_AT_A_TIME", 100 * chosen.spec.hidden_size)
    read_rows: list[tuple[int, int]] = []
    for name in ("read_rows", "read_rows_in_blocks"):
        read = getattr(WeightReader, name)

        def spy(self: WeightReader, *args: Any, read: Any = read) -> Any:
            read_rows.append(args[-2:])
            return read(self, *args)

        monkeypatch.setattr(WeightReader, name, spy)
    pieces = leaves()
    for ours, theirs in zip(pieces, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert max(end - first for first, end in read_rows) <= 100
    assert (read_rows[0][0], max(end for _, end in read_rows)) == (0, chosen.spec.vocab_size)


def test_a_row_of_stacked_experts_is_a_matrix() -> None:
    shape = (32, 1024, 512)
    experts = Parameter("experts", shape, np.dtype(np.float32))
    size = 2 * experts.num_elements
    tensor = TensorInfo("t", Path("file"), "BF16", shape, start=0, end=size, in_rows=True)
    sources, tensors = [(Source("t", shape),)], {"t": tensor}
    assert row_pieces.NUMBERS_AT_A_TIME == 8 * 1024 * 512
    assert row_pieces.rows_at_a_time(plain(0, experts), [experts], sources, tensors) == 8


def test_the_estimate_counts_a_piece_instead_of_the_whole(
    settings: dict[str, ModelSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = choose_for_settings(settings["folder"], dtype="int8", backend="xla")
    checkpoint = open_checkpoint(demo_model_path())

    def loading_bytes() -> int:
        return estimate_memory(
            backend, settings["folder"], kv_memory_bytes=None, checkpoint=checkpoint
        ).loading_bytes

    hidden, vocab = backend.spec.hidden_size, backend.spec.vocab_size
    width = 4 + DTYPE_SIZES[checkpoint.tensors[VOCAB].dtype]
    assert loading_bytes() == vocab * hidden * width
    monkeypatch.setattr(row_pieces, "NUMBERS_AT_A_TIME", 64 * hidden)
    mlp = backend.spec.layers[0].mlp
    assert isinstance(mlp, MlpSpec)
    # Gate and up are two tensors, which are read whole.
    assert loading_bytes() == max(
        vocab * (hidden + 4) + 64 * hidden * width, 2 * mlp.intermediate_size * hidden * width
    )


LARGE = TINY_LLAMA | {
    "vocab_size": 65536,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_attention_heads": 8,
}
"""34 million numbers in its table of embeddings."""
LOAD = """
import re, sys
from pathlib import Path
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.config import ModelSettings
from engine_worker.loading.decoder import choose_for_settings
from engine_worker.loading.gguf_folder import with_model_folder
from engine_worker.loading.memory_estimate import estimate_memory
from engine_worker.loading.weights import load_for_backend
from engine_worker.demo import demo_model_path

def taken(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def load(path):
    settings = with_model_folder(
        ModelSettings(path=Path(path), name="m", weights_cache_dir=Path(sys.argv[4]))
    )
    backend = choose_for_settings(settings, dtype=sys.argv[2], backend=sys.argv[3])
    decoder = load_for_backend(settings.path, backend, None, lambda *_: None)
    return settings, backend, decoder

prepare_backend(None)
load(demo_model_path())  # what is imported and compiled stays
Path("/proc/self/clear_refs").write_text("5")
before = taken("VmRSS")
settings, backend, decoder = load(sys.argv[1])
estimate = estimate_memory(
    backend, settings, kv_memory_bytes=None, checkpoint=open_checkpoint(settings.path)
)
print(taken("VmHWM") - before, estimate.weights_bytes, estimate.loading_bytes)
"""
SLACK_BYTES = 40 * 2**20
"""Of the allocator, and of the config and the headers."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_checkpoint(folder, LARGE, random_tensors(LARGE, ml_dtypes.bfloat16))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a process's memory")
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param("xla", "bfloat16", marks=pytest.mark.long),
        pytest.param("xla", "int8", marks=pytest.mark.long),
        pytest.param("cpu_native", "float32", marks=[needs_native, pytest.mark.long]),
        pytest.param("cpu_native", "bfloat16", marks=[needs_native, pytest.mark.long]),
        pytest.param("cpu_native", "int8", marks=needs_native),
        pytest.param("cpu_native", "int4", marks=[needs_native, pytest.mark.long]),
    ],
)
def test_a_process_takes_no_more_than_the_estimate_while_it_loads(
    large: Path, tmp_path: Path, backend: str, dtype: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(large), dtype, backend, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    peak, weights, loading = map(int, done.stdout.split())
    assert weights < peak < weights + loading + SLACK_BYTES
