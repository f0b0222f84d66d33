"""The bundled demo model's files: complete, small, and consistent with each other."""

import json
from typing import Any

import pytest
from safetensors import safe_open

from engine_worker.demo import demo_model_path

FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
}


def read_json(name: str) -> Any:
    return json.loads((demo_model_path() / name).read_text(encoding="utf-8"))


def test_every_file_of_a_checkpoint_is_there() -> None:
    assert {path.name for path in demo_model_path().iterdir() if path.is_file()} >= FILES


def test_the_weights_are_at_most_twelve_megabytes() -> None:
    assert (demo_model_path() / "model.safetensors").stat().st_size <= 12_000_000


def test_the_config_is_a_tied_llama_with_2048_tokens_of_context() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 2048
    assert config["dtype"] == "bfloat16"


def test_the_tensors_have_the_shapes_of_the_config() -> None:
    config = read_json("config.json")
    with safe_open(demo_model_path() / "model.safetensors", framework="numpy") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    assert shapes["model.embed_tokens.weight"] == [vocab, hidden]
    assert shapes["model.norm.weight"] == [hidden]
    assert len(shapes) == 2 + 9 * config["num_hidden_layers"]
    assert "lm_head.weight" not in shapes
    first = "model.layers.0."
    heads = config["num_attention_heads"] * config["head_dim"]
    assert shapes[first + "self_attn.q_proj.weight"] == [heads, hidden]
    assert shapes[first + "mlp.down_proj.weight"] == [hidden, config["intermediate_size"]]


def test_generation_is_greedy_and_ends_at_the_end_of_a_turn() -> None:
    generation = read_json("generation_config.json")
    vocabulary = read_json("tokenizer.json")["model"]["vocab"]
    ends = [vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]]
    assert generation["eos_token_id"] == ends
    assert generation["do_sample"] is False
    assert read_json("config.json")["eos_token_id"] == ends[0]


@pytest.mark.parametrize("marker", ["<tool_call>", "</tool_call>", "<tool_response>"])
def test_tool_markers_are_no_special_tokens(marker: str) -> None:
    added = {token["content"]: token for token in read_json("tokenizer.json")["added_tokens"]}
    assert added[marker]["special"] is False
    assert added["<|im_end|>"]["special"] is True
    described = read_json("tokenizer_config.json")["added_tokens_decoder"]
    assert described[str(added[marker]["id"])]["special"] is False


def test_the_template_in_the_config_is_the_one_in_the_file() -> None:
    template = (demo_model_path() / "chat_template.jinja").read_text(encoding="utf-8")
    assert read_json("tokenizer_config.json")["chat_template"] == template
