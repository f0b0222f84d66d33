"""A GGUF file as a checkpoint: the config and the tensors of the folder that it was written
from."""

import array
import json
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec, load_spec
from engine_worker.compute.models.reference import ReferenceCache, reference_step
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.gguf.checkpoint import (
    checkpoint_of,
    derive_config,
    format_name,
    open_gguf,
    read_metadata,
)
from engine_worker.compute.weights.gguf.encoder_families import ENCODERS
from engine_worker.compute.weights.gguf.families import FAMILIES
from engine_worker.compute.weights.gguf.family import parts_of
from engine_worker.compute.weights.loader import load_weights
from engine_worker.compute.weights.sources import is_ignorable
from engine_worker.errors import (
    CheckpointError,
    ModelConfigError,
    ModelLoadError,
    UnsupportedArchitectureError,
    UnsupportedFeatureError,
    UnsupportedFormatError,
)
from tests.fakes.gguf_families import GGUF_FAMILIES, GgufCase
from tests.fakes.gguf_files import llama_tensors, write_gguf
from tests.fakes.gguf_newer_families import FALCON_MULTIPLIERS
from tests.fakes.tiny_checkpoint import TINY_LLAMA, random_tensors, write_checkpoint

CASES = [(case.arch, case) for case in GGUF_FAMILIES]


def gguf_of(case: GgufCase, folder: Path, **options: Any) -> Path:
    """A random checkpoint of a family, and the same as GGUF beside it."""
    config = dict(case.config)
    write_checkpoint(folder, config, case.spelled(random_tensors(config)))
    path = folder / "m.gguf"
    write_gguf(path, folder, arch=case.arch, convert=case.convert, more=case.more, **options)
    return path


def test_every_decoder_is_held_here() -> None:
    """Encoders: `tests/integration/test_gguf_encoders.py`."""
    held = {(case.arch, case.config["architectures"][0]) for case in GGUF_FAMILIES}
    every = {(name, one.architecture) for name, all_ in FAMILIES.items() for one in all_}
    assert held == every - {(name, one.architecture) for name, one in ENCODERS}


def test_the_page_lists_every_family() -> None:
    page = (Path(__file__).parents[5] / "docs" / "gguf.md").read_text(encoding="utf-8")
    for name, families in FAMILIES.items():
        served = " or ".join(dict.fromkeys(f"`{one.architecture}`" for one in reversed(families)))
        assert f"\n| `{name}` | {served} |\n" in page


@pytest.mark.parametrize(
    ("name", "case"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)]
)
def test_config_and_tensors_are_those_of_the_folder(
    tmp_path: Path, name: str, case: GgufCase
) -> None:
    checkpoint = open_gguf(gguf_of(case, tmp_path))
    original = open_checkpoint(tmp_path)
    assert decoder_spec(derive_config(checkpoint.metadata)) == load_spec(tmp_path)
    assert set(checkpoint.tensors) == set(original.tensors)
    with checkpoint.reading() as read, original.reading() as read_original:
        for tensor in original.tensors.values():
            assert checkpoint.tensors[tensor.name].shape == tensor.shape
            values = read(tensor.name)
            assert values.shape == tensor.shape
            np.testing.assert_allclose(
                values.astype(np.float32),
                read_original(tensor.name),
                atol=1e-6,
                err_msg=tensor.name,
            )


MOVED = {
    "qwen3next": ("in_proj_qkvz", "out_proj"),
    "qwen35": ("in_proj_qkv", "in_proj_z", "out_proj"),
    "granitehybrid": ("input_linear", "q_proj"),
}


