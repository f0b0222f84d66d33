"""Requests live by timers; here they all run at once. What was caught as a bug fails the test."""

from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.fakes.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], VirtualTimeLoop]]:
    return {"virtual": VirtualTimeLoop}


@pytest.fixture(autouse=True)
def no_bug_is_only_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A test that causes one on purpose clears the log."""
    yield
    caught = [record for record in caplog.get_records("call") if record.exc_info]
    assert [record for record in caught if record.name.startswith("penstock")] == []
