"""What a model will take of memory, told from its config and the size of its files alone.

The engine asks again, by each of its weights, before it loads them; this is told before a download.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from penstock.errors import ModelError
from penstock.gguf_source import STORED_BYTES
from penstock.recurrent_states import (
    CONVOLUTION,
    LINEAR,
    MAMBA,
    OLMO_HYBRID,
    UNTOLD,
    CacheChoice,
    has_delta_nets,
    states_bytes,
)

QUANT_METHODS = {
    "awq": 4,
    "gptq": 4,
    "compressed-tensors": 8,
    "fp8": 8,
    "fbgemm_fp8": 8,
    "mxfp4": 4,
    "bitsandbytes": 4,
    "auto-round": 4,
    "modelopt": 8,
    "mlx": 4,
}
"""Those that the engine reads, and the bits of most of their weights where the config is silent."""
OLD_METHODS = {"intel/auto-round": "auto-round"}
"""What old files call some of them."""
_KEPT_METHODS = ("awq", "gptq", "compressed-tensors", "mxfp4", "auto-round", "modelopt")
"""Those whose weights may stay as they are."""
_MLX: Final = "quantization"
_MOST_BITS_OF_MLX: Final = 4
"""Of weights that may stay as they are."""
_KV_BITS = {"float32": 32, "bfloat16": 16, "int8": 9}
"""Of a number in the KV cache; of int8 with scales as for heads 32 wide."""
_BITS_BY_WEIGHT = {"int8": 8, "int4": 5}
"""Scales of groups and rows included."""
_LEAST_CONTEXT = 2048
"""Tokens: with less than that nobody serves a model; what it was made for need not fit."""
_MAX_LAYERS = 1024
"""As the engine has it: nothing is made for more of them than that."""
_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_MLP, _EXPERTS = "mlp", "moe"
_WITHOUT_TOKENS = (LINEAR, CONVOLUTION, MAMBA, _MLP, _EXPERTS)
"""Kinds of layers that keep nothing of each token."""
_KIND_OF_LETTER = {"M": MAMBA, "-": _MLP, "E": _EXPERTS}
"""In `hybrid_override_pattern`, which has a letter for each layer; others see everything."""
_MAMBA_UNLESS_SAID = ("bamba", "granitemoehybrid")
"""Model types of whose layers only those attend that a config names."""
_WINDOW = "sliding_window"
_QWEN = {"use_sliding_window": False, _WINDOW: 4096, "max_window_layers": 28}
_QWEN3, _QWEN3_MOE = _QWEN | {"head_dim": 128}, _QWEN | {"num_key_value_heads": 4}
_QWEN_HYBRID = {"num_key_value_heads": 2, "head_dim": 256}
_GLM = {"num_key_value_heads": 2, "head_dim": 128}
_UNSAID: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        _WINDOW: 4096,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "num_hidden_layers": 26,
        "max_position_embeddings": 131_072,
        _WINDOW: 4096,
        "sliding_window_pattern": 6,
    },
    "gemma3n_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "num_hidden_layers": 35,
        "num_kv_shared_layers": 15,
        "max_position_embeddings": 32_768,
        _WINDOW: 512,
        "sliding_window_pattern": 5,
    },
    "gemma4_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_hidden_layers": 30,
        "max_position_embeddings": 131_072,
        _WINDOW: 512,
        "sliding_window_pattern": 6,
    },
    "mistral": {"num_key_value_heads": 8, _WINDOW: 4096},
    "mistral3": {
        "hidden_size": 5120,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_hidden_layers": 40,
        "max_position_embeddings": 131_072,
    },
    "ministral": {"num_key_value_heads": 8, _WINDOW: 4096},
    "ministral3": {"num_key_value_heads": 8, "head_dim": 128},
    "mixtral": {"num_key_value_heads": 8},
    "qwen2": _QWEN,
    "qwen2_vl": _QWEN,
    "qwen2_vl_text": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen2_5_vl_text": _QWEN,
    "qwen2_moe": _QWEN | {"num_key_value_heads": 16},
    "qwen3": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "smollm3": {"num_key_value_heads": 4, "use_sliding_window": False},
    "cohere2": {_WINDOW: 4096, "sliding_window_pattern": 4},
    "gpt_oss": {
        "num_key_value_heads": 8,
        "head_dim": 64,
        _WINDOW: 128,
        "sliding_window_pattern": 2,
    },
    "olmo3": {_WINDOW: 4096, "sliding_window_pattern": 4},
    "starcoder2": {"num_key_value_heads": 2},
    "glm4_moe": {"num_key_value_heads": 8},
    "ernie4_5_moe": {"num_key_value_heads": 4},
    "lfm2": {"num_key_value_heads": 8},
    "lfm2_moe": {"num_key_value_heads": 8},
    "llama4_text": {"num_key_value_heads": 8, "head_dim": 128, "attention_chunk_size": 8192},
    "glm": _GLM,
    "glm4": _GLM,
    "ernie4_5": _GLM,
    "seed_oss": {"num_key_value_heads": 8, "head_dim": 128},
    "nemotron_h": {"head_dim": 128},
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_text": _QWEN_HYBRID | {"num_key_value_heads": 4},
    "qwen3_5_moe_text": _QWEN_HYBRID,
}
"""By model type: sizes that configs leave out, because transformers' own are so.

