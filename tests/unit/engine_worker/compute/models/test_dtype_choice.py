"""Which type `auto` means, and which wishes are refused."""

from pathlib import Path

import pytest

from engine_worker.compute.models.dtype import read_cpu_flags, resolve_dtype
from protocol.errors import ConfigurationError

NATIVE = frozenset({"avx2", "avx512_bf16"})
PLAIN = frozenset({"avx2"})


@pytest.mark.parametrize(
    ("backend", "num_parameters", "flags", "dtype"),
    [
        ("cpu", 10_000_000, NATIVE, "bfloat16"),
        ("cpu", 10_000_000, PLAIN, "float32"),
        ("cpu", 10_000_000, frozenset(), "float32"),
        ("cpu", 7_000_000_000, PLAIN, "bfloat16"),
        ("gpu", 10_000_000, PLAIN, "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_where_it_is_native_or_float32_would_be_too_large(
    backend: str, num_parameters: int, flags: frozenset[str], dtype: str
) -> None:
    choice = resolve_dtype("auto", backend, lambda: num_parameters, flags)
    assert choice.name == dtype
    assert choice.reason


def nobody_asks() -> int:
    """Counting declares the whole decoder, which a start has no time for."""
    raise AssertionError("the number of parameters decides nothing here")


def test_parameters_are_counted_only_where_their_number_decides() -> None:
    assert resolve_dtype("auto", "cpu", nobody_asks, NATIVE).name == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stated_type_is_taken(dtype: str) -> None:
    assert resolve_dtype(dtype, "cpu", nobody_asks, NATIVE).name == dtype


def test_deterministic_means_float32_and_refuses_bfloat16() -> None:
    assert resolve_dtype("auto", "gpu", nobody_asks, NATIVE, deterministic=True).name == "float32"
    with pytest.raises(ConfigurationError, match="deterministic"):
        resolve_dtype("bfloat16", "cpu", nobody_asks, NATIVE, deterministic=True)


def test_an_unknown_type_is_refused_naming_the_setting() -> None:
    with pytest.raises(ConfigurationError, match="dtype must be auto, .*'int3'") as caught:
        resolve_dtype("int3", "cpu", nobody_asks, NATIVE)
    assert caught.value.param == "dtype"


@pytest.mark.parametrize("label", ["flags\t\t", "Features\t"])
def test_cpu_flags_are_read_from_the_first_core(tmp_path: Path, label: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{label}: fpu avx2 bf16\n\n{label}: other\n", encoding="utf-8")
    assert read_cpu_flags(file) == {"fpu", "avx2", "bf16"}


def test_a_system_that_tells_no_flags_has_none(tmp_path: Path) -> None:
    assert read_cpu_flags(tmp_path / "nothing") == frozenset()
