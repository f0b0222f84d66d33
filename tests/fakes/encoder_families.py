"""Small encoders of every family with its special features switched on, as transformers has
them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.fakes.late import transformers

_SIZES: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 200,
    "max_position_embeddings": 80,
}
_ROBERTA: Final = {**_SIZES, "type_vocab_size": 1, "pad_token_id": 1}
_MODERN: Final = {
    **_SIZES,
    "num_hidden_layers": 5,
    "local_attention": 8,
    "global_attn_every_n_layers": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_DISTIL: Final = {
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": 200,
    "max_position_embeddings": 80,
}


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """A family, or a spelling of it.

    Attributes:
        title: Of the family in its registry.
        config: Makes the config, given what a classifier adds to it.
        model: Name of the class in transformers that makes embeddings; imported when it is used.
        classifier: The same with a head.
        edit: Changes the saved `config.json`, for spellings that transformers no longer writes.
    """

    title: str
    config: Callable[..., Any]
    model: str
    classifier: str
    edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config


def _of(kind: str, values: dict[str, Any]) -> Callable[..., Any]:
    return lambda **more: getattr(transformers, kind)(**{**values, **more})


def _modern_4(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 wrote it."""
    ropes = config.pop("rope_parameters")
    config.pop("layer_types")
    return {
        **config,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": ropes["full_attention"]["rope_theta"],
        "local_rope_theta": ropes["sliding_attention"]["rope_theta"],
    }


_NOMIC_NAMES: Final = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
}


def _nomic_own(config: dict[str, Any]) -> dict[str, Any]:
    """As the first checkpoints have it, which came with code of their own."""
    old = {_NOMIC_NAMES.get(name, name): value for name, value in config.items()}
    theta = old.pop("rope_parameters")["rope_theta"]
    return {
        **old,
        "activation_function": "swiglu",
        "rotary_emb_base": theta,
        "rotary_emb_fraction": 1.0,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "max_trained_positions": config["max_position_embeddings"],
    }


def _gte_own(config: dict[str, Any]) -> dict[str, Any]:
    """As Alibaba's checkpoints have it: `ntk` says what `linear` and a larger base amount to."""
    config.pop("rope_parameters")
    return {
        **config,
        "model_type": "new",
        "architectures": [name.replace("Gte", "New") for name in config["architectures"]],
        "rope_theta": 500.0,
        "rope_scaling": {"type": "ntk", "factor": 2.0},
        "position_embedding_type": "rope",
    }


_GTE_ROPE: Final = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0 ** (2 / 8)}

_DEBERTA: Final = {
    **_SIZES,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}

CASES: Final[dict[str, EncoderCase]] = {
    "bert": EncoderCase(
        "BERT",
        _of("BertConfig", _SIZES),
        "BertModel",
        "BertForSequenceClassification",
    ),
    "bert-gelu-new": EncoderCase(
        "BERT",
        _of("BertConfig", {**_SIZES, "hidden_act": "gelu_new"}),
        "BertForMaskedLM",
        "BertForSequenceClassification",
    ),
    "roberta": EncoderCase(
        "RoBERTa, XLM-RoBERTa, CamemBERT",
        _of("RobertaConfig", _ROBERTA),
        "RobertaModel",
        "RobertaForSequenceClassification",
    ),
    "xlm-roberta": EncoderCase(
        "RoBERTa, XLM-RoBERTa, CamemBERT",
        _of("XLMRobertaConfig", _ROBERTA),
        "XLMRobertaForMaskedLM",
        "XLMRobertaForSequenceClassification",
    ),
    "camembert": EncoderCase(
        "RoBERTa, XLM-RoBERTa, CamemBERT",
        _of("CamembertConfig", _ROBERTA),
        "CamembertModel",
        "CamembertForSequenceClassification",
    ),
    "mpnet": EncoderCase(
        "MPNet",
        _of("MPNetConfig", _SIZES),
        "MPNetModel",
        "MPNetForSequenceClassification",
    ),
    "distilbert": EncoderCase(
        "DistilBERT",
        _of("DistilBertConfig", _DISTIL),
        "DistilBertModel",
        "DistilBertForSequenceClassification",
    ),
    "modernbert": EncoderCase(
        "ModernBERT",
        _of("ModernBertConfig", {**_MODERN, "classifier_pooling": "mean"}),
        "ModernBertModel",
        "ModernBertForSequenceClassification",
    ),
    "modernbert-transformers-4": EncoderCase(
        "ModernBERT",
        _of("ModernBertConfig", _MODERN),
        "ModernBertForMaskedLM",
        "ModernBertForSequenceClassification",
        _modern_4,
    ),
    "modernbert-biases": EncoderCase(
        "ModernBERT",
        _of(
            "ModernBertConfig",
            {
                **_MODERN,
                "norm_bias": True,
                "attention_bias": True,
                "mlp_bias": True,
                "classifier_bias": True,
                "hidden_activation": "silu",
            },
        ),
        "ModernBertModel",
        "ModernBertForSequenceClassification",
    ),
    "nomic-bert": EncoderCase(
        "NomicBERT",
        _of("NomicBertConfig", _SIZES),
        "NomicBertModel",
        "NomicBertForSequenceClassification",
    ),
    "nomic-bert-own-config": EncoderCase(
        "NomicBERT",
        _of("NomicBertConfig", _SIZES),
        "NomicBertModel",
        "NomicBertForSequenceClassification",
        _nomic_own,
    ),
    "gte": EncoderCase(
        "GTE (NewModel)",
        _of("GteConfig", _SIZES),
        "GteModel",
        "GteForSequenceClassification",
    ),
    "gte-own-config-ntk": EncoderCase(
        "GTE (NewModel)",
        _of("GteConfig", {**_SIZES, "type_vocab_size": 0, "rope_parameters": _GTE_ROPE}),
        "GteModel",
        "GteForSequenceClassification",
        _gte_own,
    ),
    "electra": EncoderCase(
        "ELECTRA",
        _of("ElectraConfig", {**_SIZES, "embedding_size": 24}),
        "ElectraModel",
        "ElectraForSequenceClassification",
    ),
    "albert": EncoderCase(
        "ALBERT",
        _of("AlbertConfig", {**_SIZES, "embedding_size": 24}),
        "AlbertModel",
        "AlbertForSequenceClassification",
    ),
    "deberta-v3": EncoderCase(
        "DeBERTa V2 and V3",
        _of("DebertaV2Config", _DEBERTA),
        "DebertaV2Model",
        "DebertaV2ForSequenceClassification",
    ),
    "deberta-v2-with-products-of-its-own": EncoderCase(
        "DeBERTa V2 and V3",
        _of(
            "DebertaV2Config",
            {
                **_DEBERTA,
                "pos_att_type": "c2p|p2c",
                "position_buckets": -1,
                "max_relative_positions": 12,
                "norm_rel_ebd": "none",
                "share_att_key": False,
                "position_biased_input": True,
                "type_vocab_size": 2,
            },
        ),
        "DebertaV2Model",
        "DebertaV2ForSequenceClassification",
    ),
}

BY_DEFINITION: Final = frozenset({"NeoBERT"})
"""Families that transformers doesn't have: held to their definition in torch."""
