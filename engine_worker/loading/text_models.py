"""Loads models that turn whole texts into numbers: encoders, and decoders without generation."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.kv_memory import device_memory_stats
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.config_fields import ConfigFields, read_config
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.dtype import DTYPES, QUANTIZED
from engine_worker.compute.models.families.registry import FAMILIES as DECODERS
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.reading import reading_of
from engine_worker.compute.weights.checkpoint import Checkpoint, open_checkpoint
from engine_worker.compute.weights.file_digests import FileHashes
from engine_worker.compute.weights.loader import load_leaves
from engine_worker.compute.weights.sources import is_ignorable as is_decoder_ignorable
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.config import ModelSettings
from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.embedding.classifier import DecoderHead, EncoderHead, Head
from engine_worker.embedding.encoder import EncoderGraph, is_ignorable
from engine_worker.embedding.families.registry import (
    encoder_spec,
    family_of,
    is_encoder,
    refuse_other_heads,
)
from engine_worker.embedding.labels import has_classifier, read_labels
from engine_worker.embedding.models import (
    BidirectionalModel,
    DecoderModel,
    EmbeddingModel,
    EncoderModel,
)
from engine_worker.errors import CheckpointError, UnsupportedFeatureError
from engine_worker.loading.memory_estimate import require_text_memory
from protocol.errors import ConfigurationError

_MAX_BIDIRECTIONAL_TOKENS: Final = 8192
"""Of a text whose tokens see later ones, too, so that one program computes all of it."""
_HEAD: Final = "score.weight"
_EUROBERT: Final = "eurobert"
"""EuroBERT (arXiv 2503.05500): Llama's layers, of which every token sees all of its row."""

_log = logging.getLogger("penstock.engine")


@dataclass(frozen=True, slots=True)
class TextModel:
    """A model that turns whole texts into numbers, with its weights.

    Attributes:
        head: What makes logits of its vectors; None for a model that makes embeddings.
        max_tokens: The longest text that it was made for.
        dtype: Of its weights.
        reading: What its config was read as.
    """

    model: EmbeddingModel
    head: Head | None
    architecture: str
    vocab_size: int
    num_parameters: int
    max_tokens: int
    dtype: str
    reading: str


