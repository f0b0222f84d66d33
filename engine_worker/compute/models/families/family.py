"""What a family of decoders is to the rest of the engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.compute.models.tensors import TensorNames, decoder_tensors


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of Hugging Face's.

    Attributes:
        architecture: Its name in `architectures`, which the spec gets too.
        model_type: Its name in `model_type`, for configs without `architectures`.
        read: From the whole `config.json` to the spec. Raises `ModelConfigError` for a value that
            contradicts itself and `UnsupportedFeatureError` for one without a meaning here.
        tensors: What fills the weights.
        ignored_prefixes: Of tensors that its checkpoints hold and that are rightly left out, such
            as a vision tower's.
        has_prediction_layers: Checkpoints may hold layers behind the last one, which predict
            several tokens at once and are left out.
    """

    architecture: str
    model_type: str
    read: Callable[[Mapping[str, Any]], DecoderSpec]
    tensors: TensorNames = decoder_tensors
    ignored_prefixes: tuple[str, ...] = ()
    has_prediction_layers: bool = False
