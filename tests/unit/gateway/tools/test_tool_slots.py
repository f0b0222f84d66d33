"""Places of tool processes: none is lost, whatever happens to the processes."""

import asyncio
import errno
from collections.abc import Mapping, Sequence

import pytest

from gateway.errors import OverloadedError
from gateway.tools import toolbox
from gateway.tools.toolbox import ToolBox
from protocol.runtime.child_process import ChildProcess


class _Tool:
    name = "t"


class _Process:
    tools = (_Tool(),)

    def __init__(self, *, lives: bool) -> None:
        self._lives = lives

    async def begin(self, _call: object) -> bool:
        return self._lives

    async def result(self, _loads: object) -> dict[str, int]:
        return {"result": 1}

    async def kill(self) -> None:
        """Nothing of it is left."""


async def test_the_place_of_a_dead_process_whose_successor_does_not_start_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def dead(*_: object) -> _Process:
        return _Process(lives=False)

    async def fails(*_: object) -> _Process:
        raise OSError(24, "Too many open files")

    async def lives(*_: object) -> _Process:
        return _Process(lives=True)

    box = ToolBox(max_processes=1, timeout_s=1.0, environment={})
    monkeypatch.setattr(toolbox._ToolProcess, "start", staticmethod(dead))
    await box.tools()
    monkeypatch.setattr(toolbox._ToolProcess, "start", staticmethod(fails))
    with pytest.raises(OSError, match="Too many open files"):
        await box.execute("t", "{}")
    monkeypatch.setattr(toolbox._ToolProcess, "start", staticmethod(lives))
    async with asyncio.timeout(60):
        await box.execute("t", "{}")


class _Slow(_Process):
    """One whose calls end when they may."""

    def __init__(self, may_end: asyncio.Event, begun: list[bytes]) -> None:
        super().__init__(lives=True)
        self._may_end = may_end
        self._begun = begun

    async def begin(self, call: object) -> bool:
        assert isinstance(call, bytes)
        self._begun.append(call)
        return True

    async def result(self, _loads: object) -> dict[str, int]:
        await self._may_end.wait()
        return {"result": 1}


async def test_one_caller_leaves_a_place_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, begun = asyncio.Event(), list[bytes]()

    async def slow(*_: object) -> _Process:
        return _Slow(may_end, begun)

    monkeypatch.setattr(toolbox._ToolProcess, "start", staticmethod(slow))
    box = ToolBox(max_processes=2, timeout_s=60.0, environment={})
    await box.tools()
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(box.execute("t", f"{number}", b"a"))
        await asyncio.sleep(0)
        group.create_task(box.execute("t", "3", b"b"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert [call[-3:-2] for call in begun] == [b"0", b"3"]
        may_end.set()
    assert len(begun) == 4


async def test_a_client_that_leaves_while_its_process_starts_gives_its_place_back() -> None:
    has_begun = asyncio.Event()

    async def never(
        command: Sequence[str], environment: Mapping[str, str], *, limit: int
    ) -> ChildProcess:
        has_begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def no_room(
        command: Sequence[str], environment: Mapping[str, str], *, limit: int
    ) -> ChildProcess:
        raise OSError(errno.EAGAIN, "no room")

    box = ToolBox(max_processes=1, timeout_s=1.0, environment={}, start=never)
    calling = asyncio.create_task(box.tools())
    await has_begun.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    box._start = no_room
    async with asyncio.timeout(60):
        with pytest.raises(OverloadedError, match="can't start its tools"):
            await box.tools()


async def test_the_first_calls_of_many_callers_wait_for_the_tools_each_in_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tools are loaded by the first of them: none has half of all that may wait to itself."""
    may_start = asyncio.Event()

    async def starts(*_: object) -> _Process:
        await may_start.wait()
        return _Process(lives=True)

    monkeypatch.setattr(toolbox._ToolProcess, "start", staticmethod(starts))
    box = ToolBox(max_processes=2, timeout_s=60.0, environment={})
    async with asyncio.TaskGroup() as group:
        calls = [
            group.create_task(box.execute("t", "{}", b"%d" % number))
            for number in range(toolbox.MAX_WAITING)
        ]
        await asyncio.sleep(0)
        may_start.set()
    assert [call.result().result for call in calls] == [1] * toolbox.MAX_WAITING