As the engine takes them; of a window null says that there is none.
"""
_GEMMA4 = "gemma4_text"
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
_TOWERS = ("vision_config", "audio_config")
_MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class MemoryEstimate:
    """What a model will take, bytes.

    Attributes:
        weights_bytes: The checkpoint's tensors as the engine holds them.
        kv_bytes: The KV cache of one sequence of `num_tokens`.
        num_tokens: Of context: as asked for, else few, because the engine cuts a model's own
            context to what fits.
        states_bytes: Of recurrent layers, beside it and for all requests that run at once.
        num_requests: That run at once: as asked for, else one, because the engine lets as many run
            as have room.
    """

    weights_bytes: int
    kv_bytes: int
    num_tokens: int
    states_bytes: int = 0
    num_requests: int = 1

    @property
    def total_bytes(self) -> int:
        """Weights, KV and states together."""
        return self.weights_bytes + self.kv_bytes + self.states_bytes


def estimate_memory(
    config: Mapping[str, Any],
    checkpoint_bytes: int,
    *,
    dtype: str,
    max_model_len: int | None,
    keeps_stored: bool = False,
    kv_dtype: str = "auto",
    cache: CacheChoice = UNTOLD,
) -> MemoryEstimate:
    """What a checkpoint takes once loaded.

    Args:
        config: The checkpoint's `config.json`.
        checkpoint_bytes: Sum of its safetensors files; a quantised one's weights become wider.
        dtype: `auto` keeps the checkpoint's; `float32` doubles a 16-bit one, `int8` halves it.
        max_model_len: Tokens of context to hold; None is as many as memory has room for, of which
            few are counted.
        keeps_stored: Quantised weights may stay as they are (`auto` on the native kernels). Which
            of them do is for the engine to say, which refuses what doesn't fit then: this is the
            least that they take.
        kv_dtype: Of keys and values, as the engine is told.
        cache: What else the engine is told of its cache.

    Raises:
        ValueError: A value of the config can't be.
    """
    text = _text_config(config)
    stored = str(text.get("dtype") or text.get("torch_dtype") or "float32")
    is_half = stored in ("bfloat16", "float16")
    widening = 2 if dtype == "float32" and is_half else 1
    stored_bits = 16 if is_half else 32
    checkpoint_bytes -= min(checkpoint_bytes // 2, _tower_values(config) * stored_bits // 8)
    bits = _quantised_bits(text) or stored_bits
    weights_bytes = checkpoint_bytes * _BITS_BY_WEIGHT.get(dtype, stored_bits * widening)
    stored_bytes = text.get(STORED_BYTES)
    if stored_bytes is None and _is_kept(text, bits):
        stored_bytes = checkpoint_bytes
    if keeps_stored and stored_bytes is not None:
        weights_bytes = min(weights_bytes, int(stored_bytes) * bits)
    longest = max(1, int(text.get("max_position_embeddings") or _LEAST_CONTEXT))
    length = max_model_len or min(longest, _LEAST_CONTEXT)
    kv_bits = _KV_BITS.get(kv_dtype, _KV_BITS["bfloat16"] * widening)
    kinds = _kinds_of_layers(text)
    kv_bytes = _cached_values(text, kinds, length) * kv_bits // 8
    # By that the engine chooses how many tokens have a block, and a state.
    token_bits = _KV_BITS.get(kv_dtype if kv_dtype == "int8" else "bfloat16", 16)
    token_bytes = _cached_values(text, kinds, 1) * token_bits // 8
    states = states_bytes(text, kinds, length, token_bytes, cache)
    return MemoryEstimate(
        weights_bytes // bits, kv_bytes, length, states, cache.num_requests if states else 1
    )


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the text model, which may be part of one that also sees or hears."""
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    said = {name: value for name, value in inner.items() if value is not None or name == _WINDOW}
    whole = {**config, **said}
    whole |= {usual: whole[name] for name, usual in _GPT2_NAMES.items() if name in whole}
    model_type = str(whole.get("model_type"))
    if inner and model_type == "mistral":
        model_type = "mistral3"
    for name, value in _UNSAID.get(model_type, {}).items():
        if whole.get(name) is None and not (name == _WINDOW and _WINDOW in whole):
            whole[name] = value
    return whole


