"""Threads that die are heard of."""

import logging
import threading
from collections.abc import Callable

import pytest

from protocol.runtime.threads import WatchedPool, watch_threads


class Panic(BaseException):
    """As a native library's, which is no `Exception`."""


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that died."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    names: list[str] = []
    watch_threads(names.append)
    return names


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Panic("a bug"), SystemExit(3)])
def test_a_thread_that_dies_is_logged_and_told(
    dead: list[str], caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    thread = threading.Thread(target=raises(error), name="fated")
    thread.start()
    thread.join()
    assert dead == ["fated"]
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.CRITICAL, "the thread fated died")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Panic("a bug"), SystemExit(3)])
def test_work_of_a_pool_that_raises_is_told_though_nobody_asks_for_its_result(
    dead: list[str], error: BaseException
) -> None:
    with WatchedPool(1, thread_name_prefix="pool") as pool:
        pool.submit(raises(error))
    assert dead == ["pool_0"]


def test_work_that_ends_well_has_its_result_and_tells_nobody(dead: list[str]) -> None:
    with WatchedPool(1) as pool:
        future = pool.submit(sum, (1, 2), start=3)
    assert future.result() == 6
    assert dead == []
