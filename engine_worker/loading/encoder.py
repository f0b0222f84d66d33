"""Assembles what makes embeddings and classifies: a model of its own, or a loaded decoder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from msgspec import structs

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.memory.mapped_code import release_after_compiling
from engine_worker.compute.models.config_fields import ConfigFields, read_config
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.config import NO_POOLING, ModelSettings
from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.core.credits import CreditPolicy
from engine_worker.demo import demo_model_path
from engine_worker.embedding.classifier import Classifier
from engine_worker.embedding.dense import DenseWeights, load_dense
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.families.registry import is_encoder
from engine_worker.embedding.labels import has_classifier, read_labels
from engine_worker.embedding.models import DecoderModel
from engine_worker.embedding.pooling import POOLING_KINDS, PoolingSpec, load_pooling
from engine_worker.embedding.service import MAX_INPUTS
from engine_worker.loading.identity import model_fingerprint
from engine_worker.loading.phases import PhaseCallback
from engine_worker.loading.text_length import longest_text
from engine_worker.loading.text_models import is_text_model, load_text_model, sees_all
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ConfigurationError
from protocol.wire.messages import EngineOffer

_MAX_REQUESTS: Final = 256


@dataclass(frozen=True, slots=True)
class ServedEncoder:
    """A model of whole texts that is ready to work.

    Attributes:
        embedder: Warm; belongs to the thread that uses it. None for a classifier.
        classifier: Likewise; None for a model that makes embeddings.
        credit_policy: What gateways may have unfinished.
    """

    embedder: Embedder | None
    classifier: Classifier | None
    tokenizer: Tokenizer
    vocab_size: int
    credit_policy: CreditPolicy
    offer: EngineOffer


def is_encoder_folder(settings: ModelSettings) -> bool:
    """Whether the folder holds a model that generates nothing.

    Raises:
        ModelConfigError: There is no readable config.
    """
    return is_text_model(read_config(settings.path))


def load_encoder(settings: ModelSettings, on_phase: PhaseCallback) -> ServedEncoder:
    """Load a model of whole texts and compile its programs.

    Args:
        settings: Which model, and how.
        on_phase: Told how far it is.

    Raises:
        ModelLoadError: The folder can't be served; one line that says why.
        ConfigurationError: A setting doesn't go with the model.
    """
    on_phase("loading", 0.0, "configuration")
    prepare_backend(settings.compile_cache_dir, settings.num_threads)
    config = read_config(settings.path)
    pooling = None if has_classifier(config) else _pooling_of(settings, config)
    # A tokenizer that can't be loaded is no reason to read all weights first.
    fields = ConfigFields(config)
    tokenizer = Tokenizer.load(
        settings.tokenizer_path or settings.path,
        settings.path,
        fields.size("vocab_size") if fields.present("vocab_size") else None,
    )
    loaded = load_text_model(settings, lambda done, text: on_phase("loading", done, text))
    layers = () if pooling is None else load_layers(pooling)
    stated = tokenizer.max_length if pooling is None else pooling.max_tokens
    max_tokens = _choose_max_tokens(settings, loaded.max_tokens, stated)
    if isinstance(loaded.model, DecoderModel):
        max_tokens = longest_text(settings.name, loaded.model, max_tokens)
    credit_policy = CreditPolicy(_MAX_REQUESTS, _MAX_REQUESTS * MAX_INPUTS * max_tokens, max_tokens)
    offer = EngineOffer(
        model=settings.name,
        fingerprint=model_fingerprint(
            settings,
            tokenizer,
            {
                "weights": loaded.dtype,
                "model": loaded.reading,
                **what_follows(pooling, layers),
            },
        ),
        resume_version=1,
        max_model_len=max_tokens,
        created=int((settings.path / "config.json").stat().st_mtime),
        credits=credit_policy.whole,
        architecture=loaded.architecture,
        dtype=loaded.dtype,
        vocab_size=loaded.vocab_size,
        num_parameters=loaded.num_parameters,
        max_token_bytes=tokenizer.max_token_bytes,
        tokenizer_info_json=json.dumps(tokenizer.info()),
    )
    embedder = classifier = None
    if pooling is not None:
        embedder = Embedder(loaded.model, pooling, max_tokens, layers)
        offer = structs.replace(offer, capabilities=("embeddings",), **embedding_offer(embedder))
    else:
        assert loaded.head is not None, "a config with a classifier has one"
        labels = read_labels(config)
        classifier = Classifier(loaded.model, loaded.head, labels, max_tokens)
        offer = structs.replace(
            offer,
            capabilities=("classify",),
            labels=labels.names,
            problem_type=labels.problem_type,
        )
    programs = embedder or classifier
    assert programs is not None, "one of both was made"
    programs.warm_up(lambda done, text: on_phase("compiling", done, text))
    release_after_compiling()
    return ServedEncoder(embedder, classifier, tokenizer, loaded.vocab_size, credit_policy, offer)


def what_follows(pooling: PoolingSpec | None, layers: Sequence[DenseWeights]) -> dict[str, str]:
    """What makes vectors of a model's last layer, wherever its files lie."""
    if pooling is None:
        return {}
    told = replace(pooling, dense=())
    digest = hashlib.sha256()
    for spec, layer in zip(pooling.dense, layers, strict=True):
        digest.update(f"{spec.activation} {layer.weight.shape}".encode())
        digest.update(layer.weight.tobytes() + layer.bias.tobytes())
    return {"pooling": repr(told), "layers": digest.hexdigest()}


