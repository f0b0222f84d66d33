"""Refuses, by name, every value of a `DecoderSpec` that the decoder does not compute."""

from collections.abc import Iterator

from engine_worker.compute.models.rope import ropes_without_frequencies
from engine_worker.compute.models.spec import DecoderSpec, MlpSpec, MoeSpec
from engine_worker.compute.sampling.filters import MAX_VOCAB_SIZE
from engine_worker.errors import UnsupportedFeatureError


def check_supported(spec: DecoderSpec) -> None:
    """Raises when the decoder would compute something else than the spec says.

    Args:
        spec: The decoder to be declared.

    Raises:
        UnsupportedFeatureError: Names the architecture and each value that is not implemented.
    """
    found = dict.fromkeys(_unsupported(spec))
    if found:
        raise UnsupportedFeatureError(f"{spec.architecture}: not supported yet: {'; '.join(found)}")


def _unsupported(spec: DecoderSpec) -> Iterator[str]:
    if spec.vocab_size > MAX_VOCAB_SIZE:
        yield f"vocabulary of {spec.vocab_size} tokens (at most {MAX_VOCAB_SIZE})"
    for rope in ropes_without_frequencies(spec):
        yield (
            f"a rope ({rope.kind}) of base {rope.theta:g} and factor {rope.factor:g}, whose"
            " frequencies are no finite numbers"
        )
    for layer in spec.layers:
        if isinstance(layer.mlp, MoeSpec):
            yield from _unsupported_experts(layer.mlp)
        elif layer.mlp is not None:
            yield from _unsupported_mlp(layer.mlp)


def _unsupported_experts(moe: MoeSpec) -> Iterator[str]:
    for mlp in (moe.expert, moe.shared):
        if mlp is not None and mlp.gate_multiplier != 1.0:
            yield f"experts whose gate is multiplied by {mlp.gate_multiplier}"
        if mlp is not None and mlp.gate_cutoff is not None:
            yield "experts whose gate is cut by its deviation"


def _unsupported_mlp(mlp: MlpSpec) -> Iterator[str]:
    if mlp.clamp is not None:
        yield f"clamped MLP {mlp.clamp}"
    if mlp.up_offset:
        yield f"MLP with {mlp.up_offset} added to its up projection"
