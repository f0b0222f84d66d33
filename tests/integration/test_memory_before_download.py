"""What is told of a model's cache before a download is what its engine then makes."""

from typing import Any

from engine_worker.compute.models.families.registry import FAMILIES
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.spec import DecoderSpec
from penstock.memory_estimate import estimate_memory
from tests.fakes.late import transformers
from tests.fakes.model_families import CASES
from tests.fakes.published_models import PUBLISHED


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


def test_the_cache_is_what_the_engine_makes_of_the_same_config() -> None:
    for name in (*CASES, *PUBLISHED_CONFIGS):
        config = config_of_case(name) if name in CASES else PUBLISHED_CONFIGS[name]
        spec = decoder_spec(config)
        for num_tokens in (5, 100, 10_000):
            estimate = estimate_memory(config, 1000, dtype="auto", max_model_len=num_tokens)
            assert estimate.kv_bytes == 2 * cached_values(spec, num_tokens), (name, num_tokens)