def _tower_values(config: Mapping[str, Any]) -> int:
    """Numbers in the layers of what sees and hears, which are in the files and aren't loaded.

    Of attention and MLP alone: the least that they have.
    """
    total = 0
    for name in _TOWERS:
        tower = config.get(name)
        if not isinstance(tower, dict):
            continue
        width = int(tower.get("hidden_size") or 0)
        inner = int(tower.get("intermediate_size") or 0)
        num_layers = int(tower.get("num_hidden_layers") or tower.get("depth") or 0)
        total += num_layers * (4 * width * width + 2 * width * inner)
    return total


def _cached_values(config: Mapping[str, Any], kinds: Sequence[str], length: int) -> int:
    """Numbers that all layers together keep of the tokens of one sequence."""
    # The last layers may read the keys of those before them.
    kinds = kinds[: len(kinds) - int(config.get("num_kv_shared_layers") or 0)]
    width = config.get(_WINDOW) if config.get("use_sliding_window", True) else None
    window = min(length, max(1, int(width or length)))
    chunk = min(length, max(1, int(config.get("attention_chunk_size") or length)))
    tokens = {_SLIDING: window, _CHUNKED: chunk, **dict.fromkeys(_WITHOUT_TOKENS, 0)}
    return sum(
        tokens.get(kind, length) * _values_of_a_token(config, index, kind)
        for index, kind in enumerate(kinds)
    )


def _kinds_of_layers(config: Mapping[str, Any]) -> list[str]:
    """What each layer is, where the config says so in any of the ways that there are."""
    num_layers = int(config.get("num_hidden_layers") or 0)
    if num_layers > _MAX_LAYERS:
        raise ValueError(f"{num_layers} layers are more than {_MAX_LAYERS}")
    kinds, model_type = _listed_kinds(config, num_layers), config.get("model_type")
    # Whatever is said of Gemma 4's last one, and of OLMo's where no other one attends.
    is_full = model_type == _GEMMA4 or (model_type == OLMO_HYBRID and _FULL not in kinds)
    return [*kinds[:-1], _FULL] if is_full and kinds else kinds


def _listed_kinds(config: Mapping[str, Any], num_layers: int) -> list[str]:
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [_KIND_OF_LETTER.get(letter, _FULL) for letter in pattern]
    for name in ("layer_types", "layers_block_type"):
        kinds = config.get(name)
        if isinstance(kinds, list):
            is_whole = len(kinds) == (num_layers or len(kinds))
            return [str(kind) for kind in kinds] if is_whole else [_FULL] * num_layers
    for name, other in (("attn_layer_indices", MAMBA), ("full_attn_idxs", CONVOLUTION)):
        attending = config.get(name)
        if isinstance(attending, list) and attending:
            return [_FULL if index in attending else other for index in range(num_layers)]
    if config.get("model_type") in _MAMBA_UNLESS_SAID:
        return [MAMBA] * num_layers
    turns = config.get("no_rope_layers")
    if config.get("attention_chunk_size") and isinstance(turns, list) and turns:
        return [_CHUNKED if turn else _FULL for turn in turns[:num_layers]]
    if has_delta_nets(config):
        return _between(LINEAR, config.get("full_attention_interval") or 4, num_layers)
    if config.get("attention_chunk_size"):
        return _between(_CHUNKED, config.get("no_rope_layer_interval") or 4, num_layers)
    if config.get(_WINDOW) and config.get("use_sliding_window", True):
        return _windowed(config, num_layers)
    return [_FULL] * num_layers


def _between(kind: str, period: Any, num_layers: int) -> list[str]:
    """Every `period`-th layer sees everything, the others are of a kind."""
    return [kind if (index + 1) % int(period) else _FULL for index in range(num_layers)]


