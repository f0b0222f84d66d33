"""The processes that parse large bodies: started when they are needed, ended when nothing comes."""

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from gateway.errors import GatewayError, OverloadedError
from gateway.http.bodies.body_process import FAILURE, LENGTH_BYTES, RESULT, ParseTask
from gateway.http.bodies.parsed_bodies import Refusal
from gateway.http.bodies.parsers import KINDS, BodyKind, ParseContext
from gateway.turns import Turns
from protocol.runtime import give_way
from protocol.runtime.child_process import ChildProcess, StartChild, start_child
from protocol.wire import codec

IDLE_S = 60.0
"""A process without work for so long is ended; its memory is worth more."""
PARSE_TIMEOUT_S = 60.0
LEFT_GRACE_S = 1.0
"""So long a process goes on with a body whose client has left, which most need no more of: to start
another one takes over half a second of CPU."""
_COMMAND = (sys.executable, "-m", give_way.MODULE, "gateway.http.bodies.body_process")
"""Whoever sends megabytes can wait a little longer than those who stream."""
_PIPE_BYTES = 256 * 1024
_logger = logging.getLogger("penstock.gateway.http")

ResultT = TypeVar("ResultT")
_refusal_decoder: codec.Decoder[Refusal] = codec.Decoder(Refusal)


class BodyPool:
    """Parses bodies in processes of their own, callers in turn.

    Args:
        environment: Of the processes.
        max_processes: Bodies that are parsed at a time; one a caller.
        command: Starts a process.
        start: Does so, while the event loop goes on.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        max_processes: int = 2,
        command: Sequence[str] = _COMMAND,
        start: StartChild = start_child,
    ) -> None:
        self._environment = dict(environment)
        self._command = command
        self._start = start
        self._turns = Turns(max_processes, 1)
        self._idle: list[ChildProcess] = []
        # Bodies that are with a process, or wait until one has started.
        self._asking: set[asyncio.Task[bytes]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        # Made at the start: each takes milliseconds.
        self._decoders: dict[str, codec.Decoder[Any]] = {
            kind.name: codec.Decoder(kind.result) for kind in KINDS.values()
        }

    async def parse(
        self, body: bytes, caller: bytes, kind: BodyKind[ResultT], context: ParseContext
    ) -> ResultT:
        """What a body says.

        A call that is cancelled ends the process that worked on it, unless that is done within a
        moment; until then it is the caller's turn.

        Raises:
            InvalidRequestError: The body is wrong.
            OverloadedError: The process was killed, or took too long.
            GatewayError: A bug of ours; the process goes on unless it was ended by it.
            DeniedError: Too many bodies of the caller wait.
        """
        task = codec.encode_value(ParseTask(kind.name, context))
        await self._turns.take(caller)
        asking = asyncio.get_running_loop().create_task(self._ask(task, body))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        asking.add_done_callback(lambda _: self._turns.give(caller))
        try:
            frame = await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking.cancelled():
                raise _could_not_parse() from None  # the pool was closed
            self._leave(asking)
            raise
        if frame[:1] == RESULT:
            result: ResultT = self._decoders[kind.name].decode(memoryview(frame)[1:])
            return result
        if frame[:1] == FAILURE:
            where = frame[1:].decode("utf-8", "replace")
            _logger.error("a bug ended the parsing of a body of the kind %s:\n%s", kind.name, where)
            raise GatewayError("Internal server error.")
        raise _refusal_decoder.decode(memoryview(frame)[1:]).error()

    async def close(self) -> None:
        """End all processes; whoever waits for one is told to try again."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        asking = tuple(self._asking)
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        while self._idle:
            await self._idle.pop().end()

    def _leave(self, asking: "asyncio.Task[bytes]") -> None:
        """Nobody waits for an answer any more."""
        timer = asyncio.get_running_loop().call_later(LEFT_GRACE_S, asking.cancel)

        def on_done(done: "asyncio.Task[bytes]") -> None:
            timer.cancel()
            if not done.cancelled():
                done.exception()  # it is nobody's any more

        asking.add_done_callback(on_done)

    async def _ask(self, task: bytes, body: bytes) -> bytes:
        while True:
            process, is_new = await self._process()
            try:
                return await self._ask_one(process, task, body)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                code = process.returncode or 0
                if code > 0:
                    raise GatewayError("Internal server error.") from error
                if is_new:
                    raise _could_not_parse() from error
                # It was killed while it was idle: nothing is wrong with this body.
            except TimeoutError as error:
                raise _could_not_parse() from error

    async def _ask_one(self, process: ChildProcess, task: bytes, body: bytes) -> bytes:
        is_well = False
        try:
            async with asyncio.timeout(PARSE_TIMEOUT_S):
                frame = await _exchange(process, task, body)
            is_well = True
            return frame
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            await process.end()
            _logger.error(
                "a process that parses bodies ended with %s (%s)",
                process.returncode,
                type(error).__name__,
            )
            raise
        finally:
            if is_well:
                self._idle.append(process)
                self._plan_end()
            else:
                await process.end()

    async def _process(self) -> tuple[ChildProcess, bool]:
        """An idle one that lives, else a new one; whether it is new."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process, False
            process.release()
        if self._is_closed:
            raise _could_not_parse()
        try:
            # In a session of its own: Ctrl-C is for the gateway, which lets requests finish.
            process = await self._start(self._command, self._environment, limit=_PIPE_BYTES)
        except OSError as error:
            _logger.error("cannot start a process that parses bodies: %s", error.strerror)
            raise _could_not_parse() from error
        return process, True

    def _plan_end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)

    def _end_idle(self) -> None:
        idle, self._idle = self._idle, []
        for process in idle:
            process.release()


def _could_not_parse() -> OverloadedError:
    return OverloadedError("The request body could not be parsed; please try again later.")


async def _exchange(process: ChildProcess, task: bytes, body: bytes) -> bytes:
    stdin, stdout = process.writer, process.reader
    for frame in (task, body):
        stdin.write(len(frame).to_bytes(LENGTH_BYTES, "big"))
        view = memoryview(frame)
        for start in range(0, len(frame), _PIPE_BYTES):
            stdin.write(view[start : start + _PIPE_BYTES])
            await stdin.drain()
    length = int.from_bytes(await stdout.readexactly(LENGTH_BYTES), "big")
    return await stdout.readexactly(length)
