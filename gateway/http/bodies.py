"""Request bodies: read within bounds by caller and in sum, and parsed off the loop when they are large."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

from starlette.types import Receive

from gateway.errors import (
    ClientDisconnectedError,
    DeniedError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
)
from protocol.errors import ErrorCode

SMALL_BYTES = 64 * 1024
"""A body up to this needs no place: it is read with the head, or nearly so."""
OFF_LOOP_BYTES = 256 * 1024
"""A body from this size on is parsed in a thread."""
BODY_TIMEOUT_S = 120.0
_MAX_HELD_BODIES = 32
"""So many bodies of the largest size may be in memory, of all callers together."""
_MAX_WAITING_PER_CALLER = 1024
_NUM_PARSERS = 2

ResultT = TypeVar("ResultT")


class Turns:
    """A few places, given out in turn: round robin between callers, in order within one.

    Args:
        num_places: In all.
        num_per_caller: Of one caller.
    """

    def __init__(self, num_places: int, num_per_caller: int) -> None:
        self._num_free = num_places
        self._num_per_caller = num_per_caller
        self._held: dict[bytes, int] = {}
        self._waiting: OrderedDict[bytes, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self, caller: bytes) -> None:
        """Wait for a place; `give` gives it back.

        Raises:
            DeniedError: The caller has too many waiting already.
        """
        if self._num_free and not self._waiting and self._may_have(caller):
            self._hold(caller)
            return
        line = self._waiting.setdefault(caller, deque())
        if len(line) >= _MAX_WAITING_PER_CALLER:
            raise DeniedError(
                f"{len(line)} large requests of this caller wait already; please try again later.",
                code=ErrorCode.RATE_LIMIT_EXCEEDED,
                retry_after_s=1.0,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        self._pump()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(caller)
            else:
                self._leave(caller, turn)
            raise

    def give(self, caller: bytes) -> None:
        """Give a place back."""
        self._num_free += 1
        left = self._held[caller] - 1
        if left:
            self._held[caller] = left
        else:
            del self._held[caller]
        self._pump()

    def _may_have(self, caller: bytes) -> bool:
        return self._held.get(caller, 0) < self._num_per_caller

    def _hold(self, caller: bytes) -> None:
        self._num_free -= 1
        self._held[caller] = self._held.get(caller, 0) + 1

    def _leave(self, caller: bytes, turn: "asyncio.Future[None]") -> None:
        line = self._waiting.get(caller)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[caller]

    def _pump(self) -> None:
        for caller in list(self._waiting):
            if not self._num_free:
                return
            if not self._may_have(caller):
                continue
            line = self._waiting[caller]
            turn = line.popleft()
            # Who had a turn goes behind everybody else.
            self._waiting.move_to_end(caller)
            if not line:
                del self._waiting[caller]
            if not turn.done():
                self._hold(caller)
                turn.set_result(None)


class Bodies:
    """Reads and parses the bodies of one gateway's requests.

    Args:
        max_body_bytes: Longer bodies are refused.
        max_per_caller: Large bodies of one caller that are under way at a time; further ones wait,
            unread, so that a caller with slow bodies holds up only itself.
    """

    def __init__(self, max_body_bytes: int, max_per_caller: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._large = Turns(_MAX_HELD_BODIES * max_per_caller, max_per_caller)
        self._parsers = Turns(_NUM_PARSERS, 1)
        self._max_held_bytes = _MAX_HELD_BODIES * max_body_bytes
        self._num_held_bytes = 0

    async def read(self, receive: Receive, caller: bytes) -> bytes:
        """A whole body.

        Args:
            receive: Of the request.
            caller: Whose bounds count.

        Raises:
            RequestTooLargeError: It is over the limit.
            InvalidRequestError: It did not arrive in time.
            OverloadedError: All callers together send too much.
            ClientDisconnectedError: The client has left.
        """
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise self._too_large()
            return body
        return await self._read_on(message, receive, caller)

    async def parse(
        self, body: bytes, caller: bytes, parser: Callable[[bytes], ResultT]
    ) -> ResultT:
        """What a parser makes of a body; a large one is parsed in a thread, in turn.

        Raises:
            InvalidRequestError: From the parser.
        """
        if len(body) < OFF_LOOP_BYTES:
            return parser(body)
        await self._parsers.take(caller)
        try:
            return await asyncio.to_thread(parser, body)
        finally:
            self._parsers.give(caller)

    async def _read_on(self, message: object, receive: Receive, caller: bytes) -> bytes:
        """A body that comes in pieces."""
        gathered = bytearray()
        has_place = False
        num_counted = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    assert isinstance(message, dict)
                    if message["type"] != "http.request":
                        raise ClientDisconnectedError("The client has left.")
                    gathered += message.get("body", b"")
                    if len(gathered) > self._max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(gathered)
                    if len(gathered) > SMALL_BYTES:
                        if not has_place:
                            await self._large.take(caller)
                            has_place = True
                        self._num_held_bytes += len(gathered) - num_counted
                        num_counted = len(gathered)
                        if self._num_held_bytes > self._max_held_bytes:
                            raise OverloadedError(
                                "Too many large requests are under way; please try again later."
                            )
                    message = await receive()
        except TimeoutError:
            raise InvalidRequestError(
                f"The request body did not arrive within {BODY_TIMEOUT_S:g} seconds."
            ) from None
        finally:
            self._num_held_bytes -= num_counted
            if has_place:
                self._large.give(caller)

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"The request body is over the limit of {self._max_body_bytes} bytes."
        )