def is_text_model(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a model that generates nothing.

    Encoders, classifiers, and decoders that were saved without their output head (`Qwen3Model`).
    """
    if is_encoder(config) or has_classifier(config) or sees_all(config):
        return True
    named = config.get("architectures")
    known = {family.architecture for family in DECODERS.values()}
    return (
        isinstance(named, list)
        and not known.intersection(str(one) for one in named)
        and any(str(one).endswith("Model") for one in named)
        and any(family.model_type == config.get("model_type") for family in DECODERS.values())
    )


def sees_all(config: Mapping[str, Any]) -> bool:
    """Whether the tokens of a decoder's layers see all of their row, later tokens included."""
    return (
        config.get("model_type") == _EUROBERT
        or config.get("use_bidirectional_attention") in (True, "all")
        or config.get("is_causal") is False
    )


def load_text_model(settings: ModelSettings, progress: ProgressCallback) -> TextModel:
    """Load an encoder, or a decoder that generates nothing.

    Args:
        settings: Which model, and in which type.
        progress: Told how far it is.

    Raises:
        ModelLoadError: The folder can't be served; one line that says why.
        ConfigurationError: The type doesn't go with such models.
    """
    config = read_config(settings.path)
    refuse_other_heads(config)
    # Vectors are compared by small differences, and encoders are small: float32 unless asked.
    if settings.dtype in QUANTIZED:
        raise ConfigurationError(
            f"an encoder computes in float32 or bfloat16, not in {settings.dtype}", param="dtype"
        )
    name = "float32" if settings.dtype == "auto" else settings.dtype
    load = _load_encoder if is_encoder(config) else _load_decoder
    return load(settings, config, name, progress)


def _load_encoder(
    settings: ModelSettings, config: Mapping[str, Any], dtype: str, progress: ProgressCallback
) -> TextModel:
    family, spec = family_of(config), encoder_spec(config)
    graph = EncoderGraph(spec, DTYPES[dtype])
    require_text_memory(settings.name, dtype, graph.parameters, device_memory_stats())
    checkpoint = _opened(settings, dtype)
    fitted = family.fitted(spec, checkpoint.tensors.keys())
    if fitted != spec:
        spec, graph = fitted, EncoderGraph(fitted, DTYPES[dtype])
    with _hashed(checkpoint, settings, progress) as hashes:
        leaves = load_leaves(
            checkpoint,
            graph.parameters,
            graph.sources(family, checkpoint.tensors.keys()),
            architecture=spec.architecture,
            is_ignorable=is_ignorable,
            progress=progress,
            hashes=hashes,
        )
    return TextModel(
        EncoderModel(graph, leaves),
        None if spec.head is None else EncoderHead(graph),
        architecture=spec.architecture,
        vocab_size=spec.vocab_size,
        num_parameters=graph.num_parameters,
        max_tokens=spec.max_tokens,
        dtype=dtype,
        reading=reading_of(spec),
    )


def _load_decoder(
    settings: ModelSettings, config: Mapping[str, Any], dtype: str, progress: ProgressCallback
) -> TextModel:
    named = ConfigFields(config).strings("architectures")
    values = {**config, "architectures": None, "use_bidirectional_attention": None}
    if config.get("model_type") == _EUROBERT:
        values["model_type"] = "llama"
        if has_classifier(config):
            raise UnsupportedFeatureError(
                f"{settings.path}: not supported yet: the classifier of EuroBERT"
            )
    # The model type names the decoder; its output head isn't there, or isn't needed.
    spec = replace(decoder_spec(values), tied_head=True)
    graph = declare(spec, DTYPES[dtype])
    require_text_memory(settings.name, dtype, graph.parameters, device_memory_stats())
    checkpoint = _opened(settings, dtype)
    with _hashed(checkpoint, settings, progress) as hashes:
        leaves = load_leaves(
            checkpoint,
            graph.parameters,
            weight_sources(graph, checkpoint.tensors),
            architecture=spec.architecture,
            is_ignorable=lambda name: name == _HEAD or is_decoder_ignorable(name, spec),
            progress=progress,
            hashes=hashes,
        )
    head, num_head = None, 0
    if has_classifier(config):
        shape = (len(read_labels(config).names), spec.hidden_size)
        weight = _read_matrix(checkpoint, shape)
        head, num_head = DecoderHead(weight), weight.size
    model: EmbeddingModel = DecoderModel(PackedDecoder(XlaBackend(graph), leaves))
    most = spec.max_position_embeddings
    if sees_all(config):
        model, most = BidirectionalModel(graph, leaves), min(most, _MAX_BIDIRECTIONAL_TOKENS)
    return TextModel(
        model,
        head,
        architecture=(named or (spec.architecture,))[0],
        vocab_size=spec.vocab_size,
        num_parameters=graph.num_parameters + num_head,
        max_tokens=most,
        dtype=dtype,
        reading=f"{type(model).__name__} of {reading_of(spec)}",
    )


def _opened(settings: ModelSettings, dtype: str) -> Checkpoint:
    checkpoint = open_checkpoint(settings.path, settings.lora)
    if checkpoint.quantized:
        _log.info(
            "%s is stored as %s; its numbers become %s", settings.name, checkpoint.stored_as, dtype
        )
    return checkpoint


@contextmanager
def _hashed(
    checkpoint: Checkpoint, settings: ModelSettings, progress: ProgressCallback
) -> Iterator[FileHashes]:
    """Files that are hashed while they are read in the block, so that each byte is read once."""
    with FileHashes(checkpoint.files, settings.weights_cache_dir) as hashes:
        yield hashes
        hashes.finish(lambda done, name: progress(1.0, f"hashed {done:.0%} of {name}, once"))


def _read_matrix(checkpoint: Checkpoint, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    tensor = checkpoint.tensors.get(_HEAD)
    if tensor is None or tensor.shape != shape:
        raise CheckpointError(
            f"{checkpoint.listing}: tensor {_HEAD!r} of shape {list(shape)} is missing"
        )
    with checkpoint.reading() as read:
        found: npt.NDArray[np.float32] = np.asarray(read(_HEAD)).astype(np.float32)
    return found
