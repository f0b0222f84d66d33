"""Assembles what makes embeddings: an encoder from its folder, or a loaded decoder."""

import json
import logging
from dataclasses import dataclass, replace
from typing import Final

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.models.config_fields import read_config
from engine_worker.compute.models.dtype import DTYPES, QUANTIZED
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.weights.checkpoint import Checkpoint, open_checkpoint
from engine_worker.compute.weights.loader import load_leaves
from engine_worker.config import NO_POOLING, ModelSettings
from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.core.credits import CreditPolicy
from engine_worker.demo import demo_model_path
from engine_worker.embedding.dense import DenseWeights, load_dense
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.encoder import EncoderGraph, is_ignorable
from engine_worker.embedding.encoder_spec import EncoderSpec, is_encoder, load_encoder_spec
from engine_worker.embedding.models import DecoderModel, EncoderModel
from engine_worker.embedding.pooling import POOLING_KINDS, PoolingSpec, load_pooling
from engine_worker.embedding.queue import MAX_INPUTS
from engine_worker.loading.identity import model_fingerprint
from engine_worker.loading.phases import PhaseCallback
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ConfigurationError
from protocol.wire.messages import EngineOffer

MAX_DECODER_TOKENS: Final = 2048
"""Of one text at a decoder: its attention here holds all pairs of tokens at once."""
_MAX_REQUESTS: Final = 256
_PREFIXES: Final = ("", "bert.", "roberta.")

_log = logging.getLogger("penstock.embedding")


@dataclass(frozen=True, slots=True)
class ServedEncoder:
    """An encoder that is ready to work.

    Attributes:
        embedder: Warm; belongs to the thread that uses it.
        credit_policy: What gateways may have unfinished.
    """

    embedder: Embedder
    tokenizer: Tokenizer
    vocab_size: int
    credit_policy: CreditPolicy
    offer: EngineOffer


def is_encoder_folder(settings: ModelSettings) -> bool:
    """Whether the folder holds an encoder, which generates nothing.

    Raises:
        ModelConfigError: There is no readable config.
    """
    return is_encoder(read_config(settings.path))


def load_encoder(settings: ModelSettings, on_phase: PhaseCallback) -> ServedEncoder:
    """Load an encoder and compile its programs.

    Args:
        settings: Which model, and how.
        on_phase: Told how far it is.

    Raises:
        ModelLoadError: The folder can't be served; one line that says why.
        ConfigurationError: A setting doesn't go with the model.
    """
    on_phase("loading", 0.0, "configuration")
    prepare_backend(settings.compile_cache_dir)
    spec = load_encoder_spec(settings.path)
    pooling = choose_pooling(settings, PoolingSpec("mean"))
    if pooling is None:
        raise ConfigurationError(
            f"PENSTOCK_POOLING is {NO_POOLING}, but {spec.architecture} makes nothing but"
            f" embeddings; leave it unset or choose one of {', '.join(POOLING_KINDS)}."
        )
    max_tokens = _choose_max_tokens(settings, spec, pooling)
    # Vectors are compared by small differences, and encoders are small: float32 unless asked.
    if settings.dtype in QUANTIZED:
        raise ConfigurationError(
            f"an encoder computes in float32 or bfloat16, not in {settings.dtype}", param="dtype"
        )
    dtype = DTYPES["float32" if settings.dtype == "auto" else settings.dtype]
    graph = EncoderGraph(spec, dtype)
    tokenizer = Tokenizer.load(settings.tokenizer_path or settings.path, settings.path)
    checkpoint = open_checkpoint(settings.path)
    leaves = load_leaves(
        checkpoint,
        graph.parameters,
        graph.sources(_prefix(checkpoint)),
        architecture=spec.architecture,
        is_ignorable=is_ignorable,
        progress=lambda done, text: on_phase("loading", done, text),
    )
    embedder = Embedder(EncoderModel(graph, leaves), pooling, max_tokens, load_layers(pooling))
    embedder.warm_up(lambda done, text: on_phase("compiling", done, text))
    credit_policy = CreditPolicy(_MAX_REQUESTS, _MAX_REQUESTS * MAX_INPUTS * max_tokens, max_tokens)
    offer = EngineOffer(
        model=settings.name,
        fingerprint=model_fingerprint(settings, tokenizer, {"weights": str(dtype)}),
        resume_version=1,
        max_model_len=max_tokens,
        created=int((settings.path / "config.json").stat().st_mtime),
        credits=credit_policy.whole,
        architecture=spec.architecture,
        dtype=str(dtype),
        vocab_size=spec.vocab_size,
        num_parameters=graph.num_parameters,
        capabilities=("embeddings",),
        num_embedding_dimensions=embedder.num_dimensions,
        pooling=pooling.kind,
        max_token_bytes=tokenizer.max_token_bytes,
        tokenizer_info_json=json.dumps(tokenizer.info()),
    )
    return ServedEncoder(embedder, tokenizer, spec.vocab_size, credit_policy, offer)


