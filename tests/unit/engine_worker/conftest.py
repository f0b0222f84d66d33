"""Runners of the tiny decoder, compiled once for all files here; and how bits are looked at."""

from collections.abc import Iterator

import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from tests.fakes.quick_compile import compile_as_engines
from tests.fakes.tiny_engine import MAX_MODEL_LEN, tiny_engine_weights, tiny_runner


@pytest.fixture(scope="session")
def bucket_runner() -> JaxModelRunner:
    """A usual one."""
    return tiny_runner()


@pytest.fixture(scope="session")
def deterministic_runner() -> JaxModelRunner:
    """One of the deterministic mode."""
    return tiny_runner(deterministic=True)


@pytest.fixture(scope="session")
def runner_of_engines() -> Iterator[JaxModelRunner]:
    """One of the deterministic mode, all of whose programs are compiled as engines compile them,
    for all whose test are its bits; each begins with `reset`."""
    with compile_as_engines():
        runner = JaxModelRunner.create(
            tiny_engine_weights(),
            num_blocks=90,
            max_model_len=MAX_MODEL_LEN,
            block_size=8,
            max_num_seqs=8,
            max_num_batched_tokens=64,
            deterministic=True,
        )
        runner.warm_up(lambda fraction, text: None)
        runner.finish_warm_up()
    yield runner
    runner.close()


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
