"""What a model will take, told before it is read: what is refused, and the ways out."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import Parameter, declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec
from engine_worker.compute.models.spec import LayerSpec, MlpSpec
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.config import ModelSettings
from engine_worker.errors import ModelMemoryError
from engine_worker.loading import memory_estimate
from engine_worker.loading.cache_shape import choose_max_model_len
from engine_worker.loading.decoder import load_model
from engine_worker.loading.memory_estimate import (
    OVERHEAD_BYTES,
    MemoryEstimate,
    estimate_memory,
    require_memory,
    require_text_memory,
)
from engine_worker.loading.text_models import load_text_model
from tests.fakes.gguf_files import write_gguf
from tests.fakes.tiny_checkpoint import (
    TINY_LLAMA,
    random_tensors,
    write_checkpoint,
    write_config,
)
from tests.fakes.tiny_decoder import tiny_attention, tiny_spec

GRAPH = declare(decoder_spec(TINY_LLAMA), "float32")
XLA = XlaBackend(GRAPH)
SETTINGS = ModelSettings(path=Path("/m"), name="m", block_size=16, max_num_seqs=3)


def test_weights_cache_the_largest_weight_being_read_and_programs_count() -> None:
    estimate = estimate_memory(XLA, SETTINGS, kv_memory_bytes=5000)
    largest = max(parameter.num_elements for parameter in GRAPH.parameters)
    least = estimate_memory(XLA, SETTINGS, kv_memory_bytes=None).kv_bytes
    assert estimate == MemoryEstimate(
        GRAPH.size_bytes,
        loading_bytes=largest * 8,
        kv_bytes=5000,
        max_num_seqs=3,
        spare_kv_bytes=5000 - least,
    )
    assert estimate.total_bytes == GRAPH.size_bytes + largest * 8 + 5000 + OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("stored", "read_bytes"), [(np.float32, 4), (np.float16, 2), (ml_dtypes.bfloat16, 2)]
)
def test_a_weight_that_is_read_counts_in_the_type_of_the_file(
    tmp_path: Path, stored: type, read_bytes: int
) -> None:
    """The table of all layers of a Gemma 3n is as large as all others: 4 bytes were too many."""
    write_checkpoint(tmp_path, tensors=random_tensors(TINY_LLAMA, stored))
    backend = XlaBackend(declare(decoder_spec(TINY_LLAMA), "bfloat16"))
    estimate = estimate_memory(
        backend, SETTINGS, kv_memory_bytes=0, checkpoint=open_checkpoint(tmp_path)
    )
    largest = max(parameter.num_elements for parameter in GRAPH.parameters)
    assert estimate.loading_bytes == largest * (2 + read_bytes)


def test_a_weight_that_is_computed_counts_as_float32(tmp_path: Path) -> None:
    wide = {**TINY_LLAMA, "hidden_size": 32, "intermediate_size": 32}
    write_checkpoint(tmp_path, wide)
    write_gguf(tmp_path / "m.gguf", tmp_path, kind="Q8_0")
    (tmp_path / "model.safetensors").unlink()
    graph = declare(decoder_spec(wide), "bfloat16")
    estimate = estimate_memory(
        XlaBackend(graph), SETTINGS, kv_memory_bytes=0, checkpoint=open_checkpoint(tmp_path)
    )
    largest = max(parameter.num_elements for parameter in graph.parameters)
    assert estimate.loading_bytes == largest * (2 + 4)


def test_a_model_in_bfloat16_that_fits_as_it_is_read_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, tensors=random_tensors(TINY_LLAMA, ml_dtypes.bfloat16))
    settings = dataclasses.replace(SETTINGS, path=tmp_path, dtype="bfloat16", backend="xla")
    graph = declare(decoder_spec(TINY_LLAMA), "bfloat16")
    needed = estimate_memory(
        XlaBackend(graph), settings, kv_memory_bytes=None, checkpoint=open_checkpoint(tmp_path)
    ).total_bytes

    class ReachedError(Exception):
        """The weights would be read now."""

    def load(*_: object) -> None:
        raise ReachedError

    monkeypatch.setattr("engine_worker.loading.decoder.load_for_backend", load)
    monkeypatch.setattr("engine_worker.loading.decoder._load_text_side", lambda *_: None)
    monkeypatch.setattr(memory_estimate, "_free_bytes", lambda: needed)
    with pytest.raises(ReachedError):
        load_model(settings, lambda *_: None)
    monkeypatch.setattr(memory_estimate, "_free_bytes", lambda: needed - 1)
    with pytest.raises(ModelMemoryError):
        load_model(settings, lambda *_: None)


def test_a_cache_counts_at_least_a_block_and_at_most_what_all_rows_fill() -> None:
    block = XLA.kv_layout(num_blocks=1, block_size=16).block_bytes[0]
    assert estimate_memory(XLA, SETTINGS, kv_memory_bytes=None).kv_bytes == 2 * block
    # 64 positions are 4 blocks a row, and one block is for padding.
    assert estimate_memory(XLA, SETTINGS, kv_memory_bytes=2**40).kv_bytes == (3 * 4 + 1) * block


GIB = 2**30
LARGE = MemoryEstimate(8 * GIB, GIB, GIB, GIB)


def refused(estimate: MemoryEstimate, free: int, backend: XlaBackend = XLA) -> str:
    with pytest.raises(ModelMemoryError) as caught:
        require_memory("big", estimate, backend, free_bytes=lambda: free)
    return str(caught.value)


def test_what_does_not_fit_is_refused_with_both_numbers_and_a_narrower_type_that_fits() -> None:
    require_memory("big", LARGE, XLA, free_bytes=lambda: 11 * GIB)
    text = refused(LARGE, 10 * GIB)
    for part in ("big needs about 11.00 GiB", "8.00 GiB weights in float32", "10.00 GiB are free"):
        assert part in text
    assert "PENSTOCK_DTYPE=bfloat16" in text
    assert "PENSTOCK_DTYPE=int8" in refused(LARGE, 6 * GIB)


def test_fewer_requests_with_recurrent_states_are_the_way_out_before_a_narrower_type() -> None:
    hybrid = dataclasses.replace(LARGE, request_bytes=GIB // 8, max_num_seqs=8)
    assert "set PENSTOCK_MAX_NUM_SEQS=4, which fits" in refused(hybrid, 21 * GIB // 2)
    assert "PENSTOCK_DTYPE=bfloat16" in refused(hybrid, 10 * GIB)


def test_a_cache_of_a_given_size_gets_smaller_and_not_only_the_part_of_states() -> None:
    """ "MAX_NUM_SEQS=11, which fits" was told, with which the next start refused just the same."""
    states = 100 * 2**20
    asked = MemoryEstimate(
        GIB, GIB, 8 * GIB, 0, request_bytes=states, max_num_seqs=32, spare_kv_bytes=3 * GIB
    )
    assert "set PENSTOCK_KV_MEMORY=6144MiB, which fits" in refused(asked, 8 * GIB)
    text = refused(asked, 6 * GIB)
    assert "set PENSTOCK_KV_MEMORY=4096MiB and PENSTOCK_MAX_NUM_SEQS=21, which fits" in text
    # Not even one request would leave that much.
    assert "PENSTOCK_KV_MEMORY" not in refused(asked, 3 * GIB)


STATES = DeltaNetSpec(4, 8, 256, 256, 4)
"""Two MiB each."""


@pytest.mark.parametrize("missing_mib", [1, 50, 60, 700])
def test_with_what_is_told_the_next_start_finds_room(missing_mib: int) -> None:
    layers = (LayerSpec(STATES, MlpSpec(8)), LayerSpec(tiny_attention(), MlpSpec(8)))
    backend = XlaBackend(declare(replace(tiny_spec(), layers=layers), "float32"))
    settings = replace(SETTINGS, block_size=None, max_num_seqs=32)
    least = estimate_memory(backend, settings, kv_memory_bytes=None).kv_bytes
    settings = replace(settings, kv_memory_bytes=least + 55 * 2**20)

    def told_with(settings: ModelSettings) -> str:
        estimate = estimate_memory(backend, settings, kv_memory_bytes=settings.kv_memory_bytes)
        try:
            require_memory("m", estimate, backend, free_bytes=lambda: free)
        except ModelMemoryError as error:
            return str(error)
        return ""

    first = estimate_memory(backend, settings, kv_memory_bytes=settings.kv_memory_bytes)
    free = first.total_bytes - missing_mib * 2**20
    told = told_with(settings)
    values = {name: int(value) for name, value in re.findall(r"PENSTOCK_(\w+)=(\d+)", told)}
    assert ("MAX_NUM_SEQS" in values) == (missing_mib > 55)
    settings = replace(
        settings,
        kv_memory_bytes=values["KV_MEMORY"] * 2**20,
        max_num_seqs=values.get("MAX_NUM_SEQS", 32),
    )
    assert told_with(settings) == ""
    assert choose_max_model_len(settings, backend) > 0


def test_where_no_type_fits_the_way_out_is_memory_or_another_model() -> None:
    # int4, which would fit, is only there with the native kernels.
    text = refused(LARGE, 4 * GIB)
    assert "PENSTOCK_DTYPE" not in text
    assert "smaller model" in text


def test_on_a_device_only_weights_and_cache_count() -> None:
    stats = {"bytes_limit": 10 * GIB, "bytes_in_use": GIB}
    require_memory("big", LARGE, XLA, stats, free_bytes=lambda: 0)
    with pytest.raises(
        ModelMemoryError, match=r"needs about 9\.00 GiB.* 8\.98 GiB are free on the"
    ):
        require_memory("big", LARGE, XLA, stats | {"bytes_in_use": GIB + 2**24})


def test_a_model_too_large_is_refused_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, TINY_LLAMA)
    monkeypatch.setattr(memory_estimate, "_free_bytes", lambda: 2**20)
    settings = dataclasses.replace(SETTINGS, path=tmp_path)
    told: list[str] = []
    with pytest.raises(ModelMemoryError, match=r"m needs about 0\.3\d GiB"):
        load_model(settings, lambda phase, fraction, detail: told.append(detail))
    assert told == ["configuration"]


def test_a_model_without_a_cache_is_refused_with_both_numbers_and_a_way_out() -> None:
    matrix = Parameter("w", (2**15, 2**16), np.dtype(np.float32))  # 8 GiB

    def refused_text(free: int) -> str:
        with pytest.raises(ModelMemoryError) as caught:
            require_text_memory("e5", "float32", [matrix], free_bytes=lambda: free)
        return str(caught.value)

    # The weights, the one that is read in two types, and programs.
    needed = 3 * 8 * GIB + OVERHEAD_BYTES
    require_text_memory("e5", "float32", [matrix], free_bytes=lambda: needed)
    text = refused_text(needed - 1)
    for part in ("e5 needs about 24.39 GiB", "8.00 GiB weights in float32", "bfloat16, which fits"):
        assert part in text
    assert "a smaller model" in refused_text(GIB)
    on_device = {"bytes_limit": 8 * GIB, "bytes_in_use": 1}
    with pytest.raises(ModelMemoryError, match="on the device"):
        require_text_memory("e5", "float32", [matrix], on_device)


@pytest.mark.parametrize("is_encoder", [True, False])
def test_text_models_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_encoder: bool
) -> None:
    monkeypatch.setattr(memory_estimate, "_free_bytes", lambda: 1000)
    config = {**TINY_LLAMA, "architectures": ["LlamaModel"]}
    if is_encoder:
        config |= {"architectures": ["BertModel"], "model_type": "bert", "layer_norm_eps": 1e-5}
    # There are no weights at all: nobody looks for them.
    write_config(tmp_path, config)
    settings = dataclasses.replace(SETTINGS, path=tmp_path)
    with pytest.raises(ModelMemoryError, match="m needs about"):
        load_text_model(settings, lambda done, text: None)
