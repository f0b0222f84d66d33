"""The benchmark of products beside oneDNN multiplies the same numbers on both sides."""

import sys

import numpy as np
import pytest

from benchmarks import onednn
from benchmarks.shapes import SHAPES
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.models.hf_config import decoder_spec
from tests.fakes.late import torch
from tests.fakes.packed_decoder import needs_native


def test_the_matrices_are_those_of_a_layer() -> None:
    assert onednn.matrix_shapes(decoder_spec(SHAPES["SmolLM2-135M"])) == {
        "queries, keys, values": (960, 576),
        "output": (576, 576),
        "gate and up": (3072, 576),
        "down": (576, 1536),
    }


@needs_native
@pytest.mark.parametrize("weight_type", onednn.TYPES)
def test_both_sides_give_the_product_of_every_copy(weight_type: str) -> None:
    load()
    generator = np.random.default_rng(0)
    copies = list(generator.standard_normal((2, 64, 96), np.float32))
    rows = generator.standard_normal((8, 96), np.float32)
    products = (
        onednn.native_product(copies, rows, weight_type),
        onednn.onednn_product(torch, copies, rows, weight_type),
    )
    for product in products:
        results = product()
        assert len(results) == len(copies)
        for found, copy in zip(results, copies, strict=True):
            # Both round to some eight bits, by rules of their own.
            numbers = np.asarray(found.float() if hasattr(found, "float") else found)
            assert np.abs(numbers - rows[:1] @ copy.T).max() < 0.5


def test_times_are_taken_in_turn_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    ticks = iter(range(100))

    def product(name: str) -> onednn.Product:
        return lambda: order.append(name) or []  # type: ignore[func-returns-value]

    times = onednn.times_in_turn([product("a"), product("b")], 3, lambda: float(next(ticks)))
    assert order == ["a", "b"] * 4
    assert times == [[1.0] * 3, [1.0] * 3]


def test_without_torch_there_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="oneDNN is left out: it comes with torch"):
        onednn.main([])
