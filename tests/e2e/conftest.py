"""The deployments that end-to-end tests share."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Harness, start_harness, stop_harness


@pytest.fixture(scope="session")
def mcp_url() -> Iterator[str]:
    """The MCP server of the examples, which the deployment lists as `weather`."""
    example = Path(__file__).parents[2] / "examples" / "mcp_server.py"
    command = [sys.executable, str(example), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="session")
def harness(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mcp_url: str
) -> Iterator[Harness]:
    """The deployment that most tests share; they leave it as they found it."""
    harness = start_harness(
        tmp_path_factory.mktemp("server") / "data",
        cache_dir,
        "--deterministic",
        PENSTOCK_MCP_SERVERS=f"weather={mcp_url}",
        PENSTOCK_PROFILE_DIR=str(tmp_path_factory.mktemp("profiles")),
    )
    yield harness
    assert stop_harness(harness) == 0


@pytest.fixture
def client(harness: Harness) -> Any:
    """An OpenAI client of the shared deployment."""
    return harness.client()
