"""Experts of quantised checkpoints on the native kernels: they stay as they are stored."""

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.compute.backends.base import PackedDecoder, StepTokens, forward
from engine_worker.compute.backends.choice import stored_label
from engine_worker.compute.backends.cpu_native import coverage
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.loader import open_weights
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.config import ModelSettings
from engine_worker.demo import demo_model_path
from engine_worker.errors import CheckpointError
from engine_worker.loading.decoder import choose_for_settings, load_model
from engine_worker.loading.gguf_folder import with_model_folder
from engine_worker.loading.memory_estimate import estimate_memory
from engine_worker.loading.weights import load_for_backend
from protocol.runtime.gguf_header import read_gguf_shards
from tests.fakes.packed_decoder import needs_native
from tests.fakes.quantised_experts import GROUP, METHODS, write_mxfp4, write_quantised
from tests.fakes.runner_requests import RunnerRequest, begin, generate, step
from tests.fakes.stored_experts import (
    BLOCK_SIZE,
    MAX_LENGTH,
    WIDTH,
    case_of,
    dense_reference,
    expert_paths,
    int8_activations,
    load_stored,
    native_backend,
    write_stored,
)

pytestmark = needs_native

QWEN3 = case_of("qwen3moe", "Qwen3MoeForCausalLM")
MIXTRAL = case_of("llama", "MixtralForCausalLM")
GPT_OSS = case_of("gpt-oss", "GptOssForCausalLM")
GRANITE = case_of("granitemoe", "GraniteMoeForCausalLM")
QWEN2 = case_of("qwen2moe", "Qwen2MoeForCausalLM")
CASES = {"qwen3": QWEN3, "mixtral": MIXTRAL, "gpt_oss": GPT_OSS, "granite": GRANITE, "qwen2": QWEN2}
MORE = (
    ("qwen3", "Q8_0"),
    ("mixtral", "Q4_0"),
    ("granite", "Q4_0"),
    ("qwen2", "Q8_0"),
    ("qwen3", "Q6_K"),
    ("gpt_oss", "Q5_K"),
    ("gpt_oss", "MXFP4"),
    ("qwen3", "IQ4_XS"),
)
PROMPT = [int(x) for x in np.random.default_rng(4).integers(0, 64, 20)]


def stored_bytes(path: Path, part: str) -> int:
    """Of a file's tensors with a part in their names."""
    tensors = (one for file in read_gguf_shards(path) for one in file.tensors.values())
    return sum(tensor.end - tensor.start for tensor in tensors if part in tensor.name)


def resident_bytes(decoder: PackedDecoder, paths: list[str]) -> int:
    """Of the arrays that hold some weights."""
    leaves = iter(decoder.leaves)
    sizes = {
        weight.name: sum(next(leaves).nbytes for _ in weight.parts)
        for weight in decoder.backend.packing.weights
    }
    return sum(sizes[path] for path in paths)