@pytest.mark.parametrize(
    "case",
    [next(case for case in GGUF_FAMILIES if case.arch == arch) for arch in MOVED],
    ids=MOVED,
)
def test_matrices_whose_heads_were_moved_stay_in_their_blocks(
    tmp_path: Path, case: GgufCase
) -> None:
    """Rows of several tensors, and columns in parts that no block lies across."""
    wide = {"hidden_size": 64, "intermediate_size": 64, "shared_intermediate_size": 64}
    wide |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "head_dim": 16}
    states = {"linear_value_head_dim": 32, "linear_key_head_dim": 16, "mamba_expand": 1}
    config = {**case.config, **wide, **states}
    sizes = {"ssm.inner_size": 6 * 32, "ssm.state_size": 16}
    if case.arch == "granitehybrid":
        sizes = {"ssm.inner_size": 64}

    def more(writer: GGUFWriter) -> None:
        case.more(writer)
        for key, value in sizes.items():
            writer.add_uint32(f"{case.arch}.{key}", value)

    kinds = dict.fromkeys(("attn_", "ssm_out", "ffn_"), "Q8_0")
    path = gguf_of(replace(case, config=config, more=more), tmp_path, kinds=kinds)
    checkpoint = open_gguf(path)
    for part in MOVED[case.arch]:
        assert [name for name in checkpoint.block_formats if part in name], part
    with checkpoint.reading() as read, checkpoint.reading_blocks() as read_kept:
        for name in checkpoint.block_formats:
            if len(checkpoint.tensors[name].shape) == 2:
                np.testing.assert_allclose(read_kept(name).numbers(), read(name), rtol=2e-6)


def test_columns_stay_in_blocks_only_where_no_group_lies_across_their_parts(
    tmp_path: Path,
) -> None:
    case = next(case for case in GGUF_FAMILIES if case.arch == "qwen35")
    # Of 48 columns six heads of eight are moved; a group of Q8_0 has 32.
    config = {**case.config, "linear_value_head_dim": 16}

    def more(writer: GGUFWriter) -> None:
        case.more(writer)
        writer.add_uint32("qwen35.ssm.inner_size", 96)

    path = gguf_of(
        replace(case, config=config, more=more), tmp_path, kind="F32", kinds={"ssm_out": "Q8_0"}
    )
    checkpoint = open_gguf(path)
    assert not checkpoint.block_formats
    original = open_checkpoint(tmp_path)
    name = "model.layers.0.linear_attn.out_proj.weight"
    with checkpoint.reading() as read, original.reading() as read_original:
        np.testing.assert_allclose(read(name), read_original(name), atol=0.02)


def logits_of(folder: Path) -> np.ndarray:
    weights = load_weights(folder, declare(load_spec(folder), np.float32))
    tokens = jnp.arange(3, 20)
    cache = ReferenceCache.empty(weights.graph.spec, len(tokens)).layers
    positions = jnp.arange(len(tokens))
    logits, _ = reference_step(weights.graph, weights.leaves, cache, tokens, positions)
    return np.asarray(logits)


def test_multipliers_that_became_part_of_the_weights_give_the_same_logits(tmp_path: Path) -> None:
    """Falcon-H1's converter writes none of them; the embedding's and the head's are among them."""
    case = next(case for case in GGUF_FAMILIES if case.arch == "falcon-h1")
    folder, other = tmp_path / "original", tmp_path / "gguf"
    folder.mkdir()
    other.mkdir()
    path = gguf_of(replace(case, config={**case.config, **FALCON_MULTIPLIERS}), folder)
    path.rename(other / "m.gguf")
    config = derive_config(read_metadata(other / "m.gguf"))
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    expected = logits_of(folder)
    np.testing.assert_allclose(logits_of(other), expected, atol=1e-4 * float(expected.std()))


LLAMA = next(case for case in GGUF_FAMILIES if case.arch == "llama")


def test_files_of_one_model_are_one_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "parts").mkdir()
    write_gguf(tmp_path / "parts" / "m.gguf", tmp_path, max_tensors=5)
    checkpoint = open_checkpoint(tmp_path / "parts")
    assert len(checkpoint.files) == 4
    assert set(checkpoint.tensors) == set(open_checkpoint(tmp_path).tensors)


def test_a_folder_with_several_models_names_them(tmp_path: Path) -> None:
    gguf_of(LLAMA, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "n.gguf").write_bytes((tmp_path / "m.gguf").read_bytes())
    with pytest.raises(UnsupportedFormatError, match=r"2 models.*m\.gguf, n\.gguf.*name the file"):
        open_checkpoint(tmp_path)


