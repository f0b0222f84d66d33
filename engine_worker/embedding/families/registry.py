"""Every family of encoders that is served, and how a config finds its own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from engine_worker.compute.models.config_fields import ConfigFields, read_config
from engine_worker.compute.models.spec import RopeKind
from engine_worker.embedding.encoder_spec import EncoderSpec
from engine_worker.embedding.families import (
    bert,
    deberta,
    distilbert,
    electra,
    modernbert,
    mpnet,
    neobert,
    rotary,
)
from engine_worker.embedding.families.family import EncoderFamily
from engine_worker.embedding.labels import has_classifier, read_labels
from engine_worker.errors import UnsupportedArchitectureError, UnsupportedFeatureError

FAMILIES: Final[tuple[EncoderFamily, ...]] = (
    *bert.FAMILIES,
    *mpnet.FAMILIES,
    *distilbert.FAMILIES,
    *modernbert.FAMILIES,
    *rotary.FAMILIES,
    *electra.FAMILIES,
    *deberta.FAMILIES,
    *neobert.FAMILIES,
)
_BY_MODEL_TYPE: Final = {name: family for family in FAMILIES for name in family.model_types}
_REFUSED: Final = {
    "jina_embeddings_v3": "adapters for each task are not computed",
    "deberta": "the first DeBERTa is not computed, V2 and V3 are",
    "convbert": "not supported yet",
    "longformer": "not supported yet",
    "mobilebert": "not supported yet",
    "roformer": "not supported yet",
    "xlnet": "not supported yet",
}
"""Encoders that people ask for, so that they aren't taken for decoders."""
_LATE_INTERACTION: Final = "colbert"
_OTHER_HEADS: Final = {
    "ForTokenClassification": "it labels each token of a text",
    "ForQuestionAnswering": "it finds an answer's place in a text",
    "ForMultipleChoice": "it scores each choice by a head of its own",
}
"""What architectures end in whose answer is that of a head which is not computed here."""
_ROPES: Final = frozenset({RopeKind.DEFAULT, RopeKind.LINEAR, RopeKind.LLAMA3, RopeKind.YARN})


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is an encoder's, served or refused by name."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and (model_type in _BY_MODEL_TYPE or model_type in _REFUSED)


def family_of(config: Mapping[str, Any]) -> EncoderFamily:
    """The family of a `config.json`.

    Raises:
        UnsupportedArchitectureError: It is of none of them.
    """
    model_type = config.get("model_type")
    name = model_type if isinstance(model_type, str) else ""
    family = _BY_MODEL_TYPE.get(name)
    if family is None:
        why = f" ({_REFUSED[name]})" if name in _REFUSED else ""
        raise UnsupportedArchitectureError(
            f"model type {model_type!r} is not a supported encoder{why}; supported: "
            f"{', '.join(sorted(_BY_MODEL_TYPE))}"
        )
    return family


def refuse_other_heads(config: Mapping[str, Any]) -> None:
    """Refuse a model whose answer is neither a vector of a text nor its labels.

    Raises:
        UnsupportedFeatureError: Its architecture is ColBERT's, or has such a head.
    """
    for name in ConfigFields(config).strings("architectures") or ():
        if _LATE_INTERACTION in name.lower():
            raise UnsupportedFeatureError(
                f"{name} is not supported: it makes a vector of each token (late interaction), and"
                " embeddings here are one vector of a text"
            )
        for ending, what in _OTHER_HEADS.items():
            if name.endswith(ending):
                raise UnsupportedFeatureError(
                    f"{name} is not supported: {what}, and models here label whole texts"
                    " (…ForSequenceClassification) or make embeddings; to have embeddings of its"
                    f' layers, name "{name.removesuffix(ending)}Model" as its architecture in'
                    " config.json"
                )


def encoder_spec(config: Mapping[str, Any]) -> EncoderSpec:
    """From a whole `config.json` to the encoder, with its classifier where it has one.

    Raises:
        ModelConfigError: It contradicts itself.
        UnsupportedArchitectureError: It is of no family that is served.
        UnsupportedFeatureError: It asks for something that is not computed; it is named.
    """
    family = family_of(config)
    refuse_other_heads(config)
    named = ConfigFields(config).strings("architectures") or (str(config.get("model_type")),)
    spec = replace(family.read(config), architecture=named[0])
    for layer in spec.layers:
        rope = layer.rope
        if rope is not None and (rope.kind not in _ROPES or rope.partial_factor != 1.0):
            raise UnsupportedFeatureError(
                f"config.json: not supported yet: rope type {rope.kind.value!r}, or a part of a"
                " head that isn't rotated, in an encoder"
            )
    if not has_classifier(config):
        return spec
    return replace(spec, head=family.head_of(config, len(read_labels(config).names)))


def load_encoder_spec(folder: Path) -> EncoderSpec:
    """The encoder of a model folder.

    Raises:
        ModelLoadError: As `encoder_spec`, or there is no readable `config.json`.
    """
    return encoder_spec(read_config(folder))
