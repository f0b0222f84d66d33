"""The prompts of one request at one engine: a few at a time, so that others don't wait for all."""

import asyncio
from collections.abc import Callable, Sequence

from gateway.dispatch.slots import EngineHandle
from gateway.workers.engines import EngineLink
from protocol.wire.messages import Prepare, Prepared

WINDOW = 16
"""Prompts that are on their way at a time."""
CHECK_EVERY = 8
"""After so many prompts it is looked whether the others are worth tokenising."""


class PromptBatch:
    """Sends prompts to an engine and gathers their tokens.

    Args:
        engines: The link to the engines.
        engine: Which one.
        prepares: The prompts, addressed.
    """

    def __init__(
        self, engines: EngineLink, engine: EngineHandle, prepares: Sequence[Prepare]
    ) -> None:
        self.engine = engine
        self._engines = engines
        self._prepares = prepares
        self._answers: dict[int, asyncio.Future[Prepared]] = {}
        self._num_sent = 0

    def send(self) -> None:
        """Send as many as the window takes.

        Raises:
            WorkerLostError: The engine takes nothing any more.
        """
        while self._num_sent < len(self._prepares) and len(self._answers) < WINDOW:
            number = self._num_sent
            self._answers[number] = self._engines.ask(self.engine, self._prepares[number], Prepared)
            self._num_sent += 1

    async def wait(self, check: Callable[[Sequence[Prepared]], object]) -> list[Prepared]:
        """All prompts, in order; the first failure cancels the others.

        Args:
            check: Is shown those that are there now and then; what it raises ends the batch.

        Raises:
            RemoteFailureError: A prompt is wrong, too long, or the engine is full.
            WorkerLostError: The engine died.
        """
        prepared: list[Prepared] = []
        try:
            for number, question in enumerate(self._prepares):
                self.send()
                prepared.append(await self._answers[number])
                del self._answers[number]
                self._engines.close(self.engine, question.request_id)
                if len(prepared) % CHECK_EVERY == 0:
                    check(prepared)
        finally:
            self.close()
        return prepared

    def close(self) -> None:
        """Nobody waits any more: what is on its way is cancelled; idempotent."""
        answers, self._answers = self._answers, {}
        for number, answer in answers.items():
            self._engines.close(self.engine, self._prepares[number].request_id)
            if answer.done() and not answer.cancelled():
                answer.exception()  # read, so that nobody reports it as overlooked