def embedding_offer(embedder: Embedder) -> dict[str, Any]:
    """What gateways are told of an embedder, by fields of `EngineOffer`."""
    pooling = embedder.pooling
    return {
        "num_embedding_dimensions": embedder.num_dimensions,
        "pooling": pooling.kind,
        "prompt_names": tuple(name for name, _ in pooling.prompts),
        "max_prompt_bytes": max(
            (len(text.encode()) for text in (pooling.prompt, *dict(pooling.prompts).values())),
            default=0,
        ),
    }


def _pooling_of(settings: ModelSettings, config: Mapping[str, Any]) -> PoolingSpec:
    pooling = choose_pooling(
        settings, PoolingSpec("mean" if is_encoder(config) or sees_all(config) else "last")
    )
    if pooling is None:
        named = config.get("architectures") or [config.get("model_type")]
        raise ConfigurationError(
            f"PENSTOCK_POOLING is {NO_POOLING}, but {named[0]} makes nothing but"
            f" embeddings; leave it unset or choose one of {', '.join(POOLING_KINDS)}."
        )
    return pooling


def decoder_embedder(
    settings: ModelSettings,
    decoder: PackedDecoder,
    max_model_len: int,
    progress: ProgressCallback,
    *,
    kv_cache_bytes: int = 0,
) -> Embedder | None:
    """What makes embeddings with a decoder's own weights; None when nobody asked for it.

    The bundled model pools by mean without being asked. Its programs are compiled when they are
    first needed, because most who serve it want no embeddings; those of others are compiled now.

    Args:
        settings: Name a pooling, unless the folder does.
        decoder: As loaded for generation.
        max_model_len: Of generation.
        progress: Told how far compiling is.
        kv_cache_bytes: Of generation's cache, which takes memory as it is used.

    Raises:
        ModelLoadError: The folder's pooling is broken or unknown.
    """
    is_bundled = settings.path == demo_model_path()
    pooling = choose_pooling(settings, PoolingSpec("mean") if is_bundled else None)
    if pooling is None:
        return None
    model, wanted = DecoderModel(decoder), min(max_model_len, pooling.max_tokens or max_model_len)
    max_tokens = longest_text(settings.name, model, wanted, reserved_bytes=kv_cache_bytes)
    embedder = Embedder(model, pooling, max_tokens, load_layers(pooling))
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


def _choose_max_tokens(settings: ModelSettings, longest: int, stated: int | None) -> int:
    if settings.max_model_len is None:
        return min(longest, stated or longest)
    if settings.max_model_len > longest:
        raise ConfigurationError(
            f"PENSTOCK_MAX_MODEL_LEN is {settings.max_model_len}, but this model has positions for"
            f" {longest} tokens."
        )
    return settings.max_model_len
