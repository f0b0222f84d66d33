"""Loading: the right numbers in the right leaf, and errors that name file and tensor."""

import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from engine_worker.compute.models.decoder import DecoderGraph, declare
from engine_worker.compute.models.hf_config import decoder_spec, load_spec
from engine_worker.compute.weights.loader import load_weights
from engine_worker.errors import CheckpointError, UnsupportedFormatError
from tests.fakes.gguf_families import GGUF_FAMILIES
from tests.fakes.gguf_files import write_gguf
from tests.fakes.tiny_checkpoint import (
    TINY_LLAMA,
    Tensors,
    random_tensors,
    write_checkpoint,
)

K_PROJ = "model.layers.1.self_attn.k_proj.weight"
BIASED = TINY_LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}


def graph_of(config: dict[str, Any] = TINY_LLAMA, dtype: Any = jnp.float32) -> DecoderGraph:
    return declare(decoder_spec(config), dtype)


def loaded(folder: Path, graph: DecoderGraph) -> dict[str, Any]:
    weights = load_weights(folder, graph)
    return {
        parameter.path: np.asarray(leaf)
        for parameter, leaf in zip(graph.parameters, weights.leaves, strict=True)
    }


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_tensor_lands_in_its_place_from_one_file_or_from_shards(
    tmp_path: Path, num_shards: int
) -> None:
    tensors = write_checkpoint(tmp_path, BIASED, num_shards=num_shards)
    leaves = loaded(tmp_path, graph_of(BIASED))
    attention, mlp = "model.layers.1.self_attn.", "model.layers.1.mlp."
    for kind in ("weight", "bias"):
        qkv = np.concatenate([tensors[f"{attention}{name}_proj.{kind}"] for name in "qkv"])
        np.testing.assert_array_equal(leaves[f"layers.1.attention.qkv.{kind}"], qkv)
        fused = np.concatenate([tensors[f"{mlp}{name}_proj.{kind}"] for name in ("gate", "up")])
        np.testing.assert_array_equal(leaves[f"layers.1.mlp.gate_up.{kind}"], fused)
        np.testing.assert_array_equal(
            leaves[f"layers.1.mlp.down.{kind}"], tensors[f"{mlp}down_proj.{kind}"]
        )
    np.testing.assert_array_equal(leaves["head.weight"], tensors["lm_head.weight"])
    np.testing.assert_array_equal(leaves["embedding.weight"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(leaves["norm.weight"], tensors["model.norm.weight"])
    sizes = sum(tensor.size for tensor in tensors.values())
    assert sum(leaf.size for leaf in leaves.values()) == sizes


def test_tensors_saved_from_the_base_model_have_no_model_before_their_names(
    tmp_path: Path,
) -> None:
    """As Qwen3-Embedding has them: they were missing one and all."""
    whole, base = tmp_path / "whole", tmp_path / "base"
    whole.mkdir()
    base.mkdir()
    tensors = write_checkpoint(whole)
    write_checkpoint(
        base, tensors={name.removeprefix("model."): one for name, one in tensors.items()}
    )
    graph = graph_of()
    expected, found = loaded(whole, graph), loaded(base, graph)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_tensors_are_cast_to_the_type_of_the_graph(
    tmp_path: Path, stored: Any, wanted: Any
) -> None:
    tensors = write_checkpoint(tmp_path, tensors=random_tensors(TINY_LLAMA, stored))
    leaf = loaded(tmp_path, graph_of(dtype=wanted))["layers.1.mlp.down.weight"]
    expected = tensors["model.layers.1.mlp.down_proj.weight"].astype(wanted)
    assert leaf.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(leaf, expected)


def test_progress_rises_to_one_and_names_what_was_loaded(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    calls: list[tuple[float, str]] = []
    graph = graph_of()
    load_weights(tmp_path, graph, progress=lambda fraction, text: calls.append((fraction, text)))
    fractions = [fraction for fraction, _ in calls]
    assert len(calls) == len(graph.parameters)
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] == 1.0
    assert "embedding.weight" in calls[0][1]


def refused(folder: Path, error: type[Exception], *named: str) -> None:
    graph = declare(load_spec(folder), jnp.float32)
    with pytest.raises(error) as caught:
        load_weights(folder, graph)
    for text in named:
        assert text in str(caught.value)


def without(name: str) -> Tensors:
    return {key: value for key, value in random_tensors(TINY_LLAMA).items() if key != name}


def test_a_missing_tensor_is_named_with_the_file_that_should_hold_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensors=without(K_PROJ))
    refused(tmp_path, CheckpointError, "model.safetensors", K_PROJ, "missing")


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = without(K_PROJ) | {K_PROJ: np.zeros((8, 15), np.float32)}
    write_checkpoint(tmp_path, tensors=tensors, num_shards=2)
    refused(tmp_path, CheckpointError, "-of-00002.safetensors", K_PROJ, "[8, 15]", "[8, 16]")


def test_an_unexpected_type_is_named(tmp_path: Path) -> None:
    tensors = without(K_PROJ) | {K_PROJ: np.zeros((8, 16), np.int8)}
    write_checkpoint(tmp_path, tensors=tensors)
    refused(tmp_path, CheckpointError, "model.safetensors", K_PROJ, "I8")


def test_quantised_tensors_are_refused_naming_the_format(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.qweight"
    write_checkpoint(tmp_path, tensors=without(K_PROJ) | {name: np.zeros((2, 2), np.int32)})
    refused(tmp_path, UnsupportedFormatError, name, "AWQ or GPTQ")


def test_a_truncated_file_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(tmp_path, CheckpointError, "model.safetensors", "truncated", "tensor '")


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_head_of_its_own_in_the_file_goes_before_a_tied_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_shards: int
) -> None:
    tied = {**TINY_LLAMA, "tie_word_embeddings": True}
    tensors = random_tensors({**TINY_LLAMA, "tie_word_embeddings": False})
    write_checkpoint(tmp_path, tied, tensors=tensors, num_shards=num_shards)
    weights = load_weights(tmp_path, declare(load_spec(tmp_path), jnp.float32))
    assert not weights.graph.spec.tied_head
    by_path = {
        parameter.path: leaf
        for parameter, leaf in zip(weights.graph.parameters, weights.leaves, strict=True)
    }
    np.testing.assert_array_equal(by_path["head.weight"], tensors["lm_head.weight"])
    assert "tie_word_embeddings" in caplog.text


def test_a_head_that_repeats_the_embedding_stays_tied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tied = {**TINY_LLAMA, "tie_word_embeddings": True}
    tensors = random_tensors(TINY_LLAMA)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_checkpoint(tmp_path, tied, tensors=tensors)
    weights = load_weights(tmp_path, declare(load_spec(tmp_path), jnp.float32))
    assert weights.graph.spec.tied_head
    assert "tie_word_embeddings" not in caplog.text


def test_tensors_without_a_place_are_logged_and_ignorable_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_tensors(TINY_LLAMA)
    known = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32),
    }
    with caplog.at_level(logging.WARNING, logger="penstock.engine.weights"):
        write_checkpoint(tmp_path, tensors=tensors | known)
        load_weights(tmp_path, graph_of())
        assert caplog.messages == []
        extra = known | {"model.vision.weight": np.zeros(2, np.float32)}
        write_checkpoint(tmp_path, tensors=random_tensors(TINY_LLAMA) | extra)
        load_weights(tmp_path, graph_of())
    (message,) = caplog.messages
    assert "1 tensors have no place" in message
    assert "model.vision.weight" in message