def runner_of(decoder: PackedDecoder) -> tuple[JaxModelRunner, RunnerRequest]:
    """Its runner, and a request for what follows the prompt."""
    runner = JaxModelRunner.create(
        decoder,
        num_blocks=2 * MAX_LENGTH // BLOCK_SIZE,
        max_model_len=MAX_LENGTH,
        block_size=BLOCK_SIZE,
        max_num_seqs=1,
        max_num_batched_tokens=32,
    )
    blocks = list(range(MAX_LENGTH // BLOCK_SIZE))
    return runner, RunnerRequest(0, PROMPT, blocks)


def chosen_after(decoder: PackedDecoder, tokens: list[int]) -> list[int]:
    """The greedy token at each place of an output, when those before it are given."""
    runner, request = runner_of(decoder)
    begin(runner, request)
    chosen = []
    for token in tokens:
        step(runner, [request])
        chosen.append(request.output[-1])
        request.output[-1] = token
    return chosen


def logits_of(decoder: PackedDecoder) -> np.ndarray:
    """Of all tokens of the prompt in one step."""
    backend, num_tokens = decoder.backend, len(PROMPT)
    layout = backend.kv_layout(num_blocks=12, block_size=BLOCK_SIZE)
    tables = jnp.arange(max(8, backend.table_multiple(BLOCK_SIZE)), dtype=jnp.int32)[None]
    tokens = StepTokens(
        token_ids=jnp.asarray([PROMPT], jnp.int32),
        positions=jnp.arange(num_tokens, dtype=jnp.int32)[None],
        is_token=jnp.ones((1, num_tokens), bool),
        num_stored=jnp.asarray([num_tokens], jnp.int32),
        block_tables=(tables,) * len(layout.num_blocks),
        slots=jnp.zeros(1, jnp.int32),
        new_slots=jnp.zeros(1, jnp.int32),
        layout=layout,
    )
    blocks = backend.bind(decoder.leaves)
    hidden, _ = forward(blocks, backend.spec, layout.allocate(), tokens)
    return np.asarray(blocks.head(hidden))


def assert_same_text(folder: Path, decoder: PackedDecoder) -> None:
    """Logits of a prompt, and 64 greedy tokens after it, beside the dequantised reference.

    What is left between the two is the order of sums, and that in some tokens one activation of
    thousands lies so near to the middle that it is rounded the other way. Tokens behind such a one
    read its keys and values.
    """
    reference = dense_reference(folder)
    with int8_activations(decoder.backend):
        expected = reference.logits(PROMPT)
        tokens = reference.continue_greedily(PROMPT, 64)
        best = np.sort(reference.logits([*PROMPT, *tokens])[len(PROMPT) - 1 : -1], axis=-1)
    errors = np.abs(logits_of(decoder) - expected).max(axis=-1) / expected.std()
    assert np.sort(errors)[1] < 1e-4, errors
    assert errors.max() < 0.1, errors
    is_equal = np.array(chosen_after(decoder, tokens)) == tokens
    is_close = best[:, -1] - best[:, -2] < 0.1 * expected.std()
    assert (is_equal | is_close).all()
    assert is_equal.sum() >= 60
    assert len(set(tokens)) > 8


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3", "Q4_0"),
        pytest.param("mixtral", "Q4_K", marks=pytest.mark.long),
        pytest.param("gpt_oss", "Q8_0", marks=pytest.mark.long),
        *(pytest.param(*case, marks=pytest.mark.long) for case in MORE),
    ],
)
def test_experts_in_blocks_give_the_dequantised_models_logits_and_64_greedy_tokens(
    tmp_path: Path, name: str, kind: str
) -> None:
    write_stored(tmp_path, CASES[name], kind)
    decoder = load_stored(tmp_path)
    assert set(expert_paths(tmp_path)) <= set(decoder.backend.stored_formats)
    assert_same_text(tmp_path, decoder)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("Q8_0", 1.0),
        ("Q4_0", 1.0),
        ("MXFP4", 1.0),
        ("Q4_K", 1.03),
        ("IQ4_NL", 1.0),
        ("IQ4_XS", 1.02),
    ],
)
def test_experts_take_the_memory_of_their_file(tmp_path: Path, kind: str, most: float) -> None:
    path = write_stored(tmp_path, QWEN3, kind)
    decoder = load_stored(tmp_path)
    stored = stored_bytes(path, "_exps.weight")
    assert stored <= resident_bytes(decoder, expert_paths(tmp_path)) <= most * stored


