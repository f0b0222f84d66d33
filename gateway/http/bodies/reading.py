"""Request bodies: read within bounds by caller and in sum, parsed elsewhere when they are large."""

import asyncio
import contextlib
from types import TracebackType
from typing import TypeVar

from starlette.types import Message, Receive

from gateway.errors import (
    ClientDisconnectedError,
    DeniedError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
)
from gateway.http.bodies.body_pool import BodyPool
from gateway.http.bodies.parsers import BodyKind, ParseContext
from gateway.http.connections.arrived_body import arrived_body
from gateway.http.connections.caller_memory import CallerMemory
from gateway.http.connections.socket_buffers import SocketBuffers
from gateway.http.schemas.base.beside_loop import BesideLoopError, read_on_loop
from gateway.json_numbers import has_long_numbers
from gateway.turns import Turns
from protocol.errors import ErrorCode

SMALL_BYTES = 64 * 1024
"""A body up to this needs no place: it is read with the head, or nearly so."""
OFF_LOOP_BYTES = 256 * 1024
"""A body from this size on is parsed in a process of its own."""
LONG_NUMBERS_BYTES = 16 * 1024
"""So is one from this size on that has long numbers, which take a second, slower parse."""
BODY_TIMEOUT_S = 120.0
PLACE_TIMEOUT_S = 120.0
"""How long a large body waits, unread, for its caller's others."""
_MAX_HELD_BODIES = 32
"""So many bodies of the largest size may be in memory, of all callers together."""

ResultT = TypeVar("ResultT")


class BodyPlace:
    """What one body takes of its caller's bounds, from its first byte until it is parsed.

    Args:
        bodies: Whose bounds they are.
        caller: Whose body it is.

    Attributes:
        is_taken: Whether it is one of the caller's large ones.
        num_bytes: Counted as held.
    """

    __slots__ = ("_bodies", "caller", "is_taken", "num_bytes")

    def __init__(self, bodies: "Bodies", caller: bytes) -> None:
        self._bodies = bodies
        self.caller = caller
        self.is_taken = False
        self.num_bytes = 0

    def __enter__(self) -> "BodyPlace":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.num_bytes or self.is_taken:
            self._bodies.leave(self)


