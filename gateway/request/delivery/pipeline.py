"""The fixed path of a request's events: what the prompt shows, what usage is told, the queue."""

import asyncio
from collections.abc import Callable, Sequence

from gateway.errors import GatewayError
from gateway.request.delivery.events import (
    GenerationEvent,
    PromptReport,
    PromptShown,
    UsageTold,
)
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.wire.messages import Prepared, TokenLogprobs, Usage

MAX_UNREAD = 128
"""Events that may wait before the request's leases stop growing."""


class EventQueue:
    """Events gather until the consumer takes them all; its end comes after the last of them.

    Attributes:
        on_caught_up: Called once when the consumer takes what there is, after it had lagged.
    """

    def __init__(self) -> None:
        self.on_caught_up: Callable[[], None] | None = None
        self._events: list[GenerationEvent] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: GatewayError | None = None
        self._is_closed = False

    @property
    def is_lagging(self) -> bool:
        """Whether the consumer has much left to take."""
        return len(self._events) >= MAX_UNREAD

    def put(self, event: GenerationEvent) -> None:
        """One more event; after `close` nobody wants it."""
        if not self._is_closed:
            self._events.append(event)
            self._wake()

    def close(self, error: GatewayError | None = None) -> None:
        """No more events; with an error the consumer gets it after them. The first call counts."""
        if not self._is_closed:
            self._is_closed = True
            self._error = error
            self.on_caught_up = None
            self._wake()

    async def take(self, timeout_s: float | None) -> list[GenerationEvent] | None:
        """What has come since the last call, as soon as there is something.

        Args:
            timeout_s: An empty list comes when nothing happened for so long; None waits.

        Returns:
            None after the last event.

        Raises:
            GatewayError: The queue was closed with it; earlier events were returned before. It
                is raised once.
        """
        if not self._events and not self._is_closed:
            await self._wait(timeout_s)
        if self._events:
            events, self._events = self._events, []
            if self.on_caught_up is not None:
                told, self.on_caught_up = self.on_caught_up, None
                told()
            return events
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # it knows the frames of its readers, and they know us
        return None if self._is_closed else []

    async def _wait(self, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class PromptGate:
    """Puts a `PromptShown` before the first event of each choice.

    The log probabilities of a prompt come from the engine of its first choice only; the others
    wait for them, wherever they run.

    Args:
        emit: Takes the events that may leave.
        prepared: The prompts.
        num_choices: Choices a prompt.
        needs_logprobs: Whether the prompts' log probabilities belong to what is shown.
    """

    def __init__(
        self,
        emit: Callable[[GenerationEvent], None],
        prepared: Sequence[Prepared],
        *,
        num_choices: int,
        needs_logprobs: bool,
    ) -> None:
        self._emit = emit
        self._reports = [PromptReport(one) for one in prepared]
        self._num_choices = num_choices
        # A prompt is open once its choices may speak.
        self._is_open = [not needs_logprobs] * len(prepared)
        self._held: dict[int, list[GenerationEvent]] = {}
        self._has_shown: set[int] = set()

    def put(self, event: GenerationEvent) -> None:
        """An event of any choice."""
        if self._is_open[event.choice // self._num_choices]:
            self._pass(event)
        else:
            self._held.setdefault(event.choice, []).append(event)

    def open(self, choice: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """A prompt's log probabilities are complete; idempotent.

        Args:
            choice: Any of its choices.
            logprobs: From the second token on.
        """
        number = choice // self._num_choices
        if self._is_open[number]:
            return
        self._is_open[number] = True
        self._reports[number].logprobs = tuple(logprobs)
        first = number * self._num_choices
        for index in range(first, first + self._num_choices):
            for event in self._held.pop(index, ()):
                self._pass(event)

    def _pass(self, event: GenerationEvent) -> None:
        if event.choice not in self._has_shown:
            self._has_shown.add(event.choice)
            report = self._reports[event.choice // self._num_choices]
            self._emit(PromptShown(event.choice, report))
        self._emit(event)


class Pipeline:
    """Stages between whoever makes events and the queue that the client is answered from.

    ```
    choices, parser -> prompt gate -> running usage -> queue
    ```

    The stages that an answer needs are chosen once, when its prompts are known.

    Args:
        queue: The last stage.
        options: What the answer shows.
    """

    def __init__(self, queue: EventQueue, options: AnswerOptions) -> None:
        self._queue = queue
        self._options = options
        self._usage: Callable[[], Usage] = Usage
        self._gate: PromptGate | None = None
        self.put: Callable[[GenerationEvent], None] = queue.put

    def open(
        self, prepared: Sequence[Prepared], usage: Callable[[], Usage], *, needs_logprobs: bool
    ) -> None:
        """Choose the stages; before the first event.

        Args:
            prepared: The prompts.
            usage: The running usage of the request.
            needs_logprobs: Whether their log probabilities belong to what is shown.
        """
        if self._options.continuous_usage:
            self._usage = usage
            self.put = self._put_with_usage
        if self._options.shows_prompt:
            self._gate = PromptGate(
                self.put,
                prepared,
                num_choices=self._options.num_choices,
                needs_logprobs=needs_logprobs,
            )
            self.put = self._gate.put

    def on_prompt_logprobs(self, choice: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """The log probabilities of a prompt are complete; `choice` is any of its choices."""
        if self._gate is not None:
            self._gate.open(choice, logprobs)

    def _put_with_usage(self, event: GenerationEvent) -> None:
        self._queue.put(UsageTold(event.choice, self._usage()))
        self._queue.put(event)
