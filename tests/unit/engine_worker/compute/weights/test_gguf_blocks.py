"""Numbers of GGUF tensors: every format against `gguf`'s own reading."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

from engine_worker.compute.weights.gguf import blocks
from engine_worker.compute.weights.gguf.blocks import PLAIN, QUANTISED, numbers_dtype, read_numbers
from engine_worker.errors import CheckpointError
from protocol.runtime.gguf_header import GgufTensor
from tests.fakes.gguf_blocks import encoded, octets_of

# Of the largest number of a block: half a step, and what the scales lose.
_COARSENESS = {
    "Q8_0": 0.005,
    "Q6_K": 0.04,
    "Q5_K": 0.06,
    "Q5_0": 0.07,
    "Q5_1": 0.07,
    "Q4_K": 0.11,
    "Q4_0": 0.14,
    "Q4_1": 0.14,
    "IQ4_NL": 0.14,
    "IQ4_XS": 0.16,
    "MXFP4": 0.27,
    "Q3_K": 0.2,
    "Q2_K": 0.6,
}


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def tensor(raw: np.ndarray, kind: str, shape: tuple[int, ...], start: int = 0) -> GgufTensor:
    return GgufTensor("t", Path("m.gguf"), shape, kind, start, start + raw.nbytes)


@pytest.mark.parametrize("kind", sorted(_COARSENESS))
def test_numbers_are_ggufs_own_and_near_what_was_written(kind: str) -> None:
    values = numbers(6, 512)
    raw = encoded(values, GGMLQuantizationType[kind])
    found = read_numbers(octets_of(raw), tensor(raw, kind, values.shape))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, quants.dequantize(raw, GGMLQuantizationType[kind]))
    largest = np.abs(values).reshape(6, -1, 32).max(-1).repeat(32, -1).reshape(values.shape)
    assert np.abs(found - values).max() < _COARSENESS[kind] * largest.max()
    assert numbers_dtype(kind) == "F32"


def test_every_format_that_is_said_to_be_read_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "NUMBERS_AT_A_TIME", 512)
    generator = np.random.default_rng(1)
    for kind in QUANTISED:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        # Bytes below 0x20 spell no scale of NaN or infinity.
        raw = generator.integers(0, 0x20, (3, 1024 // block * size), np.uint8)
        found = read_numbers(octets_of(raw), tensor(raw, kind, (3, 1024)))
        np.testing.assert_array_equal(found, quants.dequantize(raw, GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_plain_numbers_keep_their_type_wherever_they_lie(kind: str) -> None:
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    values = numbers(4, 8).astype(dtype)
    data = np.concatenate([np.zeros(3, np.uint8), values.view(np.uint8).reshape(-1)])
    found = read_numbers(octets_of(data), tensor(values, kind, (4, 8), start=3))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)
    assert numbers_dtype(kind) == kind


def test_one_expert_is_read_without_the_others() -> None:
    values = numbers(3, 4, 32)
    raw = quants.quantize(values, GGMLQuantizationType.Q8_0)
    whole = read_numbers(octets_of(raw), tensor(raw, "Q8_0", values.shape))
    only = raw.reshape(-1).copy()
    only[: raw[0].nbytes] = only[2 * raw[0].nbytes :] = 0xFF
    found = read_numbers(octets_of(only), tensor(raw, "Q8_0", values.shape), 1)
    np.testing.assert_array_equal(found, whole[1])


@pytest.mark.parametrize("place", [0, 1, -1])
def test_numbers_that_are_not_finite_are_refused_naming_the_tensor(place: int) -> None:
    values = numbers(4, 256)
    raw = quants.quantize(values, GGMLQuantizationType.Q8_0)
    raw.reshape(-1, 34)[place, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(CheckpointError, match="'t' is broken.*download"):
        read_numbers(octets_of(raw), tensor(raw, "Q8_0", values.shape))


def test_large_finite_numbers_are_fine() -> None:
    raw = quants.quantize(numbers(4, 256), GGMLQuantizationType.MXFP4)
    raw.reshape(-1, 17)[:, 0] = 250  # 2**122, whose square is infinite
    found = read_numbers(octets_of(raw), tensor(raw, "MXFP4", (4, 256)))
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 1e36
