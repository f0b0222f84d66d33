"""GGUF's encoders, and decoders whose tokens see all of their row: models that make vectors."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from engine_worker.compute.weights.gguf.changes import (
    EACH_TRANSPOSED,
    Change,
    Join,
    Shape,
    below_each_other,
    first_then,
)
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


def _nomic_with_experts(metadata: GgufMetadata) -> Config:
    """As its own config spells it, the only one that says something of experts."""
    _refuse_classifier(metadata)
    positions = metadata.whole("context_length")
    return {
        "n_embd": metadata.whole("embedding_length"),
        "n_layer": metadata.whole("block_count"),
        "n_head": metadata.whole("attention.head_count"),
        "n_inner": metadata.whole("feed_forward_length"),
        "n_positions": positions,
        "max_trained_positions": positions,
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "rotary_emb_base": metadata.number("rope.freq_base"),
        "type_vocab_size": metadata.shape(_TYPES)[0] if _has_token_types(metadata) else 0,
        # llama.cpp has them in its program.
        "activation_function": "gelu",
        "qkv_proj_bias": True,
        "mlp_fc1_bias": True,
        "mlp_fc2_bias": True,
        "moe_every_n_layers": metadata.whole("moe_every_n_layers"),
        "num_experts": metadata.whole("expert_count"),
        "moe_top_k": metadata.whole("expert_used_count"),
    }


def _of_all_experts(metadata: GgufMetadata) -> dict[str, Change]:
    """Hugging Face has the matrices of all experts below each other, [inner, hidden] each."""

    def below(shape: Shape) -> Shape:
        return math.prod(shape[:-1]), shape[-1]

    return {
        "ffn_up_exps.weight": Change(lambda values: values.reshape(below(values.shape)), below),
        "ffn_down_exps.weight": first_then(
            EACH_TRANSPOSED, Change(lambda values: values.reshape(below(values.shape)), below)
        ),
    }


def _neobert(metadata: GgufMetadata) -> Config:
    _refuse_classifier(metadata)
    inner = metadata.shape("blk.0.ffn_up.weight")[0] // 2
    return {
        # Of which two thirds are the width.
        "intermediate_size": -(-3 * inner // 2),
        "max_length": metadata.whole("context_length"),
        "norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
    }


def _jina(metadata: GgufMetadata) -> Config:
    _refuse_classifier(metadata)
    return {
        "type_vocab_size": metadata.shape(_TYPES)[0],
        "position_embedding_type": "alibi",
        # llama.cpp has it in its program.
        "feed_forward_type": "geglu",
    }


def _has_query_norms(metadata: GgufMetadata) -> bool:
    return "blk.0.attn_q_norm.weight" in metadata.tensors


def _gate_beside(end: str, *, gate_first: bool) -> Callable[[GgufMetadata], Mapping[str, Join]]:
    """Gate and up are one matrix, which files from before 2025 have as two."""
    places = ("ffn_gate.weight", "ffn_up.weight")

    def joins(metadata: GgufMetadata) -> Mapping[str, Join]:
        if "blk.0.ffn_gate.weight" not in metadata.tensors:
            return {}
        return {end: below_each_other(places if gate_first else places[::-1])}

    return joins


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
        "hidden_activation": metadata.text("hidden_activation", "gelu"),
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
_NOMIC_EXPERTS_LAYER = {
    **_NOMIC_LAYER,
    "ffn_up": "mlp.fc1",
    "ffn_gate_inp": "mlp.router.layer",
    "ffn_up_exps.weight": "mlp.experts.mlp.w1",
    "ffn_down_exps.weight": "mlp.experts.mlp.w2",
}
_NEOBERT_LAYER = {
    "attn_norm": "attention_norm",
    "attn_qkv": "qkv",
    "attn_output": "wo",
    "ffn_norm": "ffn_norm",
    "ffn_up": "ffn.w12",
    "ffn_down": "ffn.w3",
}
_JINA_LAYER = {
    **_BERT_LAYER,
    "ffn_up": "mlp.gated_layers",
    "ffn_down": "mlp.wo",
    "layer_output_norm": "mlp.layernorm",
}
_JINA_LAYER_WITH_NORMS = {
    **_BERT_LAYER,
    "attn_q_norm": "attention.self.layer_norm_q",
    "attn_k_norm": "attention.self.layer_norm_k",
    "attn_norm_2": "layer_norm_1",
    "ffn_up": "mlp.up_gated_layer",
    "ffn_down": "mlp.down_layer",
    "layer_output_norm": "layer_norm_2",
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
        "nomic-bert-moe",
        GgufFamily(
            "NomicBertModel",
            "nomic_bert",
            _nomic_with_experts,
            {**_NOMIC_EXPERTS_LAYER, **_TABLES, **_both("token_embd_norm", "emb_ln")},
            prefix="encoder.layers",
            changes_of=_of_all_experts,
        ),
    ),
    (
        "neo-bert",
        GgufFamily(
            "NeoBERT",
            "neobert",
            _neobert,
            {
                **_NEOBERT_LAYER,
                "token_embd.weight": "encoder.weight",
                "enc.output_norm.weight": "layer_norm.weight",
            },
            prefix="transformer_encoder",
        ),
    ),
    (
        "jina-bert-v2",
        GgufFamily(
            "JinaBertModel",
            "bert",
            _jina,
            {**_JINA_LAYER_WITH_NORMS, **_TABLES, **_EMBEDDING_NORM},
            joins_of=_gate_beside("mlp.up_gated_layer.weight", gate_first=False),
            prefix="encoder.layer",
            has_positions=lambda _: False,
            fits=_has_query_norms,
        ),
    ),
    (
        "jina-bert-v2",
        GgufFamily(
            "JinaBertModel",
            "bert",
            _jina,
            {**_JINA_LAYER, **_TABLES, **_EMBEDDING_NORM},
            joins_of=_gate_beside("mlp.gated_layers.weight", gate_first=True),
            prefix="encoder.layer",
            has_positions=lambda _: False,
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
