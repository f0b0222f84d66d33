"""AWQ, GPTQ and fp8: files packed here by the formats' definitions, number by number.

The packing below is the slow, plain one of AutoAWQ (`WQLinear_GEMM.from_linear`) and AutoGPTQ
(`QuantLinear.pack`), so that it shares nothing with the code under test.
"""

import json
import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.fingerprint import fingerprint
from engine_worker.compute.weights.loader import load_weights
from engine_worker.errors import CheckpointError, ModelConfigError, UnsupportedFormatError
from tests.fakes.late import finegrained_fp8, safetensors_torch, torch
from tests.fakes.tiny_checkpoint import TINY_LLAMA, random_tensors, write_checkpoint

MODULE = "model.layers.0.mlp.down_proj"
WEIGHT = f"{MODULE}.weight"
GENERATOR = np.random.default_rng(17)
OUTPUTS, INPUTS, GROUP = 64, 96, 32
GROUPS = INPUTS // GROUP
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = dict[str, np.ndarray]


def write(folder: Path, parts: Parts, config: dict[str, Any], beside: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    tensors = {}
    for part, values in parts.items():
        values = np.ascontiguousarray(values)
        if values.dtype == ml_dtypes.float8_e4m3fn:
            tensor = torch.from_numpy(values.view(np.uint8)).view(torch.float8_e4m3fn)
        else:
            tensor = torch.from_numpy(
                values.view(np.int32) if values.dtype == np.uint32 else values
            )
        tensors[f"{MODULE}.{part}"] = tensor
    safetensors_torch.save_file(tensors, folder / "model.safetensors")
    whole = {} if beside else {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    if beside:
        (folder / beside).write_text(json.dumps(config))


def read(folder: Path) -> np.ndarray:
    """The weight, which is held to be the same where it is kept as integers in blocks."""
    checkpoint = open_checkpoint(folder)
    with checkpoint.reading() as read_tensor, checkpoint.reading_blocks() as read_blocks:
        values = read_tensor(WEIGHT)
        for name, form in checkpoint.block_formats.items():
            matrix = read_blocks(name)
            assert matrix.format == form
            np.testing.assert_allclose(matrix.numbers(), values, rtol=1e-6, atol=1e-7)
        return values


def quantised(bits: int, *, groups: int = GROUPS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers [out, in], zeros [G, out] and scales [G, out]."""
    integers = GENERATOR.integers(0, 2**bits, (OUTPUTS, INPUTS))
    zeros = GENERATOR.integers(1, 2**bits, (groups, OUTPUTS))
    scales = GENERATOR.uniform(0.01, 0.5, (groups, OUTPUTS)).astype(np.float16)
    return integers, zeros, scales


def numbers(
    integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    values = np.empty(integers.shape, np.float32)
    for output in range(integers.shape[0]):
        for column in range(integers.shape[1]):
            group = groups[column]
            steps = np.float32(integers[output, column] - zeros[group, output])
            values[output, column] = steps * np.float32(scales[group, output])
    return values


def stream_of_bits(rows: np.ndarray, bits: int) -> np.ndarray:
    """[n, m] integers to words along the first axis: [ceil(n * bits / 32), m]."""
    words = np.zeros((-(-len(rows) * bits // 32), rows.shape[1]), object)
    for index, row in enumerate(rows):
        for bit in range(bits):
            place = index * bits + bit
            for column, value in enumerate(row):
                words[place // 32, column] |= ((int(value) >> bit) & 1) << (place % 32)
    return words.astype(np.uint32)


EVEN = np.arange(INPUTS) // GROUP


def awq_words(rows: np.ndarray) -> np.ndarray:
    words = np.zeros((len(rows), rows.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for place, output in enumerate(AWQ_ORDER):
            words[:, column] |= rows[:, column * 8 + output].astype(np.uint32) << np.uint32(
                4 * place
            )
    return words


def awq_parts() -> tuple[Parts, np.ndarray]:
    integers, zeros, scales = quantised(4)
    parts = {"qweight": awq_words(integers.T), "qzeros": awq_words(zeros), "scales": scales}
    return parts, numbers(integers, zeros, scales, EVEN)


AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
OLD_AWQ = {"w_bit": 4, "q_group_size": GROUP, "zero_point": True, "version": "GEMM"}


@pytest.mark.parametrize(("config", "beside"), [(AWQ, None), (OLD_AWQ, "quant_config.json")])
def test_awq_weights_are_those_that_were_packed(
    tmp_path: Path, config: dict[str, Any], beside: str | None
) -> None:
    parts, expected = awq_parts()
    write(tmp_path, parts | {"bias": np.ones(OUTPUTS, np.float16)}, config, beside)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {WEIGHT, f"{MODULE}.bias"}
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_a_last_group_of_awq_may_be_narrower(tmp_path: Path) -> None:
    # 96 inputs in groups of 40: 40, 40 and 16, not three of 32.
    parts, _ = awq_parts()
    write(tmp_path, parts, AWQ | {"group_size": 40})
    integers, zeros = (awq_numbers(parts[name]) for name in ("qweight", "qzeros"))
    columns = np.arange(INPUTS) // 40
    expected = (integers.T - zeros.T[:, columns]) * parts["scales"].T[:, columns]
    np.testing.assert_array_equal(read(tmp_path), expected.astype(np.float32))


def awq_numbers(words: np.ndarray) -> np.ndarray:
    """What `awq_words` packed, as float32."""
    found = np.empty((len(words), words.shape[1] * 8), np.float32)
    for column in range(words.shape[1]):
        for place, output in enumerate(AWQ_ORDER):
            found[:, column * 8 + output] = words[:, column] >> np.uint32(4 * place) & np.uint32(15)
    return found


def gptq_parts(
    bits: int, *, first: bool = True, groups: np.ndarray = EVEN, zeros: np.ndarray | None = None
) -> tuple[Parts, np.ndarray]:
    integers, random_zeros, scales = quantised(bits, groups=int(groups.max()) + 1)
    zeros = random_zeros if zeros is None else zeros
    stored = zeros - 1 if first else zeros
    parts = {
        "qweight": stream_of_bits(integers.T, bits),
        "qzeros": stream_of_bits(stored.T, bits).T,
        "scales": scales,
    }
    return parts, numbers(integers, zeros, scales, groups)


def gptq(bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False} | more


AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": GROUP, "data_type": "int"}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq_weights_are_those_that_were_packed(tmp_path: Path, bits: int, form: str) -> None:
    parts, expected = gptq_parts(bits, first=form == "gptq")
    write(tmp_path, parts, gptq(bits, checkpoint_format=form))
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_an_old_gptq_folder_says_what_it_is_beside_its_config(tmp_path: Path) -> None:
    parts, expected = gptq_parts(4)
    config = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    write(tmp_path, parts, config, beside="quantize_config.json")
    np.testing.assert_array_equal(read(tmp_path), expected)
    before = fingerprint(tmp_path, {})
    write(tmp_path, parts, config | {"checkpoint_format": "gptq_v2"}, "quantize_config.json")
    assert fingerprint(tmp_path, {}) != before


@pytest.mark.parametrize("group_size", [GROUP, -1])
def test_groups_may_be_in_the_order_of_activations(tmp_path: Path, group_size: int) -> None:
    order = GENERATOR.permutation(EVEN)
    parts, expected = gptq_parts(4, groups=order)
    write(
        tmp_path,
        parts | {"g_idx": order.astype(np.int32)},
        gptq(4, desc_act=True, group_size=group_size),
    )
    np.testing.assert_array_equal(read(tmp_path), expected)


COMPRESSED = {"quant_method": "compressed-tensors"}
ORDERS = [EVEN, GENERATOR.permutation(EVEN), np.full(INPUTS, -1)]


@pytest.mark.parametrize("order", ORDERS, ids=["in_order", "of_activations", "of_none"])
@pytest.mark.parametrize("has_zeros", [True, False])
def test_groups_of_int8_may_be_in_the_order_of_activations(
    tmp_path: Path, order: np.ndarray, has_zeros: bool
) -> None:
    integers, zeros, scales = quantised(8)
    parts = {
        "weight": (integers - 128).astype(np.int8),
        "weight_scale": scales.T,
        "weight_zero_point": (zeros - 128).astype(np.int8).T,
        "weight_g_idx": order.astype(np.int32),
    }
    if not has_zeros:
        del parts["weight_zero_point"]
        zeros = np.full_like(zeros, 128)
    write(tmp_path, parts, COMPRESSED | {"format": "int-quantized"})
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {WEIGHT}
    is_ordered = order is ORDERS[1]
    # Integers in blocks are those of neighbours.
    assert bool(checkpoint.block_formats) != is_ordered
    expected = numbers(integers, zeros, scales, order if is_ordered else EVEN)
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_groups_of_mxfp4_may_be_in_the_order_of_activations(tmp_path: Path) -> None:
    octets = GENERATOR.integers(0, 256, (OUTPUTS, INPUTS // 2)).astype(np.uint8)
    scales = GENERATOR.integers(120, 130, (OUTPUTS, GROUPS)).astype(np.uint8)
    parts = {"weight_packed": octets, "weight_scale": scales}
    config = COMPRESSED | {"format": "mxfp4-pack-quantized"}
    write(tmp_path / "a", parts, config)
    steps = read(tmp_path / "a") / np.float32(2.0) ** (scales[:, EVEN] - np.float32(127))
    order = ORDERS[1]
    write(tmp_path / "b", parts | {"weight_g_idx": order.astype(np.int32)}, config)
    assert set(open_checkpoint(tmp_path / "b").tensors) == {WEIGHT}
    expected = steps * np.float32(2.0) ** (scales[:, order] - np.float32(127))
    np.testing.assert_array_equal(read(tmp_path / "b"), expected)


def test_one_group_for_all_inputs(tmp_path: Path) -> None:
    parts, expected = gptq_parts(4, groups=np.zeros(INPUTS, np.int64))
    write(tmp_path, parts, gptq(4, group_size=-1))
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_inputs_that_fill_no_whole_group_or_word(tmp_path: Path) -> None:
    inputs = 91
    integers, zeros, scales = quantised(4)
    integers = integers[:, :inputs]
    parts = {
        "qweight": stream_of_bits(integers.T, 4),
        "qzeros": stream_of_bits(zeros.T, 4).T,
        "scales": scales,
        "g_idx": EVEN[:inputs].astype(np.int32),
    }
    write(tmp_path, parts, gptq(4, checkpoint_format="gptq_v2"))
    np.testing.assert_array_equal(read(tmp_path), numbers(integers, zeros, scales, EVEN))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_of_zero_borrowed_from_its_neighbour_when_it_was_stored(
    tmp_path: Path, bits: int
) -> None:
    integers, zeros, scales = quantised(bits)
    zeros[:, ::3] = 0
    ones = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}[bits]
    # What GPTQModel does with whole words; the highest integer of a word may borrow from nothing.
    stored = stream_of_bits(zeros.T, bits).T.astype(np.uint64) + np.uint64(2**32 - ones)
    parts = {
        "qweight": stream_of_bits(integers.T, bits),
        "qzeros": (stored % 2**32).astype(np.uint32),
        "scales": scales,
    }
    write(tmp_path, parts, gptq(bits))
    np.testing.assert_array_equal(read(tmp_path), numbers(integers, zeros, scales, EVEN))


def test_modules_of_other_bits_are_found_by_their_shapes(tmp_path: Path) -> None:
    parts, expected = gptq_parts(8)
    write(tmp_path, parts, gptq(4, dynamic={"+:.*down.*": {"bits": 8}}))
    np.testing.assert_array_equal(read(tmp_path), expected)
    write(tmp_path, parts, gptq(4))
    refused(tmp_path, CheckpointError, "qzeros", "model.safetensors")


def refused(folder: Path, kind: type[Exception], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        read(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("index", [GROUPS, -1, 2**31 - 1])
def test_an_input_of_a_group_that_there_is_not_is_refused(tmp_path: Path, index: int) -> None:
    parts, _ = gptq_parts(4)
    order = EVEN.astype(np.int32)
    order[7] = index
    write(tmp_path, parts | {"g_idx": order}, gptq(4, desc_act=True))
    refused(
        tmp_path, CheckpointError, "model.safetensors", f"{MODULE}.g_idx", str(index), "original"
    )


@pytest.mark.parametrize("group_size", [0, -2, "32", 2.5, None])
@pytest.mark.parametrize("config", [AWQ, gptq(4)])
def test_a_group_size_that_is_none_is_refused(
    tmp_path: Path, config: dict[str, Any], group_size: object
) -> None:
    parts = awq_parts()[0] if config is AWQ else gptq_parts(4)[0]
    write(tmp_path, parts, config | {"group_size": group_size})
    refused(tmp_path, ModelConfigError, "quantization_config", "group_size")


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("config", [AWQ, gptq(4)])
def test_parts_that_disagree_or_are_missing_are_named(
    tmp_path: Path, config: dict[str, Any], part: str
) -> None:
    parts = awq_parts()[0] if config is AWQ else gptq_parts(4)[0]
    write(tmp_path / "a", parts | {part: parts[part][: len(parts[part]) // 2]}, config)
    refused(tmp_path / "a", CheckpointError, "model.safetensors", MODULE, "original model")
    write(tmp_path / "b", parts | {part: parts[part][:, :-1]}, config)
    refused(tmp_path / "b", CheckpointError, "model.safetensors", MODULE, "original model")
    write(tmp_path / "c", parts | {part: parts[part].astype(np.float64)}, config)
    refused(tmp_path / "c", CheckpointError, f"{MODULE}.{part}", "F64")
    write(tmp_path / "d", {name: parts[name] for name in parts if name != part}, config)
    if part == "qweight":
        # What is left has no name of a weight: the loader says that this is missing.
        assert WEIGHT not in open_checkpoint(tmp_path / "d").tensors
    else:
        refused(tmp_path / "d", CheckpointError, f"{MODULE}.{part}", "missing")


@pytest.mark.parametrize(
    "config",
    [
        AWQ | {"version": "gemv"},
        AWQ | {"bits": 3},
        gptq(5),
        gptq(4, checkpoint_format="marlin"),
        gptq(4, is_marlin_format=True),
        AUTO_ROUND | {"packing_format": "auto_round:llm_compressor"},
        AUTO_ROUND | {"packing_format": "auto_round:gptqmodel"},
        AUTO_ROUND | {"data_type": "mx_fp"},
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"},
    ],
)
def test_other_packings_are_refused_naming_those_that_are_read(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    write(tmp_path, awq_parts()[0], config)
    name = str(config["quant_method"]).replace("-", "")
    with pytest.raises(UnsupportedFormatError, match=rf"(?i){name}.*original model"):
        read(tmp_path)


def fp8_weight(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)


FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
@pytest.mark.parametrize("shape", [(40, 64), (37, 61), (3, 37, 61)])
def test_blocks_of_fp8_each_have_their_scale(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    weight = fp8_weight(*shape)
    grid = (*shape[:-2], -(-shape[-2] // 16), -(-shape[-1] // 32))
    scales = GENERATOR.uniform(0.1, 2, grid).astype(np.float32)
    write(tmp_path, {"weight": weight, name: scales}, FP8 | {"weight_block_size": [16, 32]})
    expected = weight.astype(np.float32)
    for place in np.ndindex(*shape):
        expected[place] *= scales[(*place[:-2], place[-2] // 16, place[-1] // 32)]
    np.testing.assert_array_equal(read(tmp_path), expected)


@pytest.mark.parametrize("shape", [(), (1,), (40,), (40, 1)])
@pytest.mark.parametrize("method", ["fp8", "fbgemm_fp8", "modelopt"])
def test_one_scale_of_fp8_is_for_the_whole_or_for_a_row(
    tmp_path: Path, shape: tuple[int, ...], method: str
) -> None:
    weight = fp8_weight(40, 64)
    scale = np.full(shape, 0.5, np.float32) * np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(
        shape
    )
    parts = {"weight": weight, "weight_scale": scale.astype(np.float32), "input_scale": np.ones(1)}
    write(tmp_path, parts, {"quant_method": method})
    assert set(open_checkpoint(tmp_path).tensors) == {WEIGHT}
    by_row = scale.reshape(-1, 1) if scale.size > 1 else scale.reshape(1, 1)
    np.testing.assert_array_equal(
        read(tmp_path), weight.astype(np.float32) * by_row.astype(np.float32)
    )


def test_fp8_weights_without_scales_or_with_others_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", {"weight": fp8_weight(40, 64)}, FP8)
    refused(tmp_path / "a", CheckpointError, f"{WEIGHT}_scale", "missing", "original model")
    odd = {"weight": fp8_weight(40, 64), "weight_scale": np.ones((3, 5), np.float32)}
    write(tmp_path / "b", odd, FP8)
    refused(tmp_path / "b", CheckpointError, f"{WEIGHT}_scale", "[3, 5]", "[40, 64]")
    write(tmp_path / "c", odd, FP8 | {"weight_block_size": [0, 128]})
    refused(tmp_path / "c", ModelConfigError, "weight_block_size")


def test_blocks_of_fp8_larger_than_any_memory_take_none(tmp_path: Path) -> None:
    weight = fp8_weight(40, 64)
    scales = np.full((3, 1), 0.5, np.float32)
    config = FP8 | {"weight_block_size": [16, 2**62]}
    write(tmp_path, {"weight": weight, "weight_scale_inv": scales}, config)
    np.testing.assert_array_equal(read(tmp_path), weight.astype(np.float32) * 0.5)


def test_an_exponent_of_fp8_that_is_no_number_is_refused(tmp_path: Path) -> None:
    exponents = np.array([[127, 255]], np.uint8)
    config = FP8 | {"weight_block_size": [64, 32]}
    write(tmp_path, {"weight": fp8_weight(40, 64), "weight_scale_inv": exponents}, config)
    with pytest.raises(CheckpointError, match=r"weight_scale_inv.*scale of 255"):
        read(tmp_path)


def test_a_whole_quantised_model_fills_the_weights_of_the_original(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, quantised_folder = tmp_path / "plain", tmp_path / "gptq"
    tensors = random_tensors(TINY_LLAMA)
    stored: dict[str, np.ndarray] = {}
    for name, values in list(tensors.items()):
        if not name.endswith("_proj.weight"):
            stored[name] = values
            continue
        outputs, inputs = values.shape
        scales = np.full((1, outputs), 0.125, np.float16)
        integers = np.clip(np.rint(values / 0.125) + 8, 0, 15).astype(int)
        module = name.removesuffix(".weight")
        stored[f"{module}.qweight"] = stream_of_bits(integers.T, 4).view(np.int32)
        zeros = np.full((1, outputs), 7)
        stored[f"{module}.qzeros"] = np.ascontiguousarray(stream_of_bits(zeros.T, 4).T).view(
            np.int32
        )
        stored[f"{module}.scales"] = scales
        stored[f"{module}.g_idx"] = np.zeros(inputs, np.int32)
        tensors[name] = ((integers - 8) * 0.125).astype(np.float32)
    plain.mkdir()
    write_checkpoint(plain, TINY_LLAMA, tensors)
    quantised_folder.mkdir()
    config = TINY_LLAMA | {"quantization_config": gptq(4, group_size=-1)}
    write_checkpoint(quantised_folder, config, stored)
    caplog.set_level(logging.INFO)
    ours, expected = (
        load_weights(folder, declare(load_spec(folder), np.float32))
        for folder in (quantised_folder, plain)
    )
    for found, wanted in zip(ours.leaves, expected.leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    assert "stored as gptq; 0 tensors stay as they are (none), 14 are dequantised" in caplog.text
    assert "have no place" not in caplog.text


@pytest.mark.parametrize("scale_type", [np.float32, np.uint8])
def test_blocks_of_fp8_are_those_that_transformers_reads(tmp_path: Path, scale_type: type) -> None:
    weight = fp8_weight(32, 96)
    if scale_type is np.uint8:
        scales = GENERATOR.integers(110, 140, (2, 3), np.uint8)
    else:
        scales = GENERATOR.uniform(0.1, 2, (2, 3)).astype(np.float32)
    config = FP8 | {"weight_block_size": [16, 32]}
    write(tmp_path, {"weight": weight, "weight_scale_inv": scales}, config)
    expected = finegrained_fp8.Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(weight.view(np.uint8)).view(torch.float8_e4m3fn),
        torch.from_numpy(scales),
        torch.float32,
    )
    np.testing.assert_array_equal(read(tmp_path), expected.numpy())