def _windowed(config: Mapping[str, Any], num_layers: int) -> list[str]:
    """Which layers have a window, where the config only says that some have."""
    first, turns = int(config.get("max_window_layers") or 0), config.get("no_rope_layers")
    match config.get("model_type"):
        case "qwen2_moe":
            kinds = [index < first and index % 2 == 0 for index in range(num_layers)]
        case "smollm3" if isinstance(turns, list):
            kinds = [not turn for turn in turns[:num_layers]]
        case "smollm3":
            interval = int(config.get("no_rope_layer_interval") or 4)
            kinds = [(index + 1) % interval == 0 for index in range(num_layers)]
        case "qwen3_moe" | "qwen3_vl_moe_text":
            kinds = [True] * num_layers
        case _ if "max_window_layers" in config:
            kinds = [index >= first for index in range(num_layers)]
        case _:
            # Without a period no layer sees everything.
            period = config.get("sliding_window_pattern") or num_layers + 1
            return _between(_SLIDING, period, num_layers)
    return [_SLIDING if is_sliding else _FULL for is_sliding in kinds]


def _values_of_a_token(config: Mapping[str, Any], index: int, kind: str) -> int:
    """Numbers that a layer keeps of each token: keys and values, or what they are made of (MLA)."""
    if config.get("kv_lora_rank"):
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    num_heads = int(config.get("num_attention_heads") or 1)
    head_dim = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // num_heads)
    num_keys = int(config.get("num_key_value_heads") or num_heads)
    by_layer = config.get("per_layer_config")
    if kind == _FULL and config.get("global_head_dim") and by_layer is None:
        head_dim = int(config["global_head_dim"])
        if config.get("attention_k_eq_v"):
            num_keys = int(config.get("num_global_key_value_heads") or num_keys)
    own = (by_layer or {}).get(str(index)) or {}
    num_keys = int(own.get("num_key_value_heads") or num_keys)
    head_dim = int(own.get("head_dim") or head_dim)
    return 2 * num_keys * head_dim


def _quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a quantiser said, with the name of its method; empty where none did."""
    found, of_mlx = (config.get(name) for name in ("quantization_config", _MLX))
    # As compressed-tensors called it in its first versions.
    found = config.get("compression_config") if found is None else found
    if isinstance(found, dict) and found.get("quant_method") is not None:
        method = str(found["quant_method"])
        return {**found, "quant_method": OLD_METHODS.get(method, method)}
    # MLX writes both, and its name into neither.
    return {**of_mlx, "quant_method": "mlx"} if isinstance(of_mlx, dict) else {}


def _is_kept(config: Mapping[str, Any], bits: int) -> bool:
    """Whether the engine may keep most weights as they are."""
    method = _quantization(config).get("quant_method")
    if method == "mlx":
        return bits <= _MOST_BITS_OF_MLX
    return method in _KEPT_METHODS


def quant_method_of(config: Mapping[str, Any]) -> str | None:
    """How a checkpoint's weights are quantised, those of its text model where only these are."""
    method: str | None = _quantization(_text_config(config)).get("quant_method")
    return method


def _quantised_bits(config: Mapping[str, Any]) -> int | None:
    """Bits that a weight takes in the files of a quantised checkpoint, scales left out."""
    quantization = _quantization(config)
    if not quantization:
        return None
    bits = quantization.get("bits")
    for group in (quantization.get("config_groups") or {}).values():
        bits = bits or (group.get("weights") or {}).get("num_bits")
    if quantization.get("load_in_8bit"):
        bits = 8
    bits = int(bits or QUANT_METHODS.get(str(quantization["quant_method"]), 8))
    if not 1 <= bits <= 32:
        raise ValueError(f"weights of {bits} bits")
    return bits


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def require_memory(name: str, estimate: MemoryEstimate, available_bytes: int) -> None:
    """Refuse a model that can't fit.

    Raises:
        ModelError: With what it needs, what there is, and ways out.
    """
    if estimate.total_bytes <= available_bytes * _MEMORY_SHARE:
        return
    states, lower, is_several = "", "--max-model-len", estimate.num_requests > 1
    if estimate.states_bytes:
        states = f", {_gigabytes(estimate.states_bytes)} states of its recurrent layers for " + (
            f"{estimate.num_requests} requests at once" if is_several else "one request"
        )
    if is_several:
        lower = "--max-num-seqs or --max-model-len"
    raise ModelError(
        f"{name} needs about {_gigabytes(estimate.total_bytes)} of memory "
        f"({_gigabytes(estimate.weights_bytes)} weights, {_gigabytes(estimate.kv_bytes)} KV cache "
        f"for {estimate.num_tokens} tokens{states}) and {_gigabytes(available_bytes)} are free. "
        f"Lower {lower}, use --dtype bfloat16, int8 or (on the native kernels) int4, or choose a "
        "smaller model."
    )
