"""What a family of encoders is to the rest of the engine."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderSpec, HeadSpec

EncoderTensors = Callable[[EncoderSpec, str, Collection[str]], Tensors]
"""From an encoder, what stands before its tensors' names, and all names in the checkpoint, to what
fills each weight."""


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """The encoders of one `model_type`.

    Attributes:
        title: For people and the page of models.
        model_types: In `config.json`.
        prefixes: What may stand before tensors' names in checkpoints with a head, `bert.`.
        embedding: The tensor of the token table, behind the prefix: it tells whether a checkpoint
            has the prefix.
        read: From the whole `config.json` to the spec, without the head. Raises `ModelConfigError`
            for a value that contradicts itself and `UnsupportedFeatureError` for one without a
            meaning here.
        tensors: What fills the weights.
        head_of: The classifier's shape, for so many labels.
        fitted: The encoder as a checkpoint of these names has it, where the config doesn't tell two
            kinds apart.
    """

    title: str
    model_types: tuple[str, ...]
    prefixes: tuple[str, ...]
    embedding: str
    read: Callable[[Mapping[str, Any]], EncoderSpec]
    tensors: EncoderTensors
    head_of: Callable[[Mapping[str, Any], int], HeadSpec]
    fitted: Callable[[EncoderSpec, Collection[str]], EncoderSpec] = lambda spec, _: spec

    def prefix_in(self, names: Collection[str]) -> str:
        """What stands before the encoder's tensors in a checkpoint of these names."""
        found = (prefix for prefix in self.prefixes if f"{prefix}{self.embedding}" in names)
        return next(found, "")


def pair(ours: str, theirs: str, shape: tuple[int, ...], *, bias: bool = True) -> Tensors:
    """A weight and its bias."""
    found: Tensors = {f"{ours}.weight": (Source(f"{theirs}.weight", shape),)}
    if bias:
        found[f"{ours}.bias"] = (Source(f"{theirs}.bias", shape[:1]),)
    return found


def joined(
    ours: str, theirs: tuple[str, ...], shape: tuple[int, ...], *, bias: bool = True
) -> Tensors:
    """A weight that joins several tensors of one shape along their first axis, and its bias."""
    found: Tensors = {f"{ours}.weight": tuple(Source(f"{one}.weight", shape) for one in theirs)}
    if bias:
        found[f"{ours}.bias"] = tuple(Source(f"{one}.bias", shape[:1]) for one in theirs)
    return found


def norm(
    ours: str, theirs: str, size: int, names: Collection[str], *, bias: bool = True
) -> Tensors:
    """A LayerNorm; checkpoints from TensorFlow call its weight and bias gamma and beta."""
    is_old = f"{theirs}.gamma" in names
    weight, offset = ("gamma", "beta") if is_old else ("weight", "bias")
    found: Tensors = {f"{ours}.weight": (Source(f"{theirs}.{weight}", (size,)),)}
    if bias:
        found[f"{ours}.bias"] = (Source(f"{theirs}.{offset}", (size,)),)
    return found
