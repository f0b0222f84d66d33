"""Runs tests in processes that are forked of one that has collected them: `--forks N`.

To import and collect nineteen thousand tests takes three quarters of a minute, which `-n N` of
pytest-xdist spends in each of its processes; here it is spent once, and what was imported is in
memory once. A process gets a group of tests at a time (`dealing.py`), in the order in which they
were collected. One that crashes fails the test that it ran, and another one goes on.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import traceback
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from _pytest._io import TerminalWriter
from _pytest.config import create_terminal_writer

from tests.fakes.dealing import groups_of
from tests.fakes.left_behind import RUN, WORKER, end_left_behind
from tests.fakes.rewritten_modules import rewrite_together

_END_S = 60.0
"""For a process to end what its fixtures have started."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--forks N`; without it, or with 0, tests run as usual."""
    text = "run tests in N processes that are forked once all are collected"
    parser.getgroup("forks").addoption("--forks", type=int, default=0, metavar="N", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Have the tests run by `ForkedRun`."""
    number = config.getoption("forks")
    if not number:
        return
    if config.getoption("usepdb") or config.getoption("numprocesses", None):
        raise pytest.UsageError("--forks goes with neither --pdb nor -n")
    config.pluginmanager.register(ForkedRun(number), "forked_run")


class _Child(NamedTuple):
    name: str
    pid: int
    link: "Connection[Any, Any]"
    given: deque[int]
    """Tests that it has not ended yet, by their places in what was collected; it runs the first."""


class ForkedRun:
    """Deals groups of tests out to processes, and reports what these tell.

    Args:
        num_processes: That run tests at a time.
    """

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._run_id = uuid.uuid4().hex

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """What is missing of the work of a first import is shared."""
        rewrite_together(session.config, self._num_processes)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """As pytest's own, in other processes."""
        if session.testsfailed or session.config.option.collectonly:
            return None
        if num_threads := _num_other_threads():
            raise pytest.UsageError(
                f"{num_threads} threads run once all tests are collected, which no "
                "fork can have: a module of tests computes when it is imported, with jax or the "
                "native kernels; let a fixture or a cached function do it"
            )
        _Dealing(session, self._num_processes, self._run_id).run()
        return True


class _Dealing:
    """One run: what is still to be done, and by whom it is done."""

    def __init__(self, session: pytest.Session, num_processes: int, run_id: str) -> None:
        self._session = session
        self._hook = session.config.hook
        self._run_id = run_id
        self._names = [f"gw{number}" for number in range(num_processes)]
        self._groups = deque(groups_of([item.nodeid for item in session.items]))
        self._children: dict[Connection[Any, Any], _Child] = {}
        # Before a fork: all of them make their folders in it.
        self._folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # files take turns

    def run(self) -> None:
        """Until all is done, or enough has failed."""
        try:
            for name in self._names:
                self._start(name)
            while self._children:
                for link in wait(list(self._children)):
                    self._hear(self._children[link])  # type: ignore[index]
                if self._session.shouldfail:
                    raise self._session.Failed(self._session.shouldfail)
                if self._session.shouldstop:
                    raise self._session.Interrupted(self._session.shouldstop)
        finally:
            for child in list(self._children.values()):
                self._dismiss(child)

    def _start(self, name: str) -> None:
        if not self._groups:
            return
        ours, theirs = Pipe()
        pid = _fork()
        if pid == 0:
            ours.close()
            for child in self._children.values():
                child.link.close()
            os.environ[RUN] = self._run_id
            os.environ[WORKER] = name
            _be_child(self._session, theirs, str(self._folder / f"popen-{name}"))
        theirs.close()
        child = _Child(name, pid, ours, deque())
        self._children[ours] = child
        self._give(child)

    def _give(self, child: _Child) -> None:
        group = self._groups.popleft() if self._groups else []
        child.given.extend(group)
        with contextlib.suppress(OSError):  # that it is gone is heard next
            child.link.send(group)

    def _hear(self, child: _Child) -> None:
        try:
            kind, *told = child.link.recv()
        except (EOFError, OSError):
            self._bury(child)
            return
        if kind == "more":
            self._give(child)
        elif kind == "ended":
            self._report(child, told[0])
        elif kind == "warning":
            text, category, filename, line, when, nodeid = told
            message = warnings.WarningMessage(f"{category}: {text}", Warning, filename, line)
            warned = {"warning_message": message, "when": when, "nodeid": nodeid, "location": None}
            self._hook.pytest_warning_recorded.call_historic(kwargs=warned)

    def _report(self, child: _Child, reports: list[Any]) -> None:
        """What there is to be shown of a test that has ended."""
        config = self._session.config
        item = self._session.items[child.given.popleft()]
        for told in reports:
            report = told
            if isinstance(told, dict):
                report = self._hook.pytest_report_from_serializable(config=config, data=told)
            self._hook.pytest_runtest_logreport(report=report)
        self._hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _bury(self, child: _Child) -> None:
        """One that has ended: with all that it was given, or in the middle of a test."""
        status = self._wait_for(child)
        if status == 0 and not child.given:
            return
        end_left_behind(self._run_id, child.name)
        if not child.given:
            raise RuntimeError(f"a process that ran tests ended badly: {_described(status)}")
        item = self._session.items[child.given.popleft()]
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"The process that ran it ended: {_described(status)}",
            when="call",
        )
        self._hook.pytest_runtest_logreport(report=report)
        self._hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if child.given:
            self._groups.appendleft(list(child.given))
        self._start(child.name)

    def _dismiss(self, child: _Child) -> None:
        """Tell one to end its test, and what its fixtures have started, and no more."""
        with contextlib.suppress(OSError):
            child.link.send(None)
        with contextlib.suppress(EOFError, OSError):
            while child.link.poll(_END_S):
                child.link.recv()
            os.kill(child.pid, signal.SIGKILL)
        if self._wait_for(child) != 0:
            end_left_behind(self._run_id, child.name)

    def _wait_for(self, child: _Child) -> int:
        del self._children[child.link]
        child.link.close()
        _, status = os.waitpid(child.pid, 0)
        return os.waitstatus_to_exitcode(status)


