"""AutoRound and modelopt: packings of other methods under names of their own."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.errors import UnsupportedFormatError
from tests.unit.engine_worker.compute.weights.quantized.test_packed_modules import (
    AUTO_ROUND,
    GENERATOR,
    INPUTS,
    MODULE,
    OUTPUTS,
    WEIGHT,
    Parts,
    awq_parts,
    gptq_parts,
    read,
    refused,
    write,
)


@pytest.mark.parametrize(
    "form", [{}, {"packing_format": "auto_round:auto_gptq"}, {"backend": "auto_round:gptq:marlin"}]
)
def test_auto_round_reads_what_gptq_packs(tmp_path: Path, form: dict[str, str]) -> None:
    parts, expected = gptq_parts(4)
    write(tmp_path, parts, AUTO_ROUND | {"sym": True} | form)
    np.testing.assert_array_equal(read(tmp_path), expected)


@pytest.mark.parametrize(
    "form",
    [
        {"packing_format": "auto_round"},
        {"packing_format": "auto_round:exllamav2"},
        {"quant_method": "intel/auto-round", "backend": "auto_round:exllamav2"},
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_of_auto_rounds_own_packing_stand_as_they_are(
    tmp_path: Path, form: dict[str, str], bits: int
) -> None:
    parts, expected = gptq_parts(bits, first=False)
    write(tmp_path, parts, AUTO_ROUND | {"bits": bits, "sym": False} | form)
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_auto_round_reads_what_awq_packs(tmp_path: Path) -> None:
    parts, expected = awq_parts()
    write(tmp_path, parts, AUTO_ROUND | {"packing_format": "auto_round:auto_awq"})
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_modules_of_auto_round_may_have_other_bits_and_groups(tmp_path: Path) -> None:
    parts, expected = gptq_parts(8, groups=np.arange(INPUTS) // 48)
    write(tmp_path, parts, AUTO_ROUND | {"extra_config": {MODULE: {"bits": 8, "group_size": 48}}})
    np.testing.assert_array_equal(read(tmp_path), expected)


def modelopt_fp4() -> tuple[Parts, np.ndarray]:
    octets = GENERATOR.integers(0, 256, (OUTPUTS, INPUTS // 2)).astype(np.uint8)
    scales = GENERATOR.uniform(1, 400, (OUTPUTS, INPUTS // 16)).astype(ml_dtypes.float8_e4m3fn)
    of_all = np.float32(0.003)
    codes = np.stack([octets & 15, octets >> 4], axis=-1).reshape(OUTPUTS, INPUTS)
    sizes = np.array((0, 0.5, 1, 1.5, 2, 3, 4, 6), np.float32)
    values = np.where(codes & 8, -1, 1) * sizes[codes & 7]
    steps = np.repeat(scales.astype(np.float32) * of_all, 16, axis=1)
    parts = {"weight": octets, "weight_scale": scales, "weight_scale_2": np.array(of_all)}
    return parts | {"input_scale": np.array(0.1, np.float32)}, (values * steps).astype(np.float32)


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, None),
        ({"producer": {}, "quantization": {"quant_algo": "NVFP4"}}, "hf_quant_config.json"),
    ],
)
def test_fp4_of_modelopt_is_multiplied_by_both_scales(
    tmp_path: Path, config: dict[str, Any], beside: str | None
) -> None:
    parts, expected = modelopt_fp4()
    write(tmp_path, parts, config, beside)
    assert set(open_checkpoint(tmp_path).tensors) == {WEIGHT}
    np.testing.assert_allclose(read(tmp_path), expected, rtol=1e-6)
    write(tmp_path, parts | {"pre_quant_scale": np.ones(INPUTS, np.float32)}, config, beside)
    refused(tmp_path, UnsupportedFormatError, "pre_quant_scale", "original model")
