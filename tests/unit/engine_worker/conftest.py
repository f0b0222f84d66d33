"""Runners of the tiny decoder, compiled once for all files here; and how bits are looked at."""

from collections.abc import Iterator

import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from tests.fakes.quick_compile import compile_as_engines
from tests.fakes.tiny_engine import tiny_runner


@pytest.fixture(scope="session")
def bucket_runner() -> JaxModelRunner:
    """A usual one."""
    return tiny_runner()


@pytest.fixture(scope="session")
def deterministic_runner() -> JaxModelRunner:
    """One of the deterministic mode."""
    return tiny_runner(deterministic=True)


@pytest.fixture(scope="module")
def bits_of_engines() -> Iterator[None]:
    """Where the bits themselves are the test, programs are compiled as engines compile them."""
    with compile_as_engines():
        yield


@pytest.fixture
def bits_of_engines_here() -> Iterator[None]:
    """The same for one test, which makes its programs itself."""
    with compile_as_engines():
        yield
