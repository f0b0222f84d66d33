"""A module whose tests live by timers names a `LOOP` on which they all run at once."""

import asyncio
from collections.abc import Callable, Mapping

import pytest


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    module = item.getparent(pytest.Module)
    return {"loop": getattr(module and module.obj, "LOOP", asyncio.new_event_loop)}
