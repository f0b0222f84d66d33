"""`make test` compiles quickly in its own processes, and in none that it starts."""

import os

import jax.numpy as jnp
import pytest
from jax._src.lib import xla_client  # type: ignore[attr-defined]

from tests.fakes.quick_compile import AS_ENGINES, EVERYDAY, QUICK

# Modules of tests make arrays while they are collected, which must not be before XLA has its flags.
SOMETHING = jnp.zeros(3) + 1


def test_modules_that_compile_while_they_are_collected_compile_quickly(
    pytestconfig: pytest.Config,
) -> None:
    options = xla_client.CompileOptions().executable_build_options.debug_options
    is_quick = pytestconfig.getoption("-m") == EVERYDAY and "XLA_FLAGS" not in os.environ
    usual = AS_ENGINES["xla_backend_optimization_level"]
    assert options.xla_backend_optimization_level == (0 if is_quick else usual)
    assert SOMETHING.tolist() == [1, 1, 1]


def test_processes_that_tests_start_inherit_no_flags() -> None:
    assert os.environ.get("XLA_FLAGS") != QUICK