def test_safetensors_go_before_gguf(tmp_path: Path) -> None:
    gguf_of(LLAMA, tmp_path)
    assert open_checkpoint(tmp_path).listing.name == "model.safetensors"


def patched(path: Path, more: Callable[[GGUFWriter], None], arch: str = "llama") -> Path:
    writer = GGUFWriter(path, arch)
    more(writer)
    writer.add_tensor("token_embd.weight", np.zeros((64, 16), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_architecture_without_a_family_is_refused_naming_those_with_one(tmp_path: Path) -> None:
    path = patched(tmp_path / "m.gguf", lambda _: None, arch="rwkv6")
    with pytest.raises(UnsupportedArchitectureError, match="'rwkv6'.*llama, qwen2"):
        open_gguf(path)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    path = patched(tmp_path / "m.gguf", lambda writer: writer.add_type("adapter"))
    with pytest.raises(UnsupportedArchitectureError, match="of type 'adapter'"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, r"'llama\.block_count' is missing"),
        ({"block_count": "two"}, r"'llama\.block_count' must be a whole number"),
        ({"block_count": 2**31}, r"'llama\.block_count' must be at most 1024"),
        ({"block_count": 2, "attention.head_count": [4, 4, 4]}, "must have 2 numbers"),
        ({"block_count": 2, "attention.head_count": "x"}, "whole number"),
        ({"block_count": 1, "attention.head_count": [float("nan")]}, "must hold whole numbers"),
        ({"block_count": 1, "attention.head_count": [4.5]}, "must hold whole numbers"),
        ({"block_count": 1, "attention.head_count": [-4]}, "must hold whole numbers"),
    ],
)
def test_wrong_hyperparameters_are_refused_naming_the_key(
    tmp_path: Path, keys: Mapping[str, Any], named: str
) -> None:
    def more(writer: GGUFWriter) -> None:
        for key, value in keys.items():
            name = f"llama.{key}"
            if isinstance(value, int):
                writer.add_uint32(name, value)
            elif isinstance(value, str):
                writer.add_string(name, value)
            else:
                writer.add_array(name, value)

    path = patched(tmp_path / "m.gguf", more)
    with pytest.raises(ModelConfigError, match=named) as caught:
        derive_config(read_metadata(path))
    assert str(path) in str(caught.value)


def test_heads_that_the_rows_dont_have_are_refused(tmp_path: Path) -> None:
    path = gguf_of(LLAMA, tmp_path)
    checkpoint = open_gguf(path)
    # As if the folder's own config had been written by hand.
    heads = {**checkpoint.metadata.values, "llama.attention.head_count": 7}
    checkpoint.metadata.values = heads
    parts = parts_of(FAMILIES["llama"][-1], checkpoint.metadata)
    checkpoint.parts.update(parts)
    with checkpoint.reading() as read, pytest.raises(CheckpointError, match="attn_q.*heads"):
        read("model.layers.0.self_attn.q_proj.weight")


def llama3_factors(factor: float, bend: float = 1.0) -> np.ndarray:
    """As transformers' `_compute_llama3_parameters` has it, written anew for a head of 16."""
    frequencies = 500_000.0 ** -(np.arange(0, 16, 2) / 16)
    wavelengths = 2 * np.pi / frequencies
    smooth = (8192 / wavelengths - 1) / 3
    scaled = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(wavelengths > 8192, frequencies / factor, scaled)
    scaled = np.where(wavelengths < 8192 / 4, frequencies, scaled)
    factors = frequencies / scaled
    factors[2] *= bend
    return factors.astype(np.float32)


