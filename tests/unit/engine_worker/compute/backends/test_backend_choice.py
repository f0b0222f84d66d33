"""Which backend a decoder gets, and what is said about it."""

from collections.abc import Callable

import jax
import pytest

from engine_worker.compute.backends.base import BlockKind
from engine_worker.compute.backends.choice import (
    BackendName,
    backend_label,
    choose_backend,
    describe,
    identity_of,
)
from engine_worker.compute.backends.cpu_native import coverage, library
from engine_worker.compute.models.decoder import DecoderGraph, declare
from engine_worker.errors import NativeUnavailableError
from protocol.errors import ConfigurationError
from tests.fakes.packed_decoder import needs_native
from tests.fakes.tiny_decoder import tiny_spec


def graph(dtype: str = "bfloat16") -> DecoderGraph:
    return declare(tiny_spec([None]), dtype)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise NativeUnavailableError("the native kernels were not built")

    monkeypatch.setattr(library, "load", load)


@needs_native
def test_auto_takes_the_kernels_and_says_so() -> None:
    choice = choose_backend(BackendName.AUTO, graph(), "bfloat16", block_size=32)
    assert choice.backend.name == "cpu_native"
    assert choice.reason == "covers it whole"
    assert describe(choice.backend) == "cpu_native"
    assert backend_label(choice.backend) == f"cpu_native {library.load().level}"


@pytest.mark.usefixtures("no_library")
def test_without_the_library_auto_takes_xla_and_says_why() -> None:
    choice = choose_backend(BackendName.AUTO, graph(), "bfloat16", block_size=32)
    assert choice.backend.name == backend_label(choice.backend) == "xla"
    assert choice.reason == "the native kernels were not built"
    assert {place.backend for place in choice.backend.placements.values()} == {"xla"}


@pytest.mark.usefixtures("no_library")
def test_kernels_that_were_asked_for_and_are_not_there_stop_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"were not built.*auto or xla"):
        choose_backend(BackendName.CPU_NATIVE, graph(), "bfloat16", block_size=32)


@pytest.mark.usefixtures("no_library")
def test_int4_without_kernels_is_refused_with_the_reason_and_int8_is_not() -> None:
    with pytest.raises(ConfigurationError, match=r"int4 needs.*were not built.*int8"):
        choose_backend(BackendName.AUTO, graph("float32"), "int4", block_size=32)
    choice = choose_backend(BackendName.AUTO, graph("float32"), "int8", block_size=32)
    assert (choice.backend.name, choice.backend.weight_type) == ("xla", "int8")
    assert str(choice.backend.cache_dtype) == "bfloat16"


def test_on_another_device_the_kernels_are_not_even_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    choice = choose_backend(BackendName.AUTO, graph(), "bfloat16", block_size=32)
    assert (choice.backend.name, choice.reason) == ("xla", "jax computes on gpu")


@needs_native
def test_the_deterministic_mode_takes_the_kernels_only_when_asked_and_in_float32() -> None:
    def choose(name: BackendName, dtype: str = "float32") -> str:
        made = choose_backend(name, graph(dtype), dtype, block_size=32, deterministic=True)
        return made.backend.name

    assert choose(BackendName.AUTO) == "xla"
    assert choose(BackendName.CPU_NATIVE) == "cpu_native"
    with pytest.raises(ConfigurationError, match="computes in float32"):
        choose(BackendName.CPU_NATIVE, "bfloat16")


@needs_native
def test_a_decoder_without_any_kernel_gets_xla_or_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coverage, "uncovered", lambda *_: "blocks of jelly")
    choice = choose_backend(BackendName.AUTO, graph(), "bfloat16", block_size=32)
    assert (choice.backend.name, choice.reason) == ("xla", "blocks of jelly")
    with pytest.raises(ConfigurationError, match="blocks of jelly"):
        choose_backend(BackendName.CPU_NATIVE, graph(), "bfloat16", block_size=32)


@needs_native
def test_what_runs_elsewhere_is_described_and_changes_the_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    covered: Callable[..., str | None] = coverage.uncovered
    whole = choose_backend(BackendName.AUTO, graph(), "bfloat16", block_size=32).backend
    monkeypatch.setattr(
        coverage,
        "uncovered",
        lambda *args: "too square" if args[2] == "mlp" else covered(*args),
    )
    partial = choose_backend(BackendName.AUTO, graph(), "bfloat16", block_size=32)
    why = "too square; the kernels multiply by its matrices"
    assert partial.reason == why
    assert describe(partial.backend) == f"cpu_native (mlp: xla, because {why})"
    assert partial.backend.placements[BlockKind.HEAD].backend == "cpu_native"
    is_first = iter([True])
    monkeypatch.setattr(
        coverage,
        "uncovered",
        lambda *args: (
            "too square" if args[2] == "mlp" and next(is_first, False) else covered(*args)
        ),
    )
    two_layers = declare(tiny_spec([None, None]), "bfloat16")
    mixed = choose_backend(BackendName.AUTO, two_layers, "bfloat16", block_size=32).backend
    place = mixed.placements[BlockKind.MLP]
    assert (place.backend, place.has_native_products) == ("cpu_native", True)
    assert place.reason == f"xla in 1 of 2 layers: {why}"
    xla = choose_backend(BackendName.XLA, graph(), "bfloat16", block_size=32).backend
    identities = {
        identity_of(backend, deterministic=mode)
        for backend in (whole, partial.backend, mixed, xla)
        for mode in (False, True)
    }
    assert len(identities) == 8
