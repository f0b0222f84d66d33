"""A decoder whose config and tensors have names of their own, served by Penstock's blocks.

    .venv/bin/pip install ./examples/model_family
    .venv/bin/penstock serve ./my_model

where config.json of my_model names "TinyGlotForCausalLM" in `architectures`.

Its blocks are those of Llama with q|k|v in one tensor; what is new is how they are called.
"""

from collections.abc import Collection, Mapping
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    RopeSpec,
)
from engine_worker.compute.models.tensors import Source, Tensors

_INNER_WIDTHS = 4


def read(config: Mapping[str, Any]) -> DecoderSpec:
    """`config.json` of a TinyGlot: width, depth, heads, length."""
    fields = ConfigFields(config)
    width, heads = fields.size("width"), fields.size("heads")
    if width % heads or width // heads % 2:
        raise fields.error("width", f"must be an even number for each of {heads} heads", width)
    head_dim = width // heads
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=RopeSpec(theta=fields.number("theta", 10_000.0)),
    )
    layer = LayerSpec(attention, MlpSpec(intermediate_size=_INNER_WIDTHS * width))
    return DecoderSpec(
        architecture="TinyGlotForCausalLM",
        vocab_size=fields.size("vocabulary"),
        hidden_size=width,
        layers=(layer,) * fields.size("depth", maximum=256),
        max_position_embeddings=fields.size("length"),
        norm_eps=1e-5,
        tied_head=fields.flag("tied", False),
    )


def tensors(spec: DecoderSpec, _names: Collection[str] = ()) -> Tensors:
    """Which tensors of the checkpoint fill each weight, in order."""
    width = spec.hidden_size
    table = (spec.vocab_size, width)
    sources: Tensors = {
        "embedding.weight": (Source("words.weight", table),),
        "norm.weight": (Source("last_norm.scale", (width,)),),
        "head.weight": (Source("out.weight", table),),
    }
    inner = _INNER_WIDTHS * width
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"blocks.{index}."
        sources |= {
            f"{ours}attention.norm.weight": (Source(f"{theirs}norm_1.scale", (width,)),),
            f"{ours}attention.qkv.weight": (Source(f"{theirs}qkv.weight", (3 * width, width)),),
            f"{ours}attention.o.weight": (Source(f"{theirs}mix.weight", (width, width)),),
            f"{ours}mlp.norm.weight": (Source(f"{theirs}norm_2.scale", (width,)),),
            f"{ours}mlp.gate_up.weight": (
                Source(f"{theirs}gate.weight", (inner, width)),
                Source(f"{theirs}up.weight", (inner, width)),
            ),
            f"{ours}mlp.down.weight": (Source(f"{theirs}down.weight", (width, inner)),),
        }
    return sources


FAMILIES = (Family("TinyGlotForCausalLM", "tiny_glot", read, tensors),)