ROPE = {
    **TINY_LLAMA,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "head_dim": 16,
    "rope_theta": 500000.0,
}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_rope_is_found_in_its_table_of_factors(tmp_path: Path, factor: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {**ROPE, "rope_scaling": scaling}
    case = GgufCase(
        "llama",
        config,
        llama_tensors,
        lambda writer: writer.add_tensor("rope_freqs.weight", llama3_factors(factor)),
    )
    checkpoint = open_gguf(gguf_of(case, tmp_path))
    assert decoder_spec(derive_config(checkpoint.metadata)) == load_spec(tmp_path)
    assert not [name for name in checkpoint.tensors if "rope" in name]


def test_another_table_of_factors_is_refused(tmp_path: Path) -> None:
    case = GgufCase(
        "llama",
        ROPE,
        llama_tensors,
        lambda writer: writer.add_tensor("rope_freqs.weight", llama3_factors(8.0, bend=1.2)),
    )
    metadata = open_gguf(gguf_of(case, tmp_path)).metadata
    with pytest.raises(UnsupportedFeatureError, match="not those of Llama 3"):
        derive_config(metadata)
    metadata.values = {**metadata.values, "llama.rope.freq_base": 0.0}
    with pytest.raises(ModelConfigError, match="frequency base of its rope must be finite"):
        derive_config(metadata)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        ({"type": "none"}, None),
    ],
)
def test_stretched_ropes_are_read(
    tmp_path: Path, keys: Mapping[str, Any], scaling: dict[str, Any] | None
) -> None:
    def more(writer: GGUFWriter) -> None:
        for key, value in keys.items():
            name = f"llama.rope.scaling.{key}"
            if isinstance(value, str):
                writer.add_string(name, value)
            elif isinstance(value, float):
                writer.add_float32(name, value)
            else:
                writer.add_uint32(name, value)

    case = GgufCase("llama", {**TINY_LLAMA, "rope_scaling": scaling}, llama_tensors, more)
    checkpoint = open_gguf(gguf_of(case, tmp_path))
    assert decoder_spec(derive_config(checkpoint.metadata)) == load_spec(tmp_path)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"llama.rope.dimension_count": 2}, r"'llama\.rope\.dimension_count' is read as 4"),
        ({"llama.rope.scaling.type": "longrope"}, r"'llama\.rope\.scaling\.type' must be none"),
        ({"llama.rope.scaling.type": "ntk"}, r"'llama\.rope\.scaling\.type' must be none"),
    ],
)
def test_ropes_that_would_be_computed_otherwise_are_refused(
    tmp_path: Path, keys: Mapping[str, Any], named: str
) -> None:
    checkpoint = open_gguf(gguf_of(LLAMA, tmp_path))
    checkpoint.metadata.values = {**checkpoint.metadata.values, **keys}
    with pytest.raises(ModelConfigError, match=named):
        derive_config(checkpoint.metadata)


def test_a_list_of_millions_is_not_spelt_out_in_its_error(tmp_path: Path) -> None:
    checkpoint = open_gguf(gguf_of(LLAMA, tmp_path))
    many = array.array("Q", [2**63]) * 2**18
    values = {**checkpoint.metadata.values, "llama.attention.head_count": many}
    checkpoint.metadata.values = values
    tracemalloc.start()
    try:
        with pytest.raises(ModelConfigError, match="head_count"):
            derive_config(checkpoint.metadata)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_the_format_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    config = {**TINY_LLAMA, "hidden_size": 64, "intermediate_size": 64}
    case = GgufCase("llama", config)
    checkpoint = open_gguf(gguf_of(case, tmp_path, kind=kind))
    assert format_name(checkpoint.metadata.files) == kind
    assert derive_config(checkpoint.metadata)["dtype"] == {"F32": "float32", "F16": "float16"}.get(
        kind, "bfloat16"
    )
    wide = GgufCase("llama", config, more=lambda writer: writer.add_file_type(15))
    (tmp_path / "named").mkdir()
    named = open_gguf(gguf_of(wide, tmp_path / "named"))
    assert format_name(named.metadata.files) == "Q4_K_M"


def test_numbers_of_a_type_that_isnt_read_are_refused_naming_tensor_and_way_out(
    tmp_path: Path,
) -> None:
    def more(writer: GGUFWriter) -> None:
        raw = np.zeros((2, 36), np.uint8)
        writer.add_tensor("blk.0.odd.weight", raw, raw_dtype=GGMLQuantizationType.NVFP4)

    path = gguf_of(GgufCase("llama", TINY_LLAMA, more=more), tmp_path)
    with pytest.raises(UnsupportedFormatError, match="'blk.0.odd.weight' is NVFP4.*use a file"):
        open_gguf(path)