def decoder_embedder(
    settings: ModelSettings, decoder: PackedDecoder, max_model_len: int, progress: ProgressCallback
) -> Embedder | None:
    """What makes embeddings with a decoder's own weights; None when nobody asked for it.

    The bundled model pools by mean without being asked. Its programs are compiled when they are
    first needed, because most who serve it want no embeddings; those of others are compiled now.

    Args:
        settings: Name a pooling, unless the folder does.
        decoder: As loaded for generation.
        max_model_len: Of generation.
        progress: Told how far compiling is.

    Raises:
        ModelLoadError: The folder's pooling is broken or unknown.
    """
    is_bundled = settings.path == demo_model_path()
    pooling = choose_pooling(settings, PoolingSpec("mean") if is_bundled else None)
    if pooling is None:
        return None
    limits = (max_model_len, MAX_DECODER_TOKENS, pooling.max_tokens or MAX_DECODER_TOKENS)
    embedder = Embedder(DecoderModel(decoder), pooling, min(limits), load_layers(pooling))
    if not is_bundled:
        embedder.warm_up(progress)
    return embedder


def load_layers(pooling: PoolingSpec) -> tuple[DenseWeights, ...]:
    """The weights of the layers behind pooling.

    Raises:
        ModelLoadError: They are missing, broken, in another format or of another shape.
    """
    return tuple(load_dense(layer) for layer in pooling.dense)


def choose_pooling(settings: ModelSettings, default: PoolingSpec | None) -> PoolingSpec | None:
    """As configured, else as the folder says, else the default.

    Raises:
        ModelLoadError: The folder's files are broken or ask for something unknown.
    """
    if settings.pooling == NO_POOLING:
        return None
    found = load_pooling(settings.path) or default
    for kind in POOLING_KINDS:
        if settings.pooling == kind:
            return replace(found or PoolingSpec(kind), kind=kind, normalize=True)
    return found


def _choose_max_tokens(settings: ModelSettings, spec: EncoderSpec, pooling: PoolingSpec) -> int:
    if settings.max_model_len is None:
        return min(spec.max_tokens, pooling.max_tokens or spec.max_tokens)
    if settings.max_model_len > spec.max_tokens:
        raise ConfigurationError(
            f"PENSTOCK_MAX_MODEL_LEN is {settings.max_model_len}, but this model has positions for"
            f" {spec.max_tokens} tokens."
        )
    return settings.max_model_len


def _prefix(checkpoint: Checkpoint) -> str:
    """What stands before the names of the encoder's tensors in this checkpoint."""
    names = (f"{prefix}embeddings.word_embeddings.weight" for prefix in _PREFIXES)
    found = (
        prefix for prefix, name in zip(_PREFIXES, names, strict=True) if name in checkpoint.tensors
    )
    return next(found, "")
