"""The layers that a `sentence-transformers` folder puts behind pooling (its module `Dense`)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.errors import CheckpointError, UnsupportedFeatureError

_ACTIVATIONS: Final[dict[str, Callable[[jax.Array], jax.Array]]] = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": lambda x: jax.nn.gelu(x, approximate=False),
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
}
_DEFAULT_ACTIVATION: Final = "torch.nn.modules.activation.Tanh"


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """One layer: `activation(W x + b)`.

    Attributes:
        folder: Holds its weights.
        activation: A name in torch, such as `Tanh`.
    """

    folder: Path
    num_in: int
    num_out: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """The numbers of one layer: [out, in] and [out] float32; no bias is zeros."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def dense_spec(folder: Path, config: dict[str, Any]) -> DenseSpec:
    """What the `config.json` of such a module says.

    Raises:
        ModelConfigError: A value makes no sense.
        UnsupportedFeatureError: It asks for something that is not computed; it is named.
    """
    path = folder / "config.json"
    fields = ConfigFields(config, str(path))
    activation = fields.text("activation_function", _DEFAULT_ACTIVATION).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise UnsupportedFeatureError(f"{path}: not supported yet: activation {activation!r}")
    if config.get("use_residual"):
        raise UnsupportedFeatureError(f"{path}: not supported yet: use_residual of Dense")
    vector = "sentence_embedding"
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, vector):
            raise UnsupportedFeatureError(
                f"{path}: not supported yet: Dense with {name} {config[name]!r}"
            )
    return DenseSpec(
        folder,
        fields.size("in_features"),
        fields.size("out_features"),
        fields.flag("bias", True),
        activation,
    )


def load_dense(spec: DenseSpec) -> DenseWeights:
    """Read the weights of a layer.

    Raises:
        ModelLoadError: They are missing, broken, in another format or of another shape.
    """
    checkpoint = open_checkpoint(spec.folder)
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (spec.num_out, spec.num_in)}
    if spec.bias:
        shapes["linear.bias"] = (spec.num_out,)
    found: dict[str, npt.NDArray[np.float32]] = {}
    with checkpoint.reading() as read:
        for name, shape in shapes.items():
            tensor = checkpoint.tensors.get(name)
            if tensor is None or tensor.shape != shape:
                raise CheckpointError(
                    f"{checkpoint.listing}: tensor {name!r} of shape {list(shape)} is missing"
                )
            found[name] = read(name).astype(np.float32)
    bias = found.get("linear.bias", np.zeros(spec.num_out, np.float32))
    return DenseWeights(found["linear.weight"], bias)


def apply_dense(
    vectors: jax.Array, weight: jax.Array, bias: jax.Array, spec: DenseSpec
) -> jax.Array:
    """[B, in] float32 to [B, out]; called while the caller's program is traced."""
    # Accelerators otherwise round float32 operands (TF32).
    product = jnp.einsum("bi,oi->bo", vectors, weight, precision=lax.Precision.HIGHEST)
    return _ACTIVATIONS[spec.activation](product + bias)
