"""The well-behaved client beside an attack, and a probe of `/live`; both note how long it takes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.attack.raw_http import Answer, Connection, head, post
from tests.attack.target import CHAT, EMBEDDING_MODEL, EMBEDDINGS, MODEL, GoodKind

_MAX_UNANSWERED = 256
_PATIENCE_S = 60.0
_PROBE_S = 0.05
_PROBE_TIMEOUT_S = 30.0
_MAX_FAILURES = 10


@dataclass
class Latencies:
    """Durations in milliseconds, and what failed.

    Attributes:
        failures: A line each; the first ones only.
    """

    ms: list[float] = field(default_factory=list)
    num_failed: int = 0
    failures: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """The duration that so large a share stays below; 0 without any."""
        if not self.ms:
            return 0.0
        return sorted(self.ms)[min(len(self.ms) - 1, int(share * len(self.ms)))]

    def fail(self, why: str) -> None:
        """Note a failure."""
        self.num_failed += 1
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append(why)


class KeptAlive:
    """Connections that are used again, as clients do.

    Args:
        port: Of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def ask(self, request: bytes) -> Answer:
        """Send a request over a free connection, or a new one.

        Raises:
            OSError: The connection broke.
            EOFError: It ended before the answer did.
            ValueError: What came is no HTTP.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof():
                break
            connection.close()
        else:
            connection = await Connection.open(self._port)
        try:
            await connection.send(request)
            answer = await connection.answer()
        except BaseException:
            connection.close()
            raise
        if answer.headers.get("connection") == "close":
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Let go of all connections."""
        while self._idle:
            self._idle.pop().close()


class GoodClient:
    """Small requests at a steady rate, whatever becomes of the ones before.

    A duration counts from the moment when the request was due, so that a server that stands still
    is seen by every request that it kept waiting.

    Args:
        port: Of the gateway.
        rate_per_s: Requests a second.
        request: Makes the request of a number.
    """

    def __init__(self, port: int, rate_per_s: float, request: Callable[[int], bytes]) -> None:
        self._connections = KeptAlive(port)
        self._rate_per_s = rate_per_s
        self._request = request
        self._number = 0

    async def run(self, latencies: Latencies, stop: asyncio.Event) -> None:
        """Go on until told to stop, then wait for the answers that are due."""
        unanswered: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not stop.is_set():
            if len(unanswered) < _MAX_UNANSWERED:
                task = asyncio.create_task(self._one(latencies, due))
                unanswered.add(task)
                task.add_done_callback(unanswered.discard)
            else:
                latencies.fail(f"not sent: {_MAX_UNANSWERED} requests have no answer yet")
            due += 1 / self._rate_per_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*unanswered)
        self._connections.close()

    async def _one(self, latencies: Latencies, due: float) -> None:
        self._number += 1
        try:
            async with asyncio.timeout(_PATIENCE_S):
                answer = await self._connections.ask(self._request(self._number))
        except (OSError, EOFError, ValueError) as error:
            latencies.fail(f"{type(error).__name__} {error}")
            return
        if answer.status == 200:
            latencies.ms.append(1000 * (time.monotonic() - due))
        else:
            latencies.fail(f"{answer.status} {answer.text}")


def good_request(kind: GoodKind, key: str, number: int) -> bytes:
    """The good client's request of a number: always a little different.

    Args:
        kind: `chat` has sixteen tokens; `grammar` a new grammar of a few words, since one that is
            compiled already would wait for nobody; `embedding` one sentence.
        key: The client's.
        number: Of the request.
    """
    text = f"Say something, please ({number})."
    if kind == "embedding":
        return post(EMBEDDINGS, {"model": EMBEDDING_MODEL, "input": text}, key)
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    if kind == "grammar":
        return post(CHAT, body | {"guided_regex": f"yes|no|n{number}", "max_tokens": 8}, key)
    return post(CHAT, body | {"max_tokens": 16, "temperature": 0, "seed": number}, key)


class Prober:
    """Asks for one address every 50 ms, on one connection.

    Args:
        port: Of the server.
        path: What is asked for.
    """

    def __init__(self, port: int, path: str) -> None:
        self._connections = KeptAlive(port)
        self._request = head("GET", path)

    async def run(self, latencies: Latencies, stop: asyncio.Event) -> None:
        """Go on until told to stop."""
        while not stop.is_set():
            began = time.monotonic()
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    answer = await self._connections.ask(self._request)
                if answer.status != 200:
                    latencies.fail(f"{answer.status} {answer.text}")
            except (OSError, EOFError, ValueError) as error:
                latencies.fail(f"{type(error).__name__} {error}")
            latencies.ms.append(1000 * (time.monotonic() - began))
            await asyncio.sleep(_PROBE_S)
        self._connections.close()
