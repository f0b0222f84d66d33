"""Runs the tools that packages register, each call in a process of its own and within a time."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import orjson

from gateway import json_numbers
from gateway.config import GatewaySettings
from gateway.errors import (
    InvalidRequestError,
    OverloadedError,
    ToolNotFoundError,
    ToolPluginsError,
)
from gateway.turns import Turns
from protocol.runtime.child_environment import child_environment
from protocol.runtime.child_process import ChildProcess, StartChild, start_child

START_TIMEOUT_S = 60.0
"""What loading the packages may take."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
_MAX_ON_LOOP_BYTES = 64 * 1024
"""Longer answers are read beside the event loop."""
MAX_WAITING = 64
"""Calls that wait for a process, half of them of one caller; more are refused."""

PLUGIN_GROUP = "penstock.tools"
"""The group of entry points by which packages add tools."""

_COMMAND = (sys.executable, "-m", "gateway.tools.tool_process")
_logger = logging.getLogger("penstock.gateway.tools")


@dataclass(frozen=True)
class ToolCard:
    """What a tool says about itself."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ToolResult:
    """What a call yielded.

    Attributes:
        result: A JSON value; None when the tool failed.
        error: Type and message of the failure; None when there was none.
    """

    result: Any = None
    error: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """The result's part of the answer."""
        return {"is_error": self.error is not None, "result": self.result, "error": self.error}


class _UnreadableError(Exception):
    """A process wrote what is no message of ours."""


class _ToolProcess:
    """One process, for one call at a time."""

    def __init__(self, process: ChildProcess, tools: tuple[ToolCard, ...]) -> None:
        self.tools = tools
        self._process = process

    @classmethod
    async def start(
        cls, start: StartChild, command: Sequence[str], environment: Mapping[str, str]
    ) -> "_ToolProcess":
        """Start one and read its tools.

        Raises:
            ToolPluginsError: They can't be loaded.
            OverloadedError: The system has no room for a process.
        """
        try:
            # In a group of its own: its own children end with it.
            process = await start(command, environment, limit=MAX_ANSWER_BYTES)
        except OSError as error:
            _logger.error("cannot start a tool process: %s", error.strerror)
            raise OverloadedError(
                "This server can't start its tools at the moment; please try again later."
            ) from error
        started = cls(process, ())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                greeting = await started._read() or {"error": "their process died"}
            if "error" in greeting:
                raise ValueError(greeting["error"])
        except (TimeoutError, ValueError, _UnreadableError) as error:
            await started.kill()
            _logger.error("tools cannot be loaded: %s", error)
            raise ToolPluginsError(
                "The tools of this server can't be loaded; its log says why."
            ) from error
        except BaseException:
            await started.kill()
            raise
        started.tools = tuple(ToolCard(**tool) for tool in greeting["tools"])
        return started

    async def begin(self, call: bytes) -> bool:
        """Hand a call over; False when the process had died before it took it.

        Raises:
            ValueError: It wrote too much instead.
            _UnreadableError: It wrote something else.
        """
        with contextlib.suppress(ConnectionError):
            self._process.writer.write(call)
            await self._process.writer.drain()
        return await self._read() is not None

    async def result(self, loads: Callable[[bytes], Any]) -> dict[str, Any] | None:
        """The answer to the call that was begun; None when the process died of it.

        Args:
            loads: Reads its JSON.

        Raises:
            ValueError: The answer is too long.
            _UnreadableError: It is none.
        """
        return await self._read(loads)

    async def _read(self, loads: Callable[[bytes], Any] = orjson.loads) -> dict[str, Any] | None:
        line = b""
        with contextlib.suppress(ConnectionError):  # it died with a call that it hadn't read
            line = await self._process.reader.readline()
        if not line.endswith(b"\n"):
            return None
        if len(line) > _MAX_ON_LOOP_BYTES:
            return await asyncio.to_thread(_message, line, loads)
        return _message(line, loads)

    async def kill(self) -> None:
        """End the process and its children, whatever they do."""
        await self._process.end()


def _message(line: bytes, loads: Callable[[bytes], Any]) -> dict[str, Any]:
    try:
        message = loads(line)
    except orjson.JSONDecodeError as error:
        raise _UnreadableError(f"{error} in {line[:80]!r}") from None
    if not isinstance(message, dict):
        raise _UnreadableError(f"no object: {line[:80]!r}")
    return message


class CallTurns:
    """Places for calls, which callers have in turn.

    Args:
        num_places: In all.
        num_per_caller: Of one caller.
    """

    def __init__(self, num_places: int, num_per_caller: int) -> None:
        self._turns = Turns(num_places, num_per_caller, MAX_WAITING // 2)
        self._num_waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self, caller: bytes) -> AsyncIterator[None]:
        """Have a place for the length of a block.

        Raises:
            OverloadedError: Too many calls wait.
            DeniedError: Too many of this caller do.
        """
        if self._num_waiting >= MAX_WAITING:
            raise OverloadedError("Too many tool calls wait on this server; please try again.")
        self._num_waiting += 1
        try:
            await self._turns.take(caller)
        finally:
            self._num_waiting -= 1
        try:
            yield
        finally:
            self._turns.give(caller)