def assert_read_as_dequantised(folder: Path, weights: Iterable[str] | None = None) -> None:
    """Some weights, or all experts."""
    backend, checkpoint = native_backend(folder), open_checkpoint(folder)
    parameters = backend.graph.parameters
    paths = [parameter.path for parameter in parameters]
    with open_weights(
        checkpoint,
        parameters,
        weight_sources(backend.graph, checkpoint.tensors.keys()),
        architecture="",
        is_ignorable=lambda _: False,
    ) as reader:
        for path in weights or expert_paths(folder):
            index = paths.index(path)
            kept = reader.read_blocks(index, backend.stored_formats[path])
            expected = reader.read(index).reshape(-1, *parameters[index].shape[-2:])
            np.testing.assert_array_equal([one.numbers() for one in kept], expected)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(
            kind, name, marks=() if kind == "MXFP4" or name == "qwen3" else pytest.mark.long
        )
        for kind in ("Q4_0", "Q6_K", "MXFP4")
        for name in CASES
    ],
)
def test_each_expert_is_read_as_the_numbers_that_are_dequantised(
    tmp_path: Path, name: str, kind: str
) -> None:
    """Also where the file has them joined, transposed or with the rows of halves in turn."""
    write_stored(tmp_path, CASES[name], kind)
    assert_read_as_dequantised(tmp_path)


def test_matrices_of_blocks_without_a_kernel_stay_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_kernel(*args: object) -> str:
        return "no kernel"

    monkeypatch.setattr(coverage, "uncovered", without_kernel)
    case = case_of("cohere2", "Cohere2ForCausalLM")
    tied = replace(case, config={**case.config, "tie_word_embeddings": True})
    write_stored(tmp_path, tied, "Q4_0")
    backend = native_backend(tmp_path)
    assert backend.product_paths
    assert backend.product_paths <= backend.stored_formats.keys()
    assert_read_as_dequantised(tmp_path, backend.product_paths)


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "granite"])
def test_gate_and_up_of_two_formats_are_one_matrix(tmp_path: Path, name: str) -> None:
    """Files of mixed types have such pairs; nothing is lost where they are joined."""
    kinds = {"ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q6_K", "ffn_down_exps": "Q5_0"}
    write_stored(tmp_path, CASES[name], "Q8_0", kinds=kinds)
    assert_read_as_dequantised(tmp_path)


def test_experts_in_a_type_that_does_not_repack_are_dequantised_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stored(tmp_path, QWEN3, "Q8_0", kinds={"_exps": "TQ2_0"})
    kept = native_backend(tmp_path).stored_formats
    assert "layers.0.attention.qkv.weight" in kept
    assert not set(expert_paths(tmp_path)) & set(kept)
    caplog.set_level(logging.INFO)
    load_stored(tmp_path)
    # 3 of each of 6 experts of 2 layers, and the routers.
    assert "10 tensors stay as they are (int8 in groups of 32), 38 are dequantised" in caplog.text


def test_routers_keep_their_full_width(tmp_path: Path) -> None:
    write_stored(tmp_path, QWEN2, "Q8_0")
    kept = native_backend(tmp_path).stored_formats
    assert "layers.0.mlp.shared.gate_up.weight" in kept
    assert not [path for path in kept if path.endswith(("router.weight", "shared_gate.weight"))]
    # Four matrices a layer are kept beside attention's two, and both tables.
    assert stored_label(native_backend(tmp_path)).startswith("int8 in groups of 32 (14 of 18 ")


def settings_of(path: Path, **changes: object) -> ModelSettings:
    settings = ModelSettings(path=path, name="m", block_size=BLOCK_SIZE, max_num_seqs=1)
    return replace(settings, **changes)  # type: ignore[arg-type]


@pytest.mark.long
def test_xla_dequantises_them_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_stored(tmp_path, QWEN3, "Q4_0")
    backend = choose_for_settings(settings_of(tmp_path, dtype="float32", backend="xla"))
    assert backend.stored_formats == {}
    caplog.set_level(logging.INFO)
    decoder = load_for_backend(tmp_path, backend, None, lambda *_: None)
    assert "stored as GGUF Q4_0; 0 tensors stay as they are (none), " in caplog.text
    output = generate(*runner_of(decoder), 16)
    assert output == dense_reference(tmp_path).continue_greedily(PROMPT, 16)