class _Teller:
    """Tells the first process what would be shown in this one."""

    def __init__(self, config: pytest.Config, link: "Connection[Any, Any]") -> None:
        self._config = config
        self._link = link
        self._reports: list[Any] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if type(report) is pytest.TestReport and report.passed:
            report.keywords = {}  # longer than all the rest, and nobody asks
            self._reports.append(report)
        else:
            hook = self._config.hook
            told = hook.pytest_report_to_serializable(config=self._config, report=report)
            self._reports.append(told)

    def tell(self) -> None:
        """Of a test that has ended."""
        self._link.send(("ended", self._reports))
        self._reports.clear()

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        told = warning_message
        category = told.category.__name__
        where = (told.filename, told.lineno)
        self._link.send(("warning", str(told.message), category, *where, when, nodeid))


class _Terminal:
    """Instead of the reporter: whoever asks for what this one writes to, as plugins do that end a
    test, writes what is captured of the test."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @property
    def _tw(self) -> TerminalWriter:
        return create_terminal_writer(self._config, sys.stderr)


def _be_child(session: pytest.Session, link: "Connection[Any, Any]", folder: str) -> NoReturn:
    """Run what comes through the link, and end."""
    code = 1
    atexit._clear()  # what was begun before is the first process's to end
    try:
        _run_given(session, link, _make_own(session.config, link, folder))
        code = 0
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        pass  # the first process is gone, or says so itself
    except BaseException:  # noqa: BLE001 - it must not go on as if it were the first process
        traceback.print_exc(file=sys.__stderr__)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def _make_own(config: pytest.Config, link: "Connection[Any, Any]", folder: str) -> _Teller:
    """What pytest has set up for one process, for this one."""
    plugins = config.pluginmanager
    for name in ("forked_run", "terminalreporter"):
        plugins.unregister(name=name)
    plugins.register(_Terminal(config), "terminalreporter")
    capture = _plugin(config, "capturemanager")
    # Into files of its own: a fork shares the place in those of the first.
    capture.stop_global_capturing()
    capture.start_global_capturing()
    capture.suspend_global_capture()
    config.option.basetemp = folder
    _plugin(config, "tmpdir").pytest_configure(config)
    teller = _Teller(config, link)
    plugins.register(teller)
    config.hook.pytest_forked(config=config)
    return teller


def _run_given(session: pytest.Session, link: "Connection[Any, Any]", teller: _Teller) -> None:
    try:
        for index, following in _given(link):
            item = session.items[index]
            nextitem = None if following is None else session.items[following]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
            teller.tell()
            if session.shouldfail or session.shouldstop:
                break
    finally:
        # No test comes any more, for which a fixture would be kept.
        _plugin(session.config, "runner").pytest_sessionfinish(session)


def _given(link: "Connection[Any, Any]") -> Iterator[tuple[int, int | None]]:
    """Each test and the next one, by which fixtures know whether they are still wanted."""
    given: deque[int] = deque(link.recv())
    while given:
        if len(given) == 1:
            link.send(("more",))
            more: Sequence[int] | None = link.recv()
            if more is None:
                return
            given.extend(more)
        elif link.poll() and link.recv() is None:
            return
        yield given.popleft(), given[0] if given else None


class _Hooks:
    @pytest.hookspec
    def pytest_forked(self, config: pytest.Config) -> None:
        """Called in a process that will run tests, before the first of them."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """`pytest_forked` for `conftest.py`."""
    pluginmanager.add_hookspecs(_Hooks)


def _plugin(config: pytest.Config, name: str) -> Any:
    found = config.pluginmanager.get_plugin(name)
    assert found is not None, name
    return found


def _described(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def _num_other_threads() -> int:
    """How many this process has beside this one, those that Python knows nothing of among them."""
    # numpy's BLAS has some, which it ends when a process forks, and starts again when needed.
    pid = _fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir()) - 1
    except OSError:
        return threading.active_count() - 1


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python counts those threads, too
        return os.fork()
