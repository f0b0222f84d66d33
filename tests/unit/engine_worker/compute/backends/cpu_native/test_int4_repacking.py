"""A checkpoint in four bits stays what it is in int4: its scales are found again."""

import numpy as np
import pytest

from engine_worker.compute.backends.cpu_native.packing import pack, unpack

SHAPE = (48, 256)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("kind", ["linear", "gate_up"])
def test_multiples_of_one_scale_in_a_group_keep_their_integers(group_size: int, kind: str) -> None:
    generator = np.random.default_rng(3)
    values = generator.standard_normal((SHAPE[0], SHAPE[1] // group_size, group_size))
    scales = np.abs(values).max(-1, keepdims=True) / 7.5
    stored = np.clip(np.rint(values / scales), -8, 7) * scales.astype(np.float16)
    stored = stored.reshape(SHAPE).astype(np.float32)
    packed = pack(stored, "int4", kind, group_size=64)
    found = unpack(packed[0], SHAPE, "int4", kind, group_size=64)
    # A scale is rounded to bfloat16, as each weight would be; no number is on another step.
    np.testing.assert_allclose(found, stored, rtol=2**-8, atol=0)
