"""The configs of decoders with recurrent layers, in their older and newer spellings."""

from typing import Any

import pytest

from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.recurrent.specs import ShortConvSpec
from engine_worker.compute.models.spec import MlpSpec
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

# Of LiquidAI/LFM2-350M, as it was published first.
LFM2: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 1024,
    "block_ff_dim": 6656,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "conv_bias": False,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5],
    "hidden_size": 1024,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_hidden_layers": 6,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "tie_embedding": True,
    "vocab_size": 65536,
}


def test_lfm2_says_which_layers_attend_and_how_wide_its_mlp_is_after_adjustment() -> None:
    spec = decoder_spec(LFM2)
    assert [layer.is_attention for layer in spec.layers] == [False, False, True] * 2
    assert spec.layers[0].mixer == ShortConvSpec(channels=1024, kernel_size=3)
    assert spec.layers[0].mlp == MlpSpec(4608)
    assert spec.tied_head
    assert spec.state_bytes == 4 * 2 * 1024 * 4
    rope = spec.layers[2].attention.rope
    assert rope is not None
    assert rope.theta == 1_000_000.0


def test_lfm2_in_the_newer_spelling_is_the_same_decoder() -> None:
    kinds = ["conv", "conv", "full_attention"] * 2
    newer = {
        key: value
        for key, value in LFM2.items()
        if key not in {"full_attn_idxs", "block_ff_dim", "tie_embedding", "rope_theta"}
    } | {
        "layer_types": kinds,
        "intermediate_size": 6656,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }
    assert decoder_spec(newer) == decoder_spec(LFM2)
    exact = decoder_spec(newer | {"block_auto_adjust_ff_dim": False})
    assert exact.layers[0].mlp == MlpSpec(6656)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer_types": ["conv"]}, ModelConfigError, "must name all 6 layers"),
        ({"layer_types": ["mamba"] * 6}, UnsupportedFeatureError, "'mamba'"),
        ({"conv_L_cache": 1}, ModelConfigError, "conv_L_cache"),
        ({"conv_L_cache": 10**6}, ModelConfigError, "conv_L_cache"),
        ({"full_attn_idxs": ["2"]}, ModelConfigError, "full_attn_idxs"),
    ],
)
def test_what_an_lfm2_config_may_not_say_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder_spec(LFM2 | changes)