class Bodies:
    """Reads and parses the bodies of one gateway's requests.

    Args:
        max_body_bytes: Longer bodies are refused.
        max_per_caller: Large bodies of one caller that are under way at a time; further ones wait,
            unread, so that a caller with slow bodies holds up only itself.
        pool: Parses large ones.
        context: What bodies are read against.

    Attributes:
        sockets: What WebSockets hold that is no body yet: of one caller, as much as its large
            bodies may have.
        remembered: What they remember, likewise.
    """

    def __init__(
        self,
        max_body_bytes: int,
        max_per_caller: int,
        pool: BodyPool,
        context: ParseContext,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._large = Turns(_MAX_HELD_BODIES * max_per_caller, max_per_caller)
        self._pool = pool
        self._context = context
        self._max_held_bytes = _MAX_HELD_BODIES * max_body_bytes
        self._num_held_bytes = 0
        self.sockets = SocketBuffers(max_per_caller * max_body_bytes)
        self.remembered = CallerMemory(max_per_caller * max_body_bytes)

    def place(self, caller: bytes) -> BodyPlace:
        """Where a body is from its first byte until it is parsed; left with its block."""
        return BodyPlace(self, caller)

    def leave(self, place: BodyPlace) -> None:
        """A body is parsed, or given up."""
        self._num_held_bytes -= place.num_bytes
        if place.is_taken:
            self._large.give(place.caller)

    async def read(self, receive: Receive, place: BodyPlace) -> bytes:
        """A whole body.

        Args:
            receive: Of the request.
            place: Holds it until it is parsed.

        Raises:
            RequestTooLargeError: It is over the limit.
            InvalidRequestError: It did not arrive in time.
            OverloadedError: All callers together send too much.
            ClientDisconnectedError: The client disconnected.
        """
        arrived = arrived_body(receive)
        if arrived is not None:
            return self._bounded(arrived)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as limit:
                message = await receive()
                if message["type"] == "http.request" and not message.get("more_body", False):
                    return self._bounded(message.get("body", b""))
                return await self._read_on(message, receive, place, limit)
        except TimeoutError:
            raise InvalidRequestError(
                f"The request body did not arrive within {BODY_TIMEOUT_S:g} seconds."
            ) from None

    async def hold(self, message: bytes, place: BodyPlace) -> None:
        """Count a message that came whole; a large one waits for its caller's others.

        Args:
            message: Of a WebSocket.
            place: Holds it until it is parsed.

        Raises:
            OverloadedError: All callers together send too much.
            DeniedError: Too many large ones of the caller wait.
        """
        if len(message) > SMALL_BYTES:
            async with asyncio.timeout(None) as limit:
                await self._take(place, limit)
            self._count(place, len(message))

    def parse_small(self, body: bytes, kind: BodyKind[ResultT]) -> ResultT:
        """What a body says that is to be parsed here.

        Raises:
            InvalidRequestError: It is wrong.
            BesideLoopError: It takes long; `parse_beside` does it.
        """
        return read_on_loop(lambda: kind.parse(body, self._context))

    async def parse(self, body: bytes, caller: bytes, kind: BodyKind[ResultT]) -> ResultT:
        """What a body says; one that takes long is parsed beside the loop, in turn.

        Raises:
            InvalidRequestError: It is wrong.
            OverloadedError: Such a one could not be parsed.
            DeniedError: Too many of them wait for the caller.
        """
        if not self.takes_long(body):
            with contextlib.suppress(BesideLoopError):
                return self.parse_small(body, kind)
        return await self.parse_beside(body, caller, kind)

    def takes_long(self, body: bytes) -> bool:
        """Whether a body is parsed beside the loop whatever it says."""
        return len(body) >= OFF_LOOP_BYTES or (
            len(body) >= LONG_NUMBERS_BYTES and has_long_numbers(body)
        )

    async def parse_beside(self, body: bytes, caller: bytes, kind: BodyKind[ResultT]) -> ResultT:
        """What a body says that takes long; errors as of `parse`."""
        return await self._pool.parse(body, caller, kind, self._context)

    async def _read_on(
        self, message: Message, receive: Receive, place: BodyPlace, limit: asyncio.Timeout
    ) -> bytes:
        """A body that comes in pieces."""
        gathered = bytearray()
        while True:
            if message["type"] != "http.request":
                raise ClientDisconnectedError("The client disconnected.")
            gathered += message.get("body", b"")
            if len(gathered) > self._max_body_bytes:
                raise self._too_large()
            if len(gathered) > SMALL_BYTES:
                if not place.is_taken:
                    await self._take(place, limit)
                self._count(place, len(gathered))
            if not message.get("more_body", False):
                return bytes(gathered)
            message = await receive()

    def _bounded(self, body: bytes) -> bytes:
        if len(body) > self._max_body_bytes:
            raise self._too_large()
        return body

    def _count(self, place: BodyPlace, num_bytes: int) -> None:
        self._num_held_bytes += num_bytes - place.num_bytes
        place.num_bytes = num_bytes
        if self._num_held_bytes > self._max_held_bytes:
            raise OverloadedError(
                "Too many large requests are in progress; please try again later."
            )

    async def _take(self, place: BodyPlace, limit: asyncio.Timeout) -> None:
        """Wait for a place; that time is not the body's."""
        loop = asyncio.get_running_loop()
        asked_at, due_at = loop.time(), limit.when()
        limit.reschedule(None)
        try:
            async with asyncio.timeout(PLACE_TIMEOUT_S):
                await self._large.take(place.caller)
        except TimeoutError:
            raise DeniedError(
                "Too many large requests of yours are in progress; please try again later.",
                code=ErrorCode.RATE_LIMIT_EXCEEDED,
                retry_after_s=1.0,
            ) from None
        place.is_taken = True
        if due_at is not None:
            limit.reschedule(due_at + loop.time() - asked_at)

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"The request body is over the limit of {self._max_body_bytes} bytes."
        )
