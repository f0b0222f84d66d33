"""Which tensors of a checkpoint hold the experts of a decoder, in both of their spellings.

Before transformers 5 each expert has tensors of its own; since, all of a layer's may stand in one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from engine_worker.compute.models.spec import DecoderSpec, MlpSpec, MoeSpec
from engine_worker.compute.models.tensors import Source, TensorNames, Tensors, decoder_tensors

_FIRST_OF_MLX = "switch_mlp.gate_proj.0.weight"
"""One of a layer's experts as MLX's quantiser names them for every family, behind the block."""


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a family calls its experts; names follow `model.layers.0.`.

    Attributes:
        block: Where they are, with a dot at the end.
        gate, up, down: Of an expert, in `experts.0.`; none where all are always in one tensor.
        stacked: Gate and up, and down, of all experts [E, 2I, H] and [E, H, I]; several spellings,
            the usual one first.
        may_be_transposed: These may be [E, H, 2I] and [E, I, H] instead.
        router: The first that the checkpoint has.
        correction: As `router`.
        shared: With a dot at the end.
        shared_gate: Of the shared expert.
    """

    block: str = "mlp."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    stacked: tuple[tuple[str, str], ...] = (("experts.gate_up_proj", "experts.down_proj"),)
    may_be_transposed: bool = False
    router: tuple[str, ...] = ("gate.weight",)
    correction: tuple[str, ...] = ("gate.e_score_correction_bias",)
    correction_shape: Callable[[int], tuple[int, ...]] = lambda num_experts: (num_experts,)
    shared: str = "shared_experts."
    shared_gate: str = "shared_expert_gate.weight"


def tensors_with_experts(*spellings: ExpertNames) -> TensorNames:
    """A family's tensors: Llama's, but for the experts.

    Args:
        spellings: The usual one first; a checkpoint is read by the first whose block it has.
    """

    def tensors(spec: DecoderSpec, names: Collection[str]) -> Tensors:
        sources = decoder_tensors(spec, names)
        for index, layer in enumerate(spec.layers):
            if isinstance(layer.mlp, MoeSpec):
                ours, theirs = f"layers.{index}.", f"model.layers.{index}."
                spelling = _spelling(spellings, theirs, names)
                sources |= expert_tensors(
                    ours, theirs, layer.mlp, spec.hidden_size, spelling, names
                )
        return sources

    return tensors


def _spelling(
    spellings: tuple[ExpertNames, ...], theirs: str, names: Collection[str]
) -> ExpertNames:
    for spelling in spellings:
        routers = (f"{theirs}{spelling.block}{router}" for router in spelling.router)
        if any(router in names for router in routers):
            return spelling
    return spellings[0]


def expert_tensors(
    ours: str,
    theirs: str,
    moe: MoeSpec,
    hidden: int,
    spelling: ExpertNames,
    names: Collection[str],
) -> Tensors:
    """The block of experts of a layer.

    Args:
        ours: Prefix of the layer's weights, `layers.0.`.
        theirs: Prefix of the layer's tensors, `model.layers.0.`.
        moe: The layer's.
        hidden: Width of the residual.
        spelling: Of the family.
        names: Of all tensors; empty where the usual ones are wanted.
    """
    ours, block = f"{ours}mlp.", f"{theirs}{spelling.block}"
    num_experts, inner = moe.num_experts, moe.expert.intermediate_size
    sources: Tensors = {
        f"{ours}norm.weight": (Source(f"{theirs}post_attention_layernorm.weight", (hidden,)),),
        f"{ours}router.weight": (
            Source(_present(block, spelling.router, names), (num_experts, hidden)),
        ),
        f"{ours}correction_bias": (
            Source(
                _present(block, spelling.correction, names), spelling.correction_shape(num_experts)
            ),
        ),
        f"{ours}shared_gate.weight": (Source(f"{block}{spelling.shared_gate}", (1, hidden)),),
    }
    if moe.shared is not None:
        sources |= _shared_tensors(
            f"{ours}shared.", f"{block}{spelling.shared}", moe.shared, hidden
        )
    stacked = next((pair for pair in spelling.stacked if f"{block}{pair[0]}" in names), None)
    is_of_mlx = f"{block}{_FIRST_OF_MLX}" in names
    if stacked is None and not spelling.gate and not is_of_mlx:
        # Where none is there, the usual one is what is missing.
        stacked = spelling.stacked[0]
    if stacked is not None:
        gate_up, down = stacked
        turned = spelling.may_be_transposed
        wide, narrow = (num_experts, 2 * inner, hidden), (num_experts, hidden, inner)
        return sources | {
            f"{ours}gate_up.weight": (Source(f"{block}{gate_up}", wide, may_be_transposed=turned),),
            f"{ours}down.weight": (Source(f"{block}{down}", narrow, may_be_transposed=turned),),
        }
    name = f"{block}experts.{{expert}}.{{name}}.weight"
    gate, up, down = spelling.gate, spelling.up, spelling.down
    if is_of_mlx:
        name = f"{block}switch_mlp.{{name}}.{{expert}}.weight"
        gate, up, down = "gate_proj", "up_proj", "down_proj"
    return sources | {
        f"{ours}gate_up.weight": tuple(
            Source(name.format(expert=expert, name=part), (inner, hidden))
            for expert in range(num_experts)
            for part in (gate, up)
        ),
        f"{ours}down.weight": tuple(
            Source(name.format(expert=expert, name=down), (hidden, inner))
            for expert in range(num_experts)
        ),
    }


def _present(block: str, spellings: tuple[str, ...], names: Collection[str]) -> str:
    found = (f"{block}{name}" for name in spellings)
    return next((name for name in found if name in names), f"{block}{spellings[0]}")


def _shared_tensors(ours: str, block: str, mlp: MlpSpec, hidden: int) -> Tensors:
    inner, fused = mlp.intermediate_size, ("gate_proj", "up_proj")
    return {
        f"{ours}gate_up.weight": tuple(
            Source(f"{block}{name}.weight", (inner, hidden)) for name in fused
        ),
        f"{ours}gate_up.bias": tuple(Source(f"{block}{name}.bias", (inner,)) for name in fused),
        f"{ours}down.weight": (Source(f"{block}down_proj.weight", (hidden, inner)),),
        f"{ours}down.bias": (Source(f"{block}down_proj.bias", (hidden,)),),
    }