class ToolBox:
    """The registered tools and the processes that run them, started when they are needed.

    Args:
        max_processes: Calls that run at a time; of one caller one fewer, where there are several.
        timeout_s: How long a call may run.
        environment: Of the processes.
        command: Starts one.
        start: Does so, while the event loop goes on.
        loads: Reads what calls yield; the default keeps every digit of its numbers.
    """

    def __init__(
        self,
        *,
        max_processes: int,
        timeout_s: float,
        environment: Mapping[str, str],
        command: Sequence[str] = _COMMAND,
        start: StartChild = start_child,
        loads: Callable[[bytes], Any] = json_numbers.loads,
    ) -> None:
        self._start = start
        self._loads = loads
        self._timeout_s = timeout_s
        self._command = command
        self._environment = dict(environment)
        self._turns = CallTurns(max_processes, max(1, max_processes - 1))
        self._idle: list[_ToolProcess] = []
        self._busy: set[_ToolProcess] = set()
        self._tools: tuple[ToolCard, ...] | None = None

    async def tools(self, caller: bytes = b"") -> tuple[ToolCard, ...]:
        """The tools.

        Args:
            caller: Whose turn it is, should they have to be loaded first.

        Raises:
            GatewayError: They can't be loaded, or too many calls wait.
        """
        if self._tools is None:
            async with self._turns.turn(caller):
                if self._tools is None:  # nobody has loaded them meanwhile
                    process = await self._acquire()
                    self._release(process)
                    self._tools = process.tools
        return self._tools

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        """Run a tool. What it raises, its death and its delay are results.

        Args:
            name: Of the tool.
            arguments_json: A JSON object without line breaks.
            caller: Whose turn it is.

        Raises:
            ToolNotFoundError: No tool is called so.
            InvalidRequestError: The arguments don't fit its schema.
            GatewayError: The tools can't be loaded, or too many calls wait.
        """
        known = [tool.name for tool in await self.tools(caller)]
        if name not in known:
            raise ToolNotFoundError(name, tuple(known))
        call = b'{"name":%b,"arguments":%b}\n' % (orjson.dumps(name), arguments_json.encode())
        async with self._turns.turn(caller):
            answer = await self._answer(name, call)
        if isinstance(answer, ToolResult):
            return answer
        if "invalid" in answer:
            raise InvalidRequestError(answer["invalid"], param="arguments")
        return ToolResult(answer.get("result"), answer.get("error"))

    async def _answer(self, name: str, call: bytes) -> dict[str, Any] | ToolResult:
        """What a process answers to a call, or why none has."""
        process = await self._acquire()
        try:
            async with asyncio.timeout(self._timeout_s):
                while not await process.begin(call):
                    # It died while it was idle, which is nothing to this caller.
                    process = await self._exchange(process)
                answer = await process.result(self._loads)
        except TimeoutError:
            return _failure("timeout", f"The tool ran longer than {self._timeout_s:g} s.")
        except ValueError:
            return _failure("too_long", f"The result is longer than {MAX_ANSWER_BYTES} bytes.")
        except _UnreadableError as error:
            _logger.error("the process of the tool %s wrote no answer: %s", name, error)
            return _failure("unreadable", "The tool's process wrote what is no answer.")
        else:
            if answer is None:
                return _failure("process_died", "The tool's process died.")
            self._release(process)
            return answer
        finally:
            if process in self._busy:  # it was not released: nobody knows what it does now
                await self._discard(process)

    async def close(self) -> None:
        """End all processes."""
        for process in (*self._idle, *self._busy):
            await process.kill()
        self._idle.clear()

    async def _acquire(self) -> _ToolProcess:
        process = await self._find()
        self._busy.add(process)
        return process

    async def _find(self) -> _ToolProcess:
        if self._idle:
            return self._idle.pop()
        return await _ToolProcess.start(self._start, self._command, self._environment)

    async def _exchange(self, dead: _ToolProcess) -> _ToolProcess:
        """Another process in the place of one that is dead."""
        await self._discard(dead)
        return await self._acquire()

    def _release(self, process: _ToolProcess) -> None:
        self._busy.discard(process)
        self._idle.append(process)

    async def _discard(self, process: _ToolProcess) -> None:
        self._busy.discard(process)
        await process.kill()


def registered_toolbox(settings: GatewaySettings, environment: Mapping[str, str]) -> ToolBox | None:
    """The tools that installed packages register; None when none does, or tools are off."""
    if not settings.tools or not entry_points(group=PLUGIN_GROUP):
        return None
    return ToolBox(
        max_processes=settings.max_tool_processes,
        timeout_s=settings.tool_timeout_s,
        environment=child_environment(environment, settings.tool_env),
    )


def _failure(kind: str, message: str) -> ToolResult:
    return ToolResult(error={"type": kind, "message": message})