def test_the_log_tells_how_many_tensors_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stored(tmp_path, QWEN3, "Q4_0")
    caplog.set_level(logging.INFO)
    load_stored(tmp_path)
    # 2 layers: 4 of attention and 3 of each of 6 experts; both tables; routers are dequantised.
    assert "46 tensors stay as they are (int4 in groups of 32), 2 are dequantised" in caplog.text


def test_they_are_packed_once_and_mapped_later(tmp_path: Path) -> None:
    write_stored(tmp_path / "m", GPT_OSS, "Q8_0")
    first = load_stored(tmp_path / "m", tmp_path / "cache")
    told: list[str] = []
    again = load_for_backend(
        tmp_path / "m", first.backend, tmp_path / "cache", lambda done, text: told.append(text)
    )
    assert told == []
    for one, other in zip(first.leaves, again.leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_estimate_is_of_the_file_and_of_one_expert_at_a_time(tmp_path: Path) -> None:
    path = write_stored(tmp_path, QWEN3, "Q4_0")
    backend, settings = native_backend(tmp_path), settings_of(tmp_path)
    estimate = estimate_memory(backend, settings, kv_memory_bytes=0)
    assert estimate.weights_bytes == load_stored(tmp_path).size_bytes
    gate_up = stored_bytes(path, "blk.0.ffn_gate_exps") * 2
    assert estimate.loading_bytes == gate_up + 2 * WIDTH * WIDTH * 4
    # Dequantised to bfloat16, the experts alone take more than three times the file's bytes.
    dequantised = XlaBackend(declare(load_spec(tmp_path), "bfloat16"))
    wide = estimate_memory(dequantised, settings, kv_memory_bytes=0)
    assert wide.weights_bytes > 3 * estimate.weights_bytes


def test_a_broken_scale_of_one_expert_names_file_and_tensor(tmp_path: Path) -> None:
    path = write_stored(tmp_path, QWEN3, "Q8_0")
    name = "blk.1.ffn_down_exps.weight"
    (file,) = read_gguf_shards(path)
    tensor = file.tensors[name]
    size = (tensor.end - tensor.start) // tensor.shape[0]
    content = bytearray(path.read_bytes())
    content[tensor.start + 4 * size : tensor.start + 4 * size + 2] = b"\xff\x7f"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"m\.gguf: tensor '{name}' is broken"):
        load_stored(tmp_path)


def test_experts_that_are_cut_off_name_file_and_tensor(tmp_path: Path) -> None:
    path = write_stored(tmp_path, QWEN3, "Q8_0")
    (file,) = read_gguf_shards(path)
    tensor = file.tensors["blk.1.ffn_up_exps.weight"]
    path.write_bytes(path.read_bytes()[: tensor.end - 40])
    with pytest.raises(CheckpointError, match=r"m\.gguf.*tensor 'blk\.1\.ffn_"):
        load_stored(tmp_path)


@pytest.mark.parametrize(
    "method",
    [pytest.param(one, marks=pytest.mark.long) for one in METHODS],
)
def test_experts_of_quantised_folders_stay_and_give_the_dequantised_models_tokens(
    tmp_path: Path, method: str
) -> None:
    write_quantised(tmp_path, dict(QWEN3.config), method)
    decoder = load_stored(tmp_path)
    assert set(expert_paths(tmp_path)) <= set(decoder.backend.stored_formats)
    assert_same_text(tmp_path, decoder)


@pytest.mark.parametrize(("method", "bits"), [("awq", 5.25), ("w4a16", 5.0), ("w8a8", 8.125)])
def test_experts_of_quantised_folders_take_their_bits(
    tmp_path: Path, method: str, bits: float
) -> None:
    """A scale and a zero, or a scale in float32, for 32 inputs; a scale for all of 256."""
    write_quantised(tmp_path, dict(QWEN3.config), method)
    decoder = load_stored(tmp_path)
    numbers = sum(
        one.num_elements
        for one in decoder.backend.graph.parameters
        if one.path in expert_paths(tmp_path)
    )
    assert resident_bytes(decoder, expert_paths(tmp_path)) == numbers * bits / 8


