"""The fixed path of a request's events: what the prompt shows, what usage is told, the queue."""

from collections.abc import Callable, Sequence

from gateway.request.delivery.event_queue import EventQueue
from gateway.request.delivery.events import GenerationEvent, UsageTold
from gateway.request.delivery.prompt_gate import PromptGate
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.wire.messages import Prepared, TokenLogprobs, Usage


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