def add(folder: Path, config: dict[str, Any], *names: str) -> None:
    more = {name: np.ones(4, np.float32) for name in names}
    write_checkpoint(folder, config, random_tensors(config) | more)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.self_attn.sinks",
        "model.layers.1.mlp.experts.0.w4.weight",
    ],
)
def test_a_tensor_of_a_served_layer_without_a_place_is_refused_with_a_way_out(
    tmp_path: Path, name: str
) -> None:
    """It was a line in the log, and the answers were wrong."""
    add(tmp_path, TINY_LLAMA, name)
    refused(tmp_path, CheckpointError, "model.safetensors", name, "LlamaForCausalLM", "config.json")


def test_a_bias_of_zeros_is_missed_by_no_layer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """AutoGPTQ saves one with each module, also of a model that has none."""
    name = "model.layers.1.self_attn.q_proj.bias"
    expected = loaded_of(tmp_path, {})
    found = loaded_of(tmp_path, {name: np.zeros(16, np.float16)})
    assert f"1 tensors have no place in LlamaForCausalLM and are not used: {name}" in caplog.text
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
    for more in ({name: np.eye(1, 16, dtype=np.float16)[0]}, {name: np.zeros((4, 4), np.float16)}):
        write_checkpoint(tmp_path, tensors=random_tensors(TINY_LLAMA) | more)
        refused(tmp_path, CheckpointError, "model.safetensors", name)


def loaded_of(folder: Path, more: Tensors) -> dict[str, Any]:
    write_checkpoint(folder, tensors=random_tensors(TINY_LLAMA) | more)
    return loaded(folder, graph_of())


def test_a_tensor_that_a_gguf_file_alone_knows_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    write_gguf(
        tmp_path / "m.gguf",
        tmp_path,
        more=lambda writer: writer.add_tensor("blk.1.odd.weight", np.ones(4, np.float32)),
    )
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, CheckpointError, "m.gguf", "blk.1.odd.weight")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.input_layernorm.weight",
        "vision_tower.encoder.layers.0.norm.weight",
        "mtp.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.k_scale",
        "model.layers.0.self_attn.v_scale",
        "model.layers.0.self_attn.q_proj.weight_g_idx",
    ],
)
def test_what_no_served_layer_computes_with_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    add(tmp_path, TINY_LLAMA, name)
    load_weights(tmp_path, graph_of())
    assert f"1 tensors have no place in LlamaForCausalLM and are not used: {name}" in caplog.text


def test_masks_that_old_checkpoints_of_gpt2_carry_along_are_no_biases(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = next(dict(case.config) for case in GGUF_FAMILIES if case.arch == "gpt2")
    add(tmp_path, config, "transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")
    load_weights(tmp_path, graph_of(config))
    assert caplog.messages == []