def test_one_experts_broken_scale_in_a_folder_names_file_and_tensor(tmp_path: Path) -> None:
    tensors = write_quantised(tmp_path, dict(QWEN3.config), "awq")
    module = "model.layers.1.mlp.experts.3.up_proj"
    tensors[f"{module}.scales"][2, 5] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    named = rf"model\.safetensors: tensor '{module}\.weight' holds a scale that is not"
    with pytest.raises(CheckpointError, match=named):
        load_stored(tmp_path)


def test_one_expert_in_another_order_leaves_all_of_its_layer_dequantised(tmp_path: Path) -> None:
    tensors = write_quantised(tmp_path, dict(QWEN3.config), "gptq")
    order = np.random.default_rng(2).permutation(WIDTH) // GROUP
    module = "model.layers.1.mlp.experts.3.up_proj"
    tensors[f"{module}.g_idx"] = order.astype(np.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    kept = native_backend(tmp_path).stored_formats
    assert set(expert_paths(tmp_path)) - set(kept) == {"layers.1.mlp.gate_up.weight"}
    load_stored(tmp_path)


def test_experts_of_gpt_oss_stay_in_mxfp4_and_give_the_dequantised_models_tokens(
    tmp_path: Path,
) -> None:
    tensors = write_mxfp4(tmp_path, dict(GPT_OSS.config))
    decoder = load_stored(tmp_path)
    assert set(decoder.backend.stored_formats) == set(expert_paths(tmp_path))
    assert stored_label(decoder.backend).startswith("fp4 in groups of 32 (4 of ")
    stored = sum(x.nbytes for name, x in tensors.items() if name.endswith(("_blocks", "_scales")))
    assert resident_bytes(decoder, expert_paths(tmp_path)) == stored
    assert_read_as_dequantised(tmp_path)
    assert_same_text(tmp_path, decoder)


def test_one_experts_scale_in_mxfp4_that_is_no_number_names_file_and_tensor(
    tmp_path: Path,
) -> None:
    tensors = write_mxfp4(tmp_path, dict(GPT_OSS.config))
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name][3, 2, 1] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors: tensor '{name}' holds a scale"
    ):
        load_stored(tmp_path)


def test_mxfp4_of_a_file_that_was_cut_since_it_was_opened_names_the_tensor(tmp_path: Path) -> None:
    write_mxfp4(tmp_path, dict(GPT_OSS.config))
    checkpoint = open_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    name = "model.layers.1.mlp.experts.down_proj"
    with checkpoint.reading_blocks() as read:
        read(name, 4)
        with path.open("r+b") as stream:
            stream.truncate(checkpoint.tensors[name].start + 100)
        with pytest.raises(CheckpointError, match=rf"truncated: tensor '{name}_"):
            read(name, 4)


@pytest.mark.long
def test_the_offer_says_which_type_experts_are_computed_in(tmp_path: Path) -> None:
    """What `/v1/models/{id}` shows, of a GGUF file as it is served."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((demo_model_path() / name).read_bytes())
    demo = json.loads((demo_model_path() / "config.json").read_text(encoding="utf-8"))
    config = {**QWEN3.config, "vocab_size": demo["vocab_size"]}
    path = write_stored(tmp_path, replace(QWEN3, config=config), "Q4_0")
    settings = settings_of(path, weights_cache_dir=tmp_path / "w", kv_memory_bytes=2**22)
    offer = load_model(with_model_folder(settings), lambda *_: None).offer
    assert offer.stored_as == "GGUF Q4_0"
    assert offer.stored_formats == "int4 in groups of 32 (10 of 12 matrices)"
    assert {place.block: place.backend for place in offer.placements}["mlp"] == "cpu_native"
