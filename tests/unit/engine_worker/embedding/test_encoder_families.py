"""Configs of encoders become specs or are refused by name; docs/models.md lists what is served."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine_worker.compute.models.spec import RopeSpec
from engine_worker.compute.weights.gguf.encoder_families import ENCODERS
from engine_worker.embedding.attention import distance_rows
from engine_worker.embedding.encoder_spec import DisentangledSpec, HeadSpec
from engine_worker.embedding.families.registry import FAMILIES, encoder_spec, is_encoder
from engine_worker.embedding.labels import Labels, read_labels
from engine_worker.errors import ModelConfigError, ModelLoadError
from engine_worker.loading.text_models import is_text_model
from tests.fakes.encoder_families import BY_DEFINITION, CASES
from tests.fakes.odd_values import with_odd_values

PAGE = Path(__file__).parents[4] / "docs" / "models.md"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 200,
    "max_position_embeddings": 80,
}
NOMIC: dict[str, Any] = {
    "model_type": "nomic_bert",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 8192,
    "max_trained_positions": 2048,
    "vocab_size": 200,
    "activation_function": "swiglu",
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_fraction": 1.0,
}


def of(model_type: str, **fields: Any) -> dict[str, Any]:
    return {**SIZES, "model_type": model_type, **fields}


def test_modernbert_has_windows_between_whole_layers_and_no_norm_before_the_first() -> None:
    spec = encoder_spec(of("modernbert", local_attention=128))
    assert [layer.window for layer in spec.layers] == [None, 64, 64, None]
    assert [layer.has_attention_norm for layer in spec.layers] == [False, True, True, True]
    thetas = [layer.rope.theta for layer in spec.layers if layer.rope is not None]
    assert thetas == [160_000.0, 10_000.0, 10_000.0, 160_000.0]
    assert (spec.is_pre_norm, spec.is_gated, spec.norm_bias, spec.qkv_bias) == (
        *(True, True),
        *(False, False),
    )


def test_windows_of_modernbert_turn_as_the_other_layers_where_their_own_base_is_null() -> None:
    config = of("modernbert", global_rope_theta=80_000.0, local_rope_theta=None)
    assert {layer.rope for layer in encoder_spec(config).layers} == {RopeSpec(theta=80_000.0)}


def test_nomic_has_experts_in_every_second_layer_where_its_config_says_so() -> None:
    moe = {"moe_every_n_layers": 2, "num_experts": 8, "moe_top_k": 2, "activation_function": "gelu"}
    spec = encoder_spec({**NOMIC, "n_layer": 4, **moe})
    experts = [layer.experts for layer in spec.layers]
    assert [one is not None for one in experts] == [False, True, False, True]
    assert experts[1] is not None
    assert (experts[1].num_experts, experts[1].num_experts_per_token) == (8, 2)
    assert not experts[1].normalize_weights
    assert {layer.experts for layer in encoder_spec({**NOMIC, "num_experts": 8}).layers} == {None}


def test_distances_of_deberta_share_rows_beyond_half_the_table() -> None:
    wanted = encoder_spec(DEBERTA).disentangled
    assert wanted == DisentangledSpec(
        32, 80, has_keys=True, has_queries=True, is_shared=False, has_norm=False
    )
    rows = distance_rows(80, 32, 80).tolist()
    # From a key far behind the query to one far before it; the table counts the other way.
    assert rows == sorted(rows, reverse=True)
    assert rows[79 - 16 : 79 + 17] == list(range(48, 15, -1))
    assert (rows[0], rows[-1]) == (63, 1)


def test_nomic_takes_texts_as_long_as_it_was_trained_on() -> None:
    assert encoder_spec(NOMIC).max_tokens == 2048


DEBERTA = of("deberta-v2", relative_attention=True, pos_att_type="p2c|c2p", position_buckets=32)
DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": 200,
}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (of("bert"), "num_hidden_layers"),
        (of("xlm-roberta"), "num_hidden_layers"),
        (of("mpnet"), "num_hidden_layers"),
        (of("modernbert"), "num_hidden_layers"),
        (of("new"), "num_hidden_layers"),
        (NOMIC, "n_layer"),
        (DISTILBERT, "n_layers"),
        (of("electra"), "num_hidden_layers"),
        (of("albert"), "num_hidden_layers"),
        (DEBERTA, "num_hidden_layers"),
        (of("neobert"), "num_hidden_layers"),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_layers_that_no_file_could_hold_are_refused_before_there_is_a_list_of_them(
    config: dict[str, Any], name: str
) -> None:
    assert encoder_spec({**config, name: 1024}).num_layers == 1024
    with pytest.raises(ModelConfigError, match=f"{name} must be a whole number from 1 to 1024"):
        encoder_spec({**config, name: 1025})


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (of("modernbert"), ("max_position_embeddings",)),
        (of("new"), ("max_position_embeddings",)),
        (NOMIC, ("n_positions", "max_trained_positions")),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_rows_are_no_longer_than_their_programs_may_be(
    config: dict[str, Any], names: tuple[str, ...]
) -> None:
    assert encoder_spec({**config, **dict.fromkeys(names, 8192)}).max_tokens == 8192
    assert encoder_spec({**config, **dict.fromkeys(names, 2**24)}).max_tokens == 2**15


def test_a_classifier_has_as_many_labels_as_its_config_names() -> None:
    spec = encoder_spec(
        of(
            "bert",
            architectures=["BertForSequenceClassification"],
            id2label={"0": "no", "1": "yes", "2": "maybe"},
        )
    )
    assert spec.head == HeadSpec(3, "tanh")
    assert encoder_spec(of("bert", architectures=["BertForMaskedLM"])).head is None


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (of("bert", position_embedding_type="relative_key"), "relative_key"),
        (of("xlm-roberta", position_embedding_type="rotary"), "jina-embeddings-v3"),
        (of("roberta", position_embedding_type="alibi"), "alibi"),
        (of("bert", position_embedding_type="alibi"), "feed_forward_type 'original'"),
        (of("jina_embeddings_v3"), "adapters for each task"),
        (of("bert", is_decoder=True), "is_decoder"),
        (of("bert", hidden_act="mish"), "mish"),
        (of("bert", num_attention_heads=5), "hidden_size"),
        (of("roberta", max_position_embeddings=2), "max_position_embeddings"),
        (of("mpnet", relative_attention_num_buckets=64), "relative_attention_num_buckets"),
        (of("modernbert", layer_types=["full_attention"]), "layer_types"),
        (of("modernbert", rope_parameters={"full_attention": {
            "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}), "dynamic"),
        (of("modernbert", architectures=["ModernBertForSequenceClassification"],
            classifier_pooling="max"), "classifier_pooling"),
        ({**NOMIC, "moe_every_n_layers": 2, "activation_function": "geglu"}, "geglu"),
        ({**NOMIC, "moe_every_n_layers": 2, "num_shared_experts": 1,
            "activation_function": "gelu"}, "num_shared_experts"),
        ({**NOMIC, "prenorm": True}, "prenorm"),
        ({**NOMIC, "rotary_emb_fraction": 0.5}, "rotary_emb_fraction"),
        ({**NOMIC, "activation_function": "relu"}, "relu"),
        (of("new", position_embedding_type="absolute"), "position_embedding_type"),
        (of("new", rope_scaling={"type": "ntk", "factor": 2.0, "mixed_b": 0.5}), "mixed_b"),
        (of("gte", head_dim=16), "head_dim"),
        (of("deberta-v2"), "relative_attention"),
        ({**DEBERTA, "conv_kernel_size": 3}, "conv_kernel_size"),
        ({**DEBERTA, "pos_att_type": "p2c|p2p"}, "p2p"),
        ({**DEBERTA, "position_buckets": 256}, "position_buckets"),
        (of("deberta"), "V2 and V3 are"),
        (of("albert", num_hidden_groups=2), "num_hidden_groups"),
        (of("electra", position_embedding_type="relative_key"), "relative_key"),
        (of("neobert", hidden_act="gelu"), "SwiGLU"),
        (of("neobert", architectures=["NeoBERTForSequenceClassification"]), "classifier"),
        (of("bert", architectures=["HF_ColBERT"]), "late interaction"),
        (of("bert", architectures=["BertForTokenClassification"]),
            'labels each token of a text.*name "BertModel" as its architecture'),
        (of("roberta", architectures=["RobertaForQuestionAnswering"]), "answer's place"),
        (of("deberta-v2", architectures=["DebertaV2ForMultipleChoice"]), "each choice"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    assert is_encoder(config)
    with pytest.raises(ModelLoadError, match=named):
        encoder_spec(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Labels(("LABEL_0", "LABEL_1"), "single_label")),
        ({"num_labels": 1}, Labels(("LABEL_0",), "regression")),
        ({"id2label": {"1": "b", "0": "a"}}, Labels(("a", "b"), "single_label")),
        (
            {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"},
            Labels(("a", "b"), "multi_label"),
        ),
        ({"num_labels": 2, "problem_type": "regression"}, Labels(
            ("LABEL_0", "LABEL_1"), "regression")),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, Labels(
            ("LABEL_0",), "regression")),
    ],
)  # fmt: skip
def test_labels_are_those_of_the_config(config: dict[str, Any], expected: Labels) -> None:
    assert read_labels(config) == expected


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "without gaps"),
        ({"id2label": {}}, "1 to 4096"),
        ({"id2label": {str(number): "x" for number in range(5000)}}, "1 to 4096"),
        ({"id2label": {"0": "x" * 300}}, "256 characters"),
        ({"num_labels": 10**9}, "num_labels"),
    ],
)
def test_labels_that_make_no_sense_are_refused(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelConfigError, match=named):
        read_labels(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, False),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, True),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}, True),
        ({"model_type": "qwen3"}, False),
        ({"model_type": "electra", "architectures": ["ElectraModel"]}, True),
        ({"model_type": "xlnet", "architectures": ["XLNetModel"]}, True),
        ({"model_type": "unheard", "architectures": ["UnheardModel"]}, False),
        ({"model_type": "eurobert", "architectures": ["EuroBertModel"]}, True),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, True),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": "vision"}, False),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "is_causal": False}, True),
    ],
)
def test_what_generates_nothing_is_known_by_its_config(
    config: dict[str, Any], expected: bool
) -> None:
    assert is_text_model(config) is expected


def test_the_page_of_models_lists_every_family_with_its_parity_cases() -> None:
    text = PAGE.read_text(encoding="utf-8").split("## Encoders, cross-encoders and classifiers")[1]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ][2:]
    assert [(row[0], tuple(re.findall(r"`([^`]+)`", row[1]))) for row in rows] == [
        (family.title, family.model_types) for family in FAMILIES
    ]
    files = {row[0]: re.findall(r"`([^`]+)`", row[3]) for row in rows}
    # RoBERTa's are written under the name of BERT.
    kinds = {(one.model_type, name) for name, one in ENCODERS} | {("roberta", "bert")}
    assert files == {
        family.title: sorted({name for kind, name in kinds if kind in family.model_types})
        for family in FAMILIES
    }
    listed = {case: row[0] for row in rows for case in re.findall(r"`([^`]+)`", row[4])}
    assert listed == {name: case.title for name, case in CASES.items()}
    assert {row[0] for row in rows if not re.findall(r"`([^`]+)`", row[4])} == BY_DEFINITION


@pytest.mark.parametrize("model_type", [[], {"bert": 1}, 5, None, "unheard"])
def test_a_model_type_that_is_no_encoders_ends_in_no_type_error(model_type: object) -> None:
    """A list there ended the engine with a traceback."""
    config = {"model_type": model_type}
    assert not is_encoder(config)
    with pytest.raises(ModelLoadError, match="not a supported encoder"):
        encoder_spec(config)


@pytest.mark.parametrize("name", CASES)
def test_an_odd_value_is_refused_as_such_or_read(name: str) -> None:
    case = CASES[name]
    config = case.config(num_labels=3, architectures=[case.classifier]).to_dict()
    values = json.loads(json.dumps(case.edit(config), default=str))
    for odd in with_odd_values({**values, "problem_type": None}):
        for read in (encoder_spec, read_labels):
            with contextlib.suppress(ModelLoadError):
                read(odd)
