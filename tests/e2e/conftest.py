"""The deployments that end-to-end tests share."""

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Harness, SharedDeployment

SHARED = SharedDeployment(last_user="tests/e2e/test_tools_api.py")
MORTAL = SharedDeployment(last_user="tests/e2e/test_new_weights.py")
LOCKED = SharedDeployment(last_user="tests/e2e/test_structured_outputs.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None]:
    """Each deployment ends after its last user, not with the session twenty minutes later: even
    idle, its processes take a tenth of a core."""
    yield
    for deployment in (SHARED, MORTAL, LOCKED):
        deployment.end_unless_wanted("" if nextitem is None else nextitem.nodeid)


@pytest.fixture(scope="session")
def mcp_url() -> Iterator[str]:
    """The MCP server of the examples, which deployments list as `weather`."""
    example = Path(__file__).parents[2] / "examples" / "mcp_server.py"
    command = [sys.executable, str(example), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def harness(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mcp_url: str) -> Harness:
    """The deployment that most tests share; they leave it as they found it."""
    return SHARED.running(
        lambda: tmp_path_factory.mktemp("server") / "data",
        cache_dir,
        "--deterministic",
        PENSTOCK_MCP_SERVERS=f"weather={mcp_url}",
        PENSTOCK_PROFILE_DIR=os.fspath(tmp_path_factory.getbasetemp() / "profiles"),
    )


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mcp_url: str) -> Harness:
    """A deployment with one engine whose processes are killed, and whose weights are replaced by
    the last who share it."""
    return MORTAL.running(
        lambda: tmp_path_factory.mktemp("mortal") / "data",
        cache_dir,
        *("--deterministic", "--drain-timeout", "150"),
        PENSTOCK_WORKER_DEAD_S="6",
        PENSTOCK_MCP_SERVERS=f"weather={mcp_url}",
        PENSTOCK_MAX_BATCH_REQUESTS="4",
    )


@pytest.fixture
def locked(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Harness:
    """A deployment that requires keys, and whose model calls tools as Python does, which no JSON
    grammar describes."""
    return LOCKED.running(
        lambda: tmp_path_factory.mktemp("locked") / "data",
        cache_dir,
        *("--auth", "--deterministic", "--tool-format", "pythonic"),
    )


@pytest.fixture
def client(harness: Harness) -> Any:
    """An OpenAI client of the shared deployment."""
    return harness.client()
