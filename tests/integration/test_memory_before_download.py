"""What is told of a model's cache before a download is what its engine then makes."""

import copy
from pathlib import Path
from typing import Any

import pytest

from engine_worker.compute.backends.kv_layout import LayerStateShapes
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.families.registry import FAMILIES
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.config import ModelSettings
from engine_worker.errors import ModelConfigError
from engine_worker.loading.cache_shape import cache_shape_of
from penstock.gguf_source import config_of
from penstock.memory_estimate import estimate_memory
from penstock.recurrent_states import CacheChoice
from tests.fakes.gguf_case import GgufCase
from tests.fakes.gguf_families import GGUF_FAMILIES
from tests.fakes.gguf_files import write_gguf
from tests.fakes.late import transformers
from tests.fakes.model_families import CASES
from tests.fakes.published_models import PUBLISHED
from tests.fakes.tiny_checkpoint import random_tensors, write_checkpoint


def cached_values(spec: DecoderSpec, num_tokens: int) -> int:
    """Numbers that the engine keeps of one sequence."""
    total = 0
    for layer in spec.layers:
        if not layer.is_attention or layer.attention.shared_from is not None:
            continue
        attention = layer.attention
        widths = [width for width in (attention.window, attention.chunk) if width is not None]
        of_token = 2 * attention.kv_size
        if attention.latent is not None:
            of_token = attention.kv_size + attention.latent.kv_rank
        total += min([num_tokens, *widths]) * of_token
    return total


def cached_states(spec: DecoderSpec, num_tokens: int, choice: CacheChoice) -> int:
    """Bytes of all states that the engine keeps where one sequence fills its blocks."""
    settings = ModelSettings(
        path=Path("/m"), name="m", block_size=choice.block_size, max_num_seqs=choice.num_requests
    )
    shape = cache_shape_of(settings, XlaBackend(declare(spec, "bfloat16")))
    layout = shape.layout(shape.blocks_of_request(num_tokens))
    return layout.ring_bytes + sum(
        (layout.num_blocks[group] + 1) * layer.size_bytes
        for layer, group in zip(layout.layers, layout.groups.of_layer, strict=True)
        if isinstance(layer, LayerStateShapes)
    )


def config_of_case(name: str) -> dict[str, Any]:
    case = CASES[name]
    config: dict[str, Any] = getattr(transformers, case.config)(**case.values).to_dict()
    config.pop("architectures", None)
    if case.wrapped_as:
        return {"architectures": [case.wrapped_as], "text_config": config}
    return config if case.outer is None else config | {"architectures": [case.model]}


PUBLISHED_CONFIGS = {
    model.name: {
        **model.config,
        "model_type": FAMILIES[model.config["architectures"][0]].model_type,
    }
    for model in PUBLISHED
    # Which says null where it has no window; what a family takes where nothing is said is another.
    if not model.name.startswith("Mistral ")
}


@pytest.mark.parametrize("name", [*CASES, *PUBLISHED_CONFIGS])
def test_the_cache_is_what_the_engine_makes_of_the_same_config(name: str) -> None:
    config = config_of_case(name) if name in CASES else PUBLISHED_CONFIGS[name]
    spec = decoder_spec(config)
    choices = (CacheChoice(), CacheChoice(num_requests=9), CacheChoice(block_size=16))
    for num_tokens, choice in zip((5, 100, 10_000), choices, strict=True):
        estimate = estimate_memory(
            config, 1000, dtype="auto", max_model_len=num_tokens, cache=choice
        )
        assert estimate.kv_bytes == 2 * cached_values(spec, num_tokens)
        states = cached_states(spec, num_tokens, choice) if spec.state_bytes else 0
        assert estimate.states_bytes == states
        assert estimate.total_bytes == estimate.weights_bytes + estimate.kv_bytes + states


LEFT_OUT = (
    *("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
    *("sliding_window_pattern", "num_key_value_heads", "head_dim", "global_head_dim"),
    *("num_kv_shared_layers", "no_rope_layers", "attention_chunk_size"),
)


@pytest.mark.parametrize("name", CASES)
def test_what_a_config_leaves_out_is_taken_as_the_engine_takes_it(name: str) -> None:
    """Gemma 4 without `layer_types` counted every layer in full, Qwen 2 a window in each."""
    whole = config_of_case(name)
    num_compared = 0
    for left_out in [(field,) for field in LEFT_OUT] + [("layer_types", f) for f in LEFT_OUT[1:]]:
        config = copy.deepcopy(whole)
        text = config.get("text_config") or config
        if not text.keys() >= set(left_out):
            continue
        for field in left_out:
            del text[field]
        try:
            spec = decoder_spec(config)
        except ModelConfigError:
            # The engine asks for it.
            continue
        if any(layer.is_attention for layer in spec.layers):
            estimate = estimate_memory(config, 1000, dtype="auto", max_model_len=100)
            assert estimate.kv_bytes == 2 * cached_values(spec, 100), left_out
            num_compared += 1
    assert num_compared or "layer_types" not in (whole.get("text_config") or whole)


RECURRENT_GGUF = [case for case in GGUF_FAMILIES if decoder_spec(dict(case.config)).state_bytes]


@pytest.mark.parametrize("case", RECURRENT_GGUF, ids=[case.arch for case in RECURRENT_GGUF])
def test_states_and_the_layers_that_attend_are_told_of_a_gguf_file(
    tmp_path: Path, case: GgufCase
) -> None:
    """Every layer counted as one that attends, and none had a state."""
    config = dict(case.config)
    spec = decoder_spec(config)
    write_checkpoint(tmp_path, config, case.spelled(random_tensors(config)))
    path = tmp_path / "m.gguf"
    write_gguf(path, tmp_path, arch=case.arch, convert=case.convert, more=case.more)
    told, size = config_of(path)
    choice = CacheChoice(block_size=32, num_requests=3)
    estimate = estimate_memory(told, size, dtype="auto", max_model_len=100, cache=choice)
    assert estimate.states_bytes == cached_states(spec, 100, choice)
    assert estimate.kv_bytes == 2 * cached_values(spec, 100)
