"""Matrices that checkpoints keep as integers in blocks: read without loss, joined without loss."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.models.integer_blocks import (
    SCALE_DTYPES,
    BlockFormat,
    BlockMatrix,
    common_format,
    joined,
)
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.gguf import blocks as gguf_blocks
from engine_worker.compute.weights.gguf.checkpoint import open_gguf
from engine_worker.compute.weights.gguf.integer_blocks import FORMATS, read_blocks
from engine_worker.compute.weights.loader import load_weights, open_weights, stored_formats
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.errors import CheckpointError
from protocol.runtime.gguf_header import BLOCK_TYPES, GgufTensor
from tests.fakes.gguf_blocks import octets_of
from tests.fakes.gguf_families import GGUF_FAMILIES
from tests.fakes.gguf_files import write_gguf
from tests.fakes.integer_blocks import random_blocks
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint

SIZES = {name: (numbers, size) for name, numbers, size in BLOCK_TYPES.values()}
HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}
"""Where the half floats of a block are; all its other bits may be anything."""
QUANTISED = Path(__file__).parent / "quantized" / "golden"


def random_bits(name: str, outputs: int, inputs: int) -> np.ndarray:
    random = np.random.default_rng(sum(name.encode()))
    numbers, size = SIZES[name]
    blocks = random.integers(0, 256, (outputs * inputs // numbers, size), dtype=np.uint8)
    for place in HALVES[name]:
        halves = random.standard_normal((len(blocks), 1)).astype(np.float16)
        blocks[:, place : place + 2] = halves.view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = random.integers(0, 255, len(blocks))  # 255 is not a number
    return blocks


def tensor_of(name: str, shape: tuple[int, int], blocks: np.ndarray) -> GgufTensor:
    return GgufTensor("blk.0.x", Path("m.gguf"), shape, name, 0, blocks.size)


@pytest.mark.parametrize("name", FORMATS)
def test_gguf_blocks_of_any_bits_are_the_numbers_that_gguf_reads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_blocks, "NUMBERS_AT_A_TIME", 2048)
    blocks = random_bits(name, 12, 512)
    matrix = read_blocks(octets_of(blocks), tensor_of(name, (12, 512), blocks))
    expected = quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(12, 512)
    np.testing.assert_array_equal(matrix.numbers(), expected)
    assert matrix.integers.max() < 2**matrix.format.bits


@pytest.mark.parametrize("name", FORMATS)
def test_a_scale_that_is_no_number_names_the_tensor(name: str) -> None:
    blocks = random_bits(name, 3, 256)
    nan = np.array([np.nan], np.float16).view(np.uint8)
    places = [(place, nan) for place in HALVES[name]] or [(0, np.array([255], np.uint8))]
    for place, scale in places:
        broken = blocks.copy()
        broken[-1, place : place + len(scale)] = scale
        with pytest.raises(CheckpointError, match=r"m\.gguf: tensor 'blk\.0\.x' is broken"):
            read_blocks(octets_of(broken), tensor_of(name, (3, 256), broken))


INTEGERS = sorted(name for name, form in FORMATS.items() if form.codes != "fp4")


@pytest.mark.parametrize(("first", "second"), list(combinations(INTEGERS, 2)))
def test_matrices_of_two_formats_become_one_without_loss(first: str, second: str) -> None:
    parts = []
    for name in (first, second):
        blocks = random_bits(name, 2, 256)
        parts.append(read_blocks(octets_of(blocks), tensor_of(name, (2, 256), blocks)))
    form = common_format([part.format for part in parts])
    assert form is not None
    alike = {(one.bits, one.codes, one.has_minima) for one in (FORMATS[first], FORMATS[second])}
    if len(alike) == 1:
        assert form.bits == FORMATS[first].bits
    else:
        # What codes stand for needs eight bits, and so do small groups.
        is_wide = "Q8_0" in (first, second) or "IQ4" in first + second or form.group_size == 16
        assert form.bits == (8 if is_wide else 6)
    expected = np.concatenate([part.numbers() for part in parts])
    np.testing.assert_array_equal(joined(parts, form).numbers(), expected)


def test_iq4_of_both_kinds_stays_in_four_bits() -> None:
    form = common_format([FORMATS["IQ4_NL"], FORMATS["IQ4_XS"]])
    assert form == BlockFormat(4, 32, 32, has_scales=True, codes="iq4")


def test_formats_with_scales_of_different_types_are_not_joined() -> None:
    assert common_format([BlockFormat(4, 32, 32), BlockFormat(4, 32, 32, "bfloat16")]) is None


def test_floats_are_joined_with_their_own_format_only() -> None:
    floats = FORMATS["MXFP4"]
    assert common_format([floats, floats]) == floats
    assert common_format([floats, BlockFormat(4, 32, 32, floats.scale_dtype)]) is None


@pytest.mark.parametrize("dtype", SCALE_DTYPES)
def test_rows_of_a_matrix_are_those_of_its_numbers(dtype: str) -> None:
    matrix = random_blocks(BlockFormat(8, 16, 64, dtype, True, True), 6, 128)
    np.testing.assert_array_equal(
        matrix.each(lambda part: part[::-2]).numbers(), matrix.numbers()[::-2]
    )


KEPT = {
    "awq_4_bits": BlockFormat(4, 32, 32, has_minima=True),
    "awq_4_bits_groups_of_64": BlockFormat(4, 64, 64, has_minima=True),
    "gptq_3_bits": BlockFormat(4, 32, 32, has_minima=True),
    "gptq_4_bits": BlockFormat(4, 32, 32, has_minima=True),
    "gptq_8_bits": BlockFormat(8, 32, 32, has_minima=True),
    "mxfp4": BlockFormat(4, 32, 32, "float8_e8m0fnu", codes="fp4"),
    "nvfp4": BlockFormat(4, 16, 16, "float32", codes="fp4"),
    "int8_by_row": BlockFormat(8, 128, 128, "float32"),
    "int8_zero_points": BlockFormat(8, 128, 128, "float32", has_minima=True),
    "pack_2_bits": BlockFormat(4, 128, 128, "float32"),
    "pack_4_bits": BlockFormat(4, 32, 32, "float32"),
    "pack_4_bits_zero_points": BlockFormat(4, 32, 32, "float32", has_minima=True),
    "pack_8_bits": BlockFormat(8, 128, 128, "float32", has_minima=True),
}
"""The others have groups in the order of activations, or are fp8 or nf4."""


@pytest.mark.parametrize("name", sorted(path.name for path in QUANTISED.iterdir()))
def test_quantised_folders_are_kept_as_the_numbers_that_they_stand_for(name: str) -> None:
    checkpoint = open_checkpoint(QUANTISED / name)
    assert set(checkpoint.block_formats.values()) == ({KEPT[name]} if name in KEPT else set())
    with checkpoint.reading() as read, checkpoint.reading_blocks() as read_kept:
        for weight, form in checkpoint.block_formats.items():
            matrix = read_kept(weight)
            assert matrix.format == form
            # Both are float32; a difference of two products may be rounded once more.
            np.testing.assert_allclose(matrix.numbers(), read(weight), rtol=2e-6, atol=1e-7)
    assert checkpoint.quantized


def read_all(folder: Path) -> tuple[dict[str, BlockMatrix], dict[str, np.ndarray]]:
    """The weights of a GGUF model that are kept, and the same as they are dequantised."""
    checkpoint = open_gguf(folder / "m.gguf")
    graph = declare(load_spec(folder), "float32")
    formats = stored_formats(graph, checkpoint)
    sources = weight_sources(graph, checkpoint.tensors.keys())
    kept, plain = {}, {}
    with open_weights(
        checkpoint, graph.parameters, sources, architecture="", is_ignorable=lambda _: False
    ) as reader:
        for index, parameter in enumerate(graph.parameters):
            if parameter.path in formats:
                (matrix,) = reader.read_blocks(index, formats[parameter.path])
                kept[parameter.path] = matrix
                plain[parameter.path] = reader.read(index)
    return kept, plain


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_joined_weights_are_those_that_are_dequantised_with_rotated_rows(
    tmp_path: Path, kind: str
) -> None:
    config = TINY_LLAMA | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    write_checkpoint(tmp_path, config)
    write_gguf(tmp_path / "m.gguf", tmp_path, kind=kind)
    kept, plain = read_all(tmp_path)
    assert {"layers.0.attention.qkv.weight", "layers.1.mlp.gate_up.weight"} <= set(kept)
    for path, matrix in kept.items():
        np.testing.assert_array_equal(matrix.numbers(), plain[path], err_msg=path)


def test_neighbours_that_are_rotated_become_halves_in_blocks_as_well(tmp_path: Path) -> None:
    """GLM-4 rotates (2i, 2i + 1) of half of each head; the kernels rotate halves."""
    (case,) = (case for case in GGUF_FAMILIES if case.arch == "glm4")
    config = {**case.config, "hidden_size": 64, "attention_bias": True}
    tensors = write_checkpoint(tmp_path, config)
    write_gguf(
        tmp_path / "m.gguf",
        tmp_path,
        arch="glm4",
        kinds={"attn_": "Q8_0"},
        convert=case.convert,
        more=case.more,
    )
    path = "layers.0.attention.qkv.weight"
    kept, plain = read_all(tmp_path)
    assert path in kept
    np.testing.assert_array_equal(kept[path].numbers(), plain[path])
    order = [0, 2, 1, 3, 4, 5, 6, 7]
    for place, start in (("q_proj", 0), ("k_proj", 32)):
        original = tensors[f"model.layers.0.self_attn.{place}.weight"]
        second_head = plain[path][start + 8 : start + 16]
        np.testing.assert_allclose(second_head, original[8:16][order], atol=0.01)
    graph = declare(load_spec(tmp_path), "float32")
    bias = "layers.0.attention.qkv.bias"
    index = [parameter.path for parameter in graph.parameters].index(bias)
    (tmp_path / "m.gguf").unlink()
    read = np.asarray(load_weights(tmp_path, graph).leaves[index])
    original = tensors["model.layers.0.self_attn.q_proj.bias"]
    np.testing.assert_array_equal(read[8:16], original[8:16][order])
    np.testing.assert_array_equal(read[48:], tensors["model.layers.0.self_attn.v_proj.bias"])


def test_matrices_that_the_folder_has_transposed_are_kept_as_the_file_has_them(
    tmp_path: Path,
) -> None:
    """GPT-2's: [in, out] in its own folder, [out, in] in GGUF and here."""
    (case,) = (case for case in GGUF_FAMILIES if case.arch == "gpt2")
    write_checkpoint(tmp_path, {**case.config, "n_embd": 64, "n_inner": 96})
    write_gguf(tmp_path / "m.gguf", tmp_path, arch="gpt2", kind="Q8_0", convert=case.convert)
    kept, plain = read_all(tmp_path)
    assert {"layers.0.attention.qkv.weight", "layers.1.mlp.down.weight"} <= set(kept)
    for path, matrix in kept.items():
        np.testing.assert_array_equal(matrix.numbers(), plain[path], err_msg=path)
