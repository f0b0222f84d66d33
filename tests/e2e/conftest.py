"""The deployments that end-to-end tests share."""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_worker.demo import demo_model_path
from tests.e2e.harness import Harness, free_pair
from tests.e2e.sharing import FOLDER, SharedDeployment, files_by_fixture, in_order
from tests.fakes.otlp_collector import Collector, otlp_collector
from tests.fakes.quick_compile import QUICK
from tests.fakes.text_model_folders import TextModels, write_text_models

SHARED, MORTAL, LOCKED, PAIR = (SharedDeployment() for _ in range(4))
DEPLOYMENTS = {"mortal": MORTAL, "locked": LOCKED, "harness": SHARED, "pair": PAIR}
"""By the fixture that is one of them."""
CHAIN = [
    frozenset({"mortal"}),
    frozenset({"locked"}),
    frozenset({"locked", "harness"}),
    frozenset({"harness"}),
    frozenset({"harness", "pair"}),
    frozenset({"pair"}),
]
"""What a file's tests share, in the order in which files come."""


MOST_S = 900.0
"""Of a test and of the deployment that it is the first to ask for: on a machine with thirty busy
processes, more than the five minutes of other tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that share a deployment follow each other."""
    here = [place for place, item in enumerate(items) if item.nodeid.startswith(FOLDER)]
    for place in here:
        if items[place].get_closest_marker("timeout") is None:
            items[place].add_marker(pytest.mark.timeout(MOST_S))
    tests: list[Any] = [items[place] for place in here]
    files = files_by_fixture(tests, DEPLOYMENTS)
    for name, deployment in DEPLOYMENTS.items():
        deployment.users = frozenset(files[name])
    for place, item in zip(here, in_order(tests, files, CHAIN), strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None]:
    """Each deployment ends after its last user."""
    yield
    for deployment in DEPLOYMENTS.values():
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


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Of the traces of the deployment that most tests share."""
    with otlp_collector() as collector:
        yield collector


@pytest.fixture
def harness(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mcp_url: str, collector: Collector
) -> Harness:
    """The deployment that most tests share; they leave it as they found it."""
    return SHARED.running(
        lambda: tmp_path_factory.mktemp("server") / "data",
        cache_dir,
        "--deterministic",
        PENSTOCK_MCP_SERVERS=f"weather={mcp_url}",
        PENSTOCK_OTLP_ENDPOINT=collector.url,
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


@pytest.fixture(scope="session")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> TextModels:
    """Small encoders: one that orders documents, one that has labels, one that embeds."""
    return write_text_models(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def locked(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, text_models: TextModels
) -> Harness:
    """A deployment that requires keys, of a model that calls tools as Python does, which no JSON
    grammar describes, and of small encoders."""
    config = text_models.folder / "penstock.toml"
    served = [{"name": "penstock-demo", "path": "penstock-demo", "tool_format": "pythonic"}]
    served += [{"name": name, "path": str(text_models.folder / name)} for name in text_models.names]
    tables = ["\n".join(f"{key} = {json.dumps(one[key])}" for key in one) for one in served]
    config.write_text("".join(f"[[models]]\n{table}\n" for table in tables), encoding="utf-8")
    return LOCKED.running(
        lambda: tmp_path_factory.mktemp("locked") / "data",
        cache_dir,
        *("--config", str(config), "--auth", "--deterministic"),
        # Programs that no other deployment has; those of encoders are compiled as users' engines
        # compile in make soak.
        XLA_FLAGS=QUICK,
    )


@pytest.fixture(scope="session")
def metrics_port() -> int:
    """Of the first gateway of `pair`; the second one has the port after it."""
    return free_pair()


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model."""
    from tests.fakes.gguf_files import write_gguf  # half a second of imports

    path = tmp_path_factory.mktemp("gguf") / "tiny-F32.gguf"
    write_gguf(path, demo_model_path())
    return path


@pytest.fixture
def pair(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, metrics_port: int, gguf_file: Path
) -> Harness:
    """A deployment with two gateways, of the bundled model as a GGUF file; the last who share it
    kill gateways."""
    return PAIR.running(
        lambda: tmp_path_factory.mktemp("pair") / "data",
        cache_dir,
        os.fspath(gguf_file),
        *("--gateways", "2", "--metrics-port", str(metrics_port), "--deterministic"),
    )


@pytest.fixture
def client(harness: Harness) -> Any:
    """An OpenAI client of the shared deployment."""
    return harness.client()
