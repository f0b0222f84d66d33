import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.kv_memory import ACCELERATOR_SHARE
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.config import ModelSettings
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.metrics import EngineMetrics
from engine_worker.errors import KvMemoryError, ModelConfigError, TokenizerLoadError
from engine_worker.loading.cache_shape import choose_max_model_len
from engine_worker.loading.decoder import _load_text_side, create_runner, load_model
from protocol.errors import ConfigurationError
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint
from tests.fakes.tiny_decoder import tiny_spec, tiny_weights
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

SPEC = dataclasses.replace(decoder_spec(TINY_LLAMA), max_position_embeddings=1000)
BACKEND = XlaBackend(declare(SPEC, "float32"))
SETTINGS = ModelSettings(path=Path("/m"), name="m", block_size=16)


def tiny_decoder() -> PackedDecoder:
    weights = tiny_weights(spec=tiny_spec([None]))
    return PackedDecoder(XlaBackend(weights.graph), weights.leaves)


def choose(**changes: Any) -> int:
    return choose_max_model_len(dataclasses.replace(SETTINGS, **changes), BACKEND)


def test_the_context_is_the_models_own_when_the_cache_holds_it() -> None:
    assert choose(kv_memory_bytes=2**26) == 1000


def test_the_context_is_cut_to_what_the_cache_holds() -> None:
    length = choose(kv_memory_bytes=2**16)
    assert 0 < length < 1000
    assert length % 16 == 0


def test_a_configured_context_is_taken_unless_the_model_was_not_made_for_it() -> None:
    assert choose(max_model_len=500) == 500
    with pytest.raises(ConfigurationError, match=r"PENSTOCK_MAX_MODEL_LEN is 1001.* 1000 tokens"):
        choose(max_model_len=1001)


def test_a_cache_without_room_for_one_block_is_refused() -> None:
    with pytest.raises(KvMemoryError, match="PENSTOCK_KV_MEMORY"):
        choose(kv_memory_bytes=100)


def test_a_folder_without_a_model_is_refused_before_anything_else(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, path=tmp_path)
    phases: list[str] = []
    with pytest.raises(ModelConfigError):
        load_model(settings, lambda phase, fraction, detail: phases.append(phase))
    assert phases == ["loading"]


@pytest.mark.parametrize("has_end", [True, False])
def test_a_tokenizer_without_an_end_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, has_end: bool
) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_tokenizer().serialized())
    config = {"eos_token": "<|im_end|>"} if has_end else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    settings = dataclasses.replace(SETTINGS, path=tmp_path)
    tokenizer, _ = _load_text_side(settings, 2000)
    assert bool(tokenizer.eos_token_ids) is has_end
    assert ("nothing names a token that ends an output" in caplog.text) is not has_end


def test_without_a_tokenizer_nothing_is_compiled(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY_LLAMA)
    settings = dataclasses.replace(SETTINGS, path=tmp_path, kv_memory_bytes=2**20)
    phases: list[str] = []
    with pytest.raises(TokenizerLoadError):
        load_model(settings, lambda phase, fraction, detail: phases.append(phase))
    assert set(phases) == {"loading"}


@pytest.mark.long
def test_on_a_device_the_cache_gets_what_weights_and_programs_leave() -> None:
    decoder = tiny_decoder()
    settings = dataclasses.replace(SETTINGS, max_num_seqs=2, max_num_batched_tokens=8)
    per_block = decoder.backend.kv_layout(num_blocks=1, block_size=16).block_bytes[0]
    # All rows together could fill 64 blocks.
    free_bytes = 60 * per_block

    def stats(limit_bytes: int) -> dict[str, int]:
        return {"bytes_limit": limit_bytes + 700, "bytes_in_use": 700}

    program_bytes = create_runner(decoder, settings, 512, lambda: None).program_bytes()
    assert program_bytes > 0
    runner = create_runner(decoder, settings, 512, lambda: stats(free_bytes + program_bytes))
    assert runner.num_blocks == int(free_bytes * ACCELERATOR_SHARE) // per_block - 1
    configured = dataclasses.replace(settings, kv_memory_bytes=40 * per_block)
    assert create_runner(decoder, configured, 512, lambda: stats(0)).num_blocks == 39


@pytest.mark.parametrize(("mode", "most"), [("auto", 8), ("off", 2)])
def test_programs_have_room_for_drafts_unless_these_are_off(mode: str, most: int) -> None:
    settings = dataclasses.replace(
        SETTINGS, max_num_seqs=2, speculation=SpeculationMode(mode), kv_memory_bytes=2**20
    )
    decoder = tiny_decoder()
    assert create_runner(decoder, settings, 64, lambda: None).decode_rows[-1] == most


def test_a_loaded_engine_shows_in_its_metrics_and_offer_what_it_computes_with(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path, {**TINY_LLAMA, "vocab_size": 300})
    (tmp_path / "tokenizer.json").write_text(byte_level_tokenizer().serialized(), encoding="utf-8")
    metrics = EngineMetrics()
    settings = dataclasses.replace(
        SETTINGS,
        path=tmp_path,
        dtype="float32",
        kv_dtype="int8",
        kv_memory_bytes=2**20,
        max_model_len=64,
        max_num_seqs=2,
        max_num_batched_tokens=8,
        speculation=SpeculationMode.OFF,
    )
    served = load_model(settings, lambda *_: None, metrics)
    served.engine.close()
    shown = {
        (sample.name, *(value for _, value in sample.labels))
        for sample in metrics.registry.message().samples
        if sample.name.endswith("_info")
    }
    places = served.offer.placements
    assert {place.block for place in places} == {"embedding", "attention", "mlp", "head"}
    assert shown == {
        *(("penstock_engine_blocks_info", place.block, place.backend) for place in places),
        ("penstock_engine_types_info", "weights", "float32"),
        ("penstock_engine_types_info", "kv", "int8"),
    }
    assert served.offer.kv_dtype == "int8, one scale a token and key head"
