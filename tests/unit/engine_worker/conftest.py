"""Runners of the tiny decoder, compiled once for all files here."""

import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from tests.fakes.tiny_engine import tiny_runner


@pytest.fixture(scope="session")
def bucket_runner() -> JaxModelRunner:
    """A usual one."""
    return tiny_runner()


@pytest.fixture(scope="session")
def deterministic_runner() -> JaxModelRunner:
    """One of the deterministic mode."""
    return tiny_runner(deterministic=True)
