"""GGUF's encoders, and decoders whose tokens see all of their row: models that make vectors."""

from collections.abc import Sequence
from typing import Final

from engine_worker.compute.weights.gguf.dense_families import (
    FULL,
    SANDWICH,
    SLIDING,
    gemma_changes,
    gemma_windows,
    window_of,
)
from engine_worker.compute.weights.gguf.family import Config, GgufFamily
from engine_worker.compute.weights.gguf.metadata import GgufMetadata
from engine_worker.errors import UnsupportedFeatureError

_RANK: Final = 4
"""`pooling_type` of a cross-encoder, in `gguf.constants.PoolingType`."""
_POSITIONS: Final = "position_embd.weight"
_TYPES: Final = "token_types.weight"
_DENSE: Final = "cls.weight"
_LABELS: Final = "cls.output.weight"


def is_classifier(metadata: GgufMetadata) -> bool:
    """Whether a row's vector becomes logits."""
    return metadata.whole("pooling_type", 0) == _RANK


def _bert(metadata: GgufMetadata) -> Config:
    """BERT, and RoBERTa whose table of positions was cut down to those that texts have."""
    config: Config = {
        "max_position_embeddings": metadata.shape(_POSITIONS)[0],
        "type_vocab_size": metadata.shape(_TYPES)[0],
    }
    if not is_classifier(metadata):
        return config
    if _DENSE not in metadata.tensors or _LABELS not in metadata.tensors:
        raise UnsupportedFeatureError(
            f"{metadata.path}: a cross-encoder without the tensors {_DENSE!r} and {_LABELS!r},"
            " which hold what follows its last layer; use the model's safetensors files"
        )
    num_labels = metadata.shape(_LABELS)[0]
    names = metadata.texts("classifier.output_labels") or ()
    if len(names) == num_labels:
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
    return {
        **config,
        "architectures": ["BertForSequenceClassification"],
        "num_labels": num_labels,
    }


def _has_token_types(metadata: GgufMetadata) -> bool:
    return _TYPES in metadata.tensors


def _distilbert(metadata: GgufMetadata) -> Config:
    _refuse_classifier(metadata)
    return {
        "dim": metadata.whole("embedding_length"),
        "n_layers": metadata.whole("block_count"),
        "n_heads": metadata.whole("attention.head_count"),
        "hidden_dim": metadata.whole("feed_forward_length"),
        "max_position_embeddings": metadata.shape(_POSITIONS)[0],
    }


def _nomic(metadata: GgufMetadata) -> Config:
    _refuse_classifier(metadata)
    return {
        "rope_theta": metadata.number("rope.freq_base"),
        "type_vocab_size": metadata.shape(_TYPES)[0] if _has_token_types(metadata) else 0,
    }


def _modernbert(metadata: GgufMetadata) -> Config:
    _refuse_classifier(metadata)
    num_layers = metadata.whole("block_count")
    key = "attention.sliding_window_pattern"
    pattern = metadata.values.get(f"{metadata.architecture}.{key}", 3)
    if isinstance(pattern, int):
        # Of so many layers the first one sees all.
        period = metadata.whole(key, 3)
        kinds = [SLIDING if period and index % period else FULL for index in range(num_layers)]
    else:
        kinds = [SLIDING if one else FULL for one in metadata.per_layer(key, num_layers)]
    bias = "blk.0.attn_qkv.bias" in metadata.tensors
    return {
        "layer_types": kinds,
        "local_attention": window_of(metadata),
        "global_rope_theta": metadata.number("rope.freq_base", 160_000.0),
        "local_rope_theta": metadata.number("rope.freq_base_swa", 10_000.0),
        "rope_theta": None,
        "norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "norm_bias": "output_norm.bias" in metadata.tensors,
        "attention_bias": bias,
        "mlp_bias": "blk.0.ffn_up.bias" in metadata.tensors,
    }


def _refuse_classifier(metadata: GgufMetadata) -> None:
    if is_classifier(metadata):
        raise UnsupportedFeatureError(
            f"{metadata.path}: not supported: a cross-encoder of {metadata.architecture} in GGUF,"
            " whose file doesn't say all that follows the last layer; use the model's safetensors"
            " files"
        )


def _gemma_embedding(metadata: GgufMetadata) -> Config:
    _refuse_classifier(metadata)
    return {
        **gemma_windows(metadata),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10_000.0),
        "use_bidirectional_attention": True,
    }


_BERT_LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "attn_q": "attention.q_lin",
    "attn_k": "attention.k_lin",
    "attn_v": "attention.v_lin",
    "attn_output": "attention.out_lin",
    "attn_output_norm": "sa_layer_norm",
    "ffn_up": "ffn.lin1",
    "ffn_down": "ffn.lin2",
    "layer_output_norm": "output_layer_norm",
}
_NOMIC_LAYER = {
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.out_proj",
    "attn_output_norm": "norm1",
    "ffn_up": "mlp.fc11",
    "ffn_gate": "mlp.fc12",
    "ffn_down": "mlp.fc2",
    "layer_output_norm": "norm2",
}
_MODERNBERT_LAYER = {
    "attn_norm": "attn_norm",
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.Wo",
    "ffn_norm": "mlp_norm",
    "ffn_up": "mlp.Wi",
    "ffn_down": "mlp.Wo",
}
_TABLES = {
    "token_embd.weight": "embeddings.word_embeddings.weight",
    _TYPES: "embeddings.token_type_embeddings.weight",
    _POSITIONS: "embeddings.position_embeddings.weight",
}


def _both(stored: str, name: str) -> dict[str, str]:
    return {f"{stored}.{ending}": f"{name}.{ending}" for ending in ("weight", "bias")}


_EMBEDDING_NORM = _both("token_embd_norm", "embeddings.LayerNorm")

ENCODERS: Sequence[tuple[str, GgufFamily]] = (
    (
        "bert",
        GgufFamily(
            "BertModel",
            "bert",
            _bert,
            {
                **_BERT_LAYER,
                **_TABLES,
                **_EMBEDDING_NORM,
                **_both("cls", "pooler.dense"),
                **_both("cls.output", "classifier"),
            },
            prefix="encoder.layer",
            has_positions=lambda _: False,
            fits=_has_token_types,
        ),
    ),
    (
        "bert",
        GgufFamily(
            "DistilBertModel",
            "distilbert",
            _distilbert,
            {**_DISTILBERT_LAYER, **_TABLES, **_EMBEDDING_NORM},
            prefix="transformer.layer",
            has_positions=lambda _: False,
        ),
    ),
    (
        "nomic-bert",
        GgufFamily(
            "NomicBertModel",
            "nomic_bert",
            _nomic,
            {**_NOMIC_LAYER, **_TABLES, **_both("token_embd_norm", "emb_ln")},
            prefix="encoder.layers",
        ),
    ),
    (
        "modern-bert",
        GgufFamily(
            "ModernBertModel",
            "modernbert",
            _modernbert,
            {
                **_MODERNBERT_LAYER,
                "token_embd.weight": "embeddings.tok_embeddings.weight",
                **_both("token_embd_norm", "embeddings.norm"),
                **_both("output_norm", "final_norm"),
            },
            prefix="layers",
        ),
    ),
    (
        "gemma-embedding",
        GgufFamily(
            "Gemma3TextModel",
            "gemma3_text",
            _gemma_embedding,
            SANDWICH,
            changes=gemma_changes(),
            layers_behind=("dense_2.weight", "dense_3.weight"),
        ),
    ),
    ("eurobert", GgufFamily("EuroBertModel", "eurobert")),
)
"""In the order in which they are listed for people."""
