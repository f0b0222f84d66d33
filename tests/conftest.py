"""Fixtures for every test: a clean environment and short socket folders; and how tests are dealt
out."""

import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import hypothesis
import pytest
from _pytest.runner import runtestprotocol

from protocol.runtime.child_environment import without_settings
from tests.fakes.installed_entry_points import entry_points
from tests.fakes.order import is_small_unit
from tests.fakes.quick_compile import EVERYDAY, QUICK
from tests.fakes.rewritten_modules import rewrite_share

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

    from tests.fakes.dealing import DealtTogether

# No setting of ours leaks from the developer's shell into a test, or into a server that one starts.
_CLEAN = without_settings(os.environ)
for _name in os.environ.keys() - _CLEAN.keys():
    del os.environ[_name]

# Hundreds of processes are started: what one of them compiled, the others read.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# transformers and the hub library must never reach for the network in a test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Before anything of ours imports it from there.
importlib.metadata.entry_points = entry_points  # type: ignore[assignment]

_TOLD_S = 0.05
"""Set-ups and ends of tests that take less are in no list of the slowest."""

# How long an example takes says how busy the machine is, and nothing about what is tested. The same
# examples for everybody, in CI and elsewhere; `make fuzz` draws others each time.
_IS_FUZZING = "FUZZ_EFFORT" in os.environ
hypothesis.settings.register_profile(
    "untimed",
    derandomize=not _IS_FUZZING,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    **({} if _IS_FUZZING else {"database": None}),
)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """In `make test` XLA and LLVM optimise nothing of what test processes compile themselves.

    Processes that tests start, and `make parity` and `make soak`, compile as users' engines do.
    """
    if config.getoption("-m") == EVERYDAY:
        # XLA reads them once, when the first program is compiled, as modules of tests do.
        os.environ.setdefault("XLA_FLAGS", QUICK)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """The processes of a run share the work of the first import of all modules.

    What is imported and collected stays: to look for garbage in it again and again would take a
    fifth of the time. That begins with `pytest_collection_finish`.
    """
    if session.config.getoption("dist", "no") == "no":  # else others collect
        gc.disable()
    worker = getattr(session.config, "workerinput", None)
    if worker is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        rewrite_share(session.config, number, worker["workercount"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Small units come last, so that all processes end at about the same time.

    In end-to-end tests other processes are under test: a socket that a client of theirs closes late
    on a busy machine is no fault.
    """
    items.sort(key=lambda item: is_small_unit(item.nodeid))
    for item in items:
        if item.nodeid.startswith("tests/e2e/"):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


def pytest_collection_finish() -> None:
    """XLA has read its flags, which children must not inherit; thousands of tests and all that they
    import are there to stay: no collection of garbage looks at them, now or later. What garbage is
    among them stays, too: a twentieth, which it would take a second to find."""
    if os.environ.get("XLA_FLAGS") == QUICK:
        if "jax" in sys.modules:
            sys.modules["jax"].numpy.zeros(1).block_until_ready()
        del os.environ["XLA_FLAGS"]
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """What went well before and after a test is told from process to process only where it took
    time: that takes as long as most tests."""
    if not hasattr(item.config, "workerinput"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed or report.duration >= _TOLD_S:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "DealtTogether | None":
    """With `--dist loadfile`, files that share something expensive go to the same process."""
    from tests.fakes.dealing import DealtTogether

    return DealtTogether(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: "WorkerController", error: object | None) -> None:
    """What a test process that crashed had started would eat the time of all tests that follow."""
    from tests.fakes.left_behind import end_left_behind

    if error is not None:
        end_left_behind(node.workerinput["testrunuid"], node.gateway.id)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs of all engine processes of the run, whoever starts them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder / "compiled"


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test process compiles itself, it compiles once.

    In a folder of its own: jax writes entries in place, and warns, which is an error here, about
    one that another process has only half written.
    """
    if "jax" in sys.modules:
        config = sys.modules["jax"].config
        config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled-here")))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HTTP clients of tests, and of what they start, read one authority instead of 150, which
    takes 20 ms a client; none meets a server that needs one."""
    authorities = Path(certifi.where()).read_text(encoding="utf-8")
    end = "-----END CERTIFICATE-----\n"
    path = tmp_path_factory.mktemp("authorities") / "one.pem"
    path.write_text(authorities.partition(end)[0] + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(path))
        patch.setenv("SSL_CERT_FILE", str(path))
        patch.delenv("SSL_CERT_DIR", raising=False)
        yield


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A folder whose path is short enough for ipc sockets (tmp_path often is not)."""
    path = Path(tempfile.mkdtemp(prefix="pst-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
