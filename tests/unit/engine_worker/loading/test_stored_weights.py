"""Quantised checkpoints on the native kernels: matrices stay as they are stored."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.backends.choice import identity_of, stored_label
from engine_worker.config import ModelSettings
from engine_worker.demo import demo_model_path
from engine_worker.errors import ModelMemoryError
from engine_worker.loading.decoder import choose_for_settings, load_model
from engine_worker.loading.gguf_folder import with_model_folder
from engine_worker.loading.memory_estimate import estimate_memory, require_memory
from engine_worker.loading.weights import load_for_backend
from engine_worker.quality import Job, run
from tests.fakes.gguf_blocks import encoded
from tests.fakes.gguf_files import write_gguf
from tests.fakes.packed_decoder import needs_native

pytestmark = needs_native

LABEL = "int4 in groups of 32 (17 of 17 matrices)"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """The bundled model in Q4_K, and where its weights are kept."""
    folder = tmp_path_factory.mktemp("stored")
    write_gguf(folder / "demo-Q4_K.gguf", demo_model_path(), kind="Q4_K", encode=encoded)
    return with_model_folder(
        ModelSettings(
            path=folder / "demo-Q4_K.gguf",
            name="m",
            weights_cache_dir=folder / "weights",
            kv_memory_bytes=2**22,
            max_num_seqs=2,
            max_num_batched_tokens=32,
        )
    )


def test_auto_keeps_every_matrix_that_a_kernel_multiplies(settings: ModelSettings) -> None:
    backend = choose_for_settings(settings)
    assert stored_label(backend) == LABEL
    # 4.625 bits a number of the matrices; the vectors beside them are a few kilobytes.
    matrices = (one.num_elements for one in backend.graph.parameters if len(one.shape) == 2)
    size = sum(matrices) * 4.625 / 8
    assert size < backend.packing.size_bytes < size + 10_000


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"dtype": "int8"},
        {"dtype": "int4"},
        {"backend": "xla"},
        {"deterministic": True},
    ],
)
def test_whoever_asks_for_a_type_or_another_backend_gets_it(
    settings: ModelSettings, change: dict[str, object]
) -> None:
    assert choose_for_settings(replace(settings, **change)).stored_formats == {}  # type: ignore[arg-type]


def test_the_estimate_counts_and_names_what_stays(settings: ModelSettings) -> None:
    def estimated(backend: Backend) -> int:
        return estimate_memory(backend, settings, kv_memory_bytes=2**20).weights_bytes

    backend = choose_for_settings(settings)
    dequantised = choose_for_settings(settings, dtype="bfloat16")
    assert estimated(backend) * 3 < estimated(dequantised)
    estimate = estimate_memory(backend, settings, kv_memory_bytes=2**20)
    with pytest.raises(ModelMemoryError, match=r"int4 in groups of 32 \(17 of 17 .*as stored"):
        require_memory("m", estimate, backend, free_bytes=lambda: 0)


def test_predictions_are_those_of_the_dequantised_model_but_for_int8_activations(
    settings: ModelSettings,
) -> None:
    text = " ".join(f"{n} times {n + 1} is {n * (n + 1)}." for n in range(60))
    record = run(Job(settings, None, "float32", "numbers", text, 400))
    assert record["weights"] == f"bfloat16, {LABEL}"
    kl, agreement = record["kl_divergence"], record["top_1_agreement"]
    assert isinstance(kl, float)
    assert isinstance(agreement, float)
    # What rounding activations to int8 costs this model with any weights: 0.002 and 97 %.
    assert 0 < kl < 0.01
    assert agreement > 0.94


def test_it_is_packed_once_and_the_log_and_the_offer_say_what_stays(
    settings: ModelSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = load_model(settings, lambda *_: None)
    assert first.offer.stored_formats == LABEL
    assert (first.offer.dtype, first.offer.stored_as) == ("bfloat16", "GGUF Q4_K")
    assert f"{LABEL} stay so" in caplog.text
    told: list[str] = []
    backend = choose_for_settings(settings)
    load_for_backend(
        settings.path,
        backend,
        settings.weights_cache_dir,
        lambda done, text: told.append(text),
    )
    assert told == []  # mapped, not packed


def test_engines_that_dequantise_do_not_go_on_with_its_streams(settings: ModelSettings) -> None:
    kept, plain = (
        identity_of(choose_for_settings(settings, dtype=dtype), deterministic=False)
        for dtype in ("auto", "bfloat16")
    )
    assert kept != plain
    assert "layers.0.attention.qkv.weight" in kept


def test_a_scale_that_is_no_number_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "demo-Q8_0.gguf"
    write_gguf(path, demo_model_path(), kind="Q8_0")
    content = path.read_bytes()
    # A scale of the last matrix of the file becomes NaN.
    place = len(content) - 34 * 64
    content = content[:place] + np.array([np.nan] * 17 * 64, np.float16).tobytes()
    path.write_bytes(content)
    made = with_model_folder(ModelSettings(path=path, name="m", weights_cache_dir=tmp_path / "w"))
    with pytest.raises(Exception, match="tensor '.*' is broken"):
        load_model(made, lambda *_: None)