def test_a_file_cut_off_names_the_tensor(tmp_path: Path) -> None:
    path = gguf_of(LLAMA, tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="cut off, or broken: tensor '.*download it again"):
        open_gguf(path)


def test_every_error_of_a_header_is_one_of_loading(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"m\.gguf: is cut off"):
        open_checkpoint(tmp_path)


def test_configs_are_json(tmp_path: Path) -> None:
    config = derive_config(open_gguf(gguf_of(LLAMA, tmp_path)).metadata)
    assert json.loads(json.dumps(config)) == config
    # The shortest decimals that stand for the file's single precision.
    assert config["rms_norm_eps"] == 1e-5


def test_more_experts_than_any_model_has_are_refused(tmp_path: Path) -> None:
    def more(writer: GGUFWriter) -> None:
        raw = np.zeros((5000, 1, 32), np.float32)
        writer.add_tensor("blk.0.ffn_gate_exps.weight", raw)
        writer.add_uint32("qwen3moe.block_count", 2)

    path = patched(tmp_path / "m.gguf", more, arch="qwen3moe")
    with pytest.raises(CheckpointError, match="'blk.0.ffn_gate_exps.weight'.*at most 4096 experts"):
        open_gguf(path)


@pytest.mark.parametrize("lost", ["ffn_up_exps.weight", "ffn_gate_exps.weight"])
def test_half_of_a_tensor_is_refused(tmp_path: Path, lost: str) -> None:
    case = next(case for case in GGUF_FAMILIES if case.arch == "gpt-oss")
    checkpoint = open_gguf(gguf_of(case, tmp_path))
    del checkpoint.metadata.tensors[f"blk.0.{lost}"]
    with pytest.raises(CheckpointError, match=f"tensor 'blk.0.{lost}' is missing"):
        checkpoint_of(checkpoint.metadata)


def test_halves_that_differ_are_refused(tmp_path: Path) -> None:
    case = next(case for case in GGUF_FAMILIES if case.arch == "gpt-oss")
    checkpoint = open_gguf(gguf_of(case, tmp_path))
    name = "blk.0.ffn_up_exps.weight"
    other = replace(checkpoint.metadata.tensors[name], shape=(5, 16, 24))
    checkpoint.metadata.tensors[name] = other
    with pytest.raises(CheckpointError, match="ffn_gate_exps.*ffn_up_exps.*don't go together"):
        checkpoint_of(checkpoint.metadata)


def test_layers_that_predict_several_tokens_are_left_out(tmp_path: Path) -> None:
    (case,) = (case for case in GGUF_FAMILIES if case.arch == "glm4moe")

    def more(writer: GGUFWriter) -> None:
        case.more(writer)
        writer.add_nextn_predict_layers(1)
        writer.add_tensor("blk.3.nextn.eh_proj.weight", np.ones((16, 32), np.float32))

    # The file counts such layers among its blocks.
    config = {**case.config, "num_hidden_layers": 4}
    checkpoint = open_gguf(gguf_of(replace(case, config=config, more=more), tmp_path))
    spec = decoder_spec(derive_config(checkpoint.metadata))
    assert spec.num_layers == 3
    beyond = [name for name in checkpoint.tensors if name.startswith("model.layers.3.")]
    assert "model.layers.3.eh_proj.weight" in beyond
    assert all(is_ignorable(name, spec) for name in beyond)


def test_keys_and_values_of_other_latents_are_refused(tmp_path: Path) -> None:
    case = next(case for case in GGUF_FAMILIES if case.config["model_type"] == "deepseek_v3")

    def convert(tensors: Any, config: Any) -> Any:
        for name, values in case.convert(tensors, config):
            yield (
                name,
                values[:, :, :-1] if name.endswith("1.self_attn.v_b_proj.weight") else values,
            )

    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_k_b\.weight, .* don't go together"):
        open_gguf(gguf_of(replace(case, convert=convert), tmp_path))
