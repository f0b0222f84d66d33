"""Holds a choice's output back until what the answer tells of its prompt is known."""

from collections.abc import Callable, Sequence

from gateway.request.delivery.events import GenerationEvent, PromptReport, PromptShown
from protocol.wire.messages import Prepared, TokenLogprobs


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
