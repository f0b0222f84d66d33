"""The demo model itself: a small Llama decoder as pure JAX functions over a flat dict of arrays."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

Params = dict[str, jax.Array]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the decoder; the names are those of Hugging Face's `LlamaConfig`."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    head_dim: int = 64
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048

    def to_hf_config(self, *, bos_id: int, eos_id: int, pad_id: int) -> dict[str, object]:
        """The `config.json` that transformers and the engine read."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos_id,
            "dtype": "bfloat16",
            "eos_token_id": eos_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_attention_heads,
            "pad_token_id": pad_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }

    @classmethod
    def from_hf_config(cls, path: Path) -> "ModelShape":
        """Reads back what `to_hf_config` wrote."""
        config = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


def layer_name(layer: int, part: str) -> str:
    """The checkpoint name of one weight of one layer, such as `self_attn.q_proj`."""
    return f"model.layers.{layer}.{part}.weight"


def weight_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every weight by its Hugging Face name; matrices are [out, in] as in the checkpoint."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads = shape.num_attention_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab_size, hidden)}
    for layer in range(shape.num_hidden_layers):
        name = partial(layer_name, layer)
        for part in ("q_proj", "k_proj", "v_proj"):
            shapes[name(f"self_attn.{part}")] = (heads, hidden)
        shapes[name("self_attn.o_proj")] = (hidden, heads)
        shapes[name("mlp.gate_proj")] = (inner, hidden)
        shapes[name("mlp.up_proj")] = (inner, hidden)
        shapes[name("mlp.down_proj")] = (hidden, inner)
        shapes[name("input_layernorm")] = (hidden,)
        shapes[name("post_attention_layernorm")] = (hidden,)
    shapes[FINAL_NORM] = (hidden,)
    return shapes


def init_params(shape: ModelShape, seed: int) -> Params:
    """Float32 weights: norms at one, matrices normal, those that write to the residual smaller."""
    params: Params = {}
    key = jax.random.key(seed)
    residual_scale = (2 * shape.num_hidden_layers) ** -0.5
    for index, (name, dims) in enumerate(weight_shapes(shape).items()):
        if len(dims) == 1:
            params[name] = jnp.ones(dims, jnp.float32)
            continue
        std = 0.02 if name == EMBEDDING else dims[1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            std *= residual_scale
        noise = jax.random.normal(jax.random.fold_in(key, index), dims, jnp.float32)
        params[name] = std * noise
    return params


@jax.custom_vjp
def linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x [..., in] @ weight.T [in, out]` with bfloat16 operands and a float32 result."""
    return _dot(x, weight, x.ndim - 1, 1)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(
        a.astype(jnp.bfloat16),
        b.astype(jnp.bfloat16),
        (((axis_a,), (axis_b,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _linear_forward(
    x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    low = x.astype(jnp.bfloat16)
    return linear(low, weight), (low, weight)


def _linear_backward(
    saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    grad_x = _dot(grad, weight, grad.ndim - 1, 0)
    # XLA on a CPU is fast only for row-major products, so the transpose is made in memory first.
    grad_rows = grad.astype(jnp.bfloat16).reshape(-1, grad.shape[-1])
    grad_columns = jax.lax.optimization_barrier(grad_rows.T)  # type: ignore[no-untyped-call]
    grad_weight = _dot(grad_columns, x.reshape(-1, x.shape[-1]), 1, 0)
    return grad_x, grad_weight


linear.defvjp(_linear_forward, _linear_backward)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotates `x [B, T, H, D]` by `positions [B, T]`, in the half-split order of Llama."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Softmax attention: q `[B, T, H, D]`, k and v `[B, S, H, D]`, visible `[B, T, S]` bool."""
    low = jnp.bfloat16
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum(
        "bthd,bshd->bhts",
        (q * scale).astype(low),
        k.astype(low),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(visible[:, None], scores, -1e9)
    weights = jax.nn.softmax(scores, axis=-1).astype(low)
    return jnp.einsum("bhts,bshd->bthd", weights, v.astype(low), preferred_element_type=jnp.float32)


def forward(
    params: Mapping[str, jax.Array],
    shape: ModelShape,
    token_ids: jax.Array,
    positions: jax.Array,
    visible: jax.Array,
    cache: list[tuple[jax.Array, jax.Array]] | None = None,
    cache_slot: jax.Array | None = None,
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Final hidden states `[B, T, hidden]` and the keys and values of each layer.

    Args:
        params: weights by checkpoint name.
        shape: sizes of the decoder.
        token_ids: `[B, T]`.
        positions: `[B, T]`, for the rotary embedding.
        visible: `[B, T, S]`, what each token may attend to; S is T, or the cache's length.
        cache: for decoding, `[B, S, H, D]` keys and values of each layer.
        cache_slot: the slot of `cache` where these tokens' keys and values are written.
    """
    batch, length = token_ids.shape
    heads = (batch, length, shape.num_attention_heads, shape.head_dim)
    x = params[EMBEDDING][token_ids].astype(jnp.float32)
    keys_and_values = []
    for layer in range(shape.num_hidden_layers):
        weight = {part: params[layer_name(layer, part)] for part in _PARTS}
        h = rms_norm(x, weight["input_layernorm"], shape.rms_norm_eps)
        q = rope(linear(h, weight["self_attn.q_proj"]).reshape(heads), positions, shape.rope_theta)
        k = rope(linear(h, weight["self_attn.k_proj"]).reshape(heads), positions, shape.rope_theta)
        v = linear(h, weight["self_attn.v_proj"]).reshape(heads)
        if cache is not None and cache_slot is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[layer][0], k, cache_slot, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[layer][1], v, cache_slot, axis=1)
        keys_and_values.append((k, v))
        mixed = attend(q, k, v, visible).reshape(batch, length, -1)
        x = x + linear(mixed, weight["self_attn.o_proj"])
        h = rms_norm(x, weight["post_attention_layernorm"], shape.rms_norm_eps)
        gate = jax.nn.silu(linear(h, weight["mlp.gate_proj"]))
        x = x + linear(gate * linear(h, weight["mlp.up_proj"]), weight["mlp.down_proj"])
    return rms_norm(x, params[FINAL_NORM], shape.rms_norm_eps), keys_and_values


_PARTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def logits(params: Mapping[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """Scores over the vocabulary `[..., vocab]`; the head is the embedding table."""
    return linear(hidden, params[EMBEDDING])


def save_weights(params: Mapping[str, jax.Array], path: Path) -> None:
    """Writes bfloat16 safetensors that Hugging Face's `LlamaForCausalLM` accepts."""
    low = {name: np.asarray(value.astype(jnp.bfloat16)) for name, value in params.items()}
    save_file(low, path, metadata={"format": "pt"})
    path.chmod(0o644)


def load_weights(path: Path) -> Params:
    """Reads a checkpoint written by `save_weights`, as float32."""
    return {name: jnp.asarray(value, jnp.float32) for name, value in load_file(path).items()}
