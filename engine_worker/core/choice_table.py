"""The choices that an engine works on, found by identity, request, gateway and deadline."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.tombstones import ChoiceKey
from protocol.wire.messages import ALL_CHOICES

_MAX_STALE = 64


class ChoiceTable:
    """Every look-up costs as much as what it finds, however many choices wait."""

    def __init__(self) -> None:
        self._choices: dict[ChoiceKey, ChoiceOutput] = {}
        self._outputs: dict[Choice, ChoiceOutput] = {}
        self._by_request: dict[tuple[str, str], dict[int, ChoiceOutput]] = {}
        self._num_choices: dict[str, int] = {}
        self._num_tokens: dict[str, int] = {}
        self._counted: dict[Choice, int] = {}
        # (deadline, arrival, identity); who ended earlier stays in until it comes to the top, so it
        # is no output, which has a matcher and a prompt.
        self._deadlines: list[tuple[float, int, ChoiceKey]] = []

    def __len__(self) -> int:
        return len(self._choices)

    def __iter__(self) -> Iterator[ChoiceOutput]:
        return iter(self._choices.values())

    def get(self, key: ChoiceKey) -> ChoiceOutput | None:
        """The choice of this identity, with its output."""
        return self._choices.get(key)

    def output_of(self, choice: Choice) -> ChoiceOutput | None:
        """The output of a choice; None once it has ended."""
        return self._outputs.get(choice)

    def add(self, output: ChoiceOutput) -> None:
        """Take a choice in; its identity must not be in use."""
        choice = output.choice
        gateway_id, request_id, index = choice.key
        assert choice.key not in self._choices
        self._choices[choice.key] = self._outputs[choice] = output
        self._by_request.setdefault((gateway_id, request_id), {})[index] = output
        self._num_choices[gateway_id] = self._num_choices.get(gateway_id, 0) + 1
        self.count_tokens(choice)
        heappush(self._deadlines, (choice.deadline, choice.arrival, choice.key))

    def count_tokens(self, choice: Choice) -> None:
        """A choice in the table has grown."""
        num_tokens = len(choice.prompt_token_ids) + len(choice.output_token_ids)
        num_new = num_tokens - self._counted.get(choice, 0)
        self._counted[choice] = num_tokens
        gateway_id = choice.gateway_id
        self._num_tokens[gateway_id] = self._num_tokens.get(gateway_id, 0) + num_new

    def add_tokens(self, choice: Choice, num_tokens: int) -> None:
        """A choice in the table, which was counted since it grew last, has so many tokens more."""
        self._counted[choice] += num_tokens
        self._num_tokens[choice.gateway_id] += num_tokens

    def remove(self, output: ChoiceOutput) -> None:
        """Let a choice go."""
        choice = output.choice
        gateway_id, request_id, index = choice.key
        del self._choices[choice.key], self._outputs[choice]
        siblings = self._by_request[gateway_id, request_id]
        del siblings[index]
        if not siblings:
            del self._by_request[gateway_id, request_id]
        self._num_choices[gateway_id] -= 1
        self._num_tokens[gateway_id] -= self._counted.pop(choice)
        if self._num_choices[gateway_id] == 0:
            del self._num_choices[gateway_id]
            del self._num_tokens[gateway_id]
        if len(self._deadlines) > _MAX_STALE + 2 * len(self._choices):
            self._deadlines = [
                entry for entry in self._deadlines if self._with_deadline(entry) is not None
            ]
            heapify(self._deadlines)

    def of_request(self, key: ChoiceKey) -> list[ChoiceOutput]:
        """The choice of this identity; with `ALL_CHOICES` every choice of the request.

        The prompts of a Score of the same name are none of these.
        """
        gateway_id, request_id, index = key
        found = self._by_request.get((gateway_id, request_id), {})
        if index != ALL_CHOICES:
            found = {index: found[index]} if index in found else {}
        return [output for output in found.values() if not output.choice.is_scored]

    def of_gateway(self, gateway_id: str) -> list[ChoiceOutput]:
        """All choices of a gateway; looks at everybody's."""
        return [output for key, output in self._choices.items() if key[0] == gateway_id]

    def held(self) -> dict[str, tuple[int, int]]:
        """For each gateway that has any, its choices and their tokens, prompts and outputs."""
        return {
            gateway_id: (count, self._num_tokens[gateway_id])
            for gateway_id, count in self._num_choices.items()
        }

    def next_deadline(self) -> float | None:
        """The earliest deadline."""
        while self._deadlines and self._with_deadline(self._deadlines[0]) is None:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> list[ChoiceOutput]:
        """Choices whose time is up; they stay in the table until they are removed."""
        found = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            output = self._with_deadline(heappop(self._deadlines))
            assert output is not None, "those that ended are not the next deadline"
            found.append(output)
        return found

    def _with_deadline(self, entry: tuple[float, int, ChoiceKey]) -> ChoiceOutput | None:
        """Whose deadline it is, as long as it is in the table."""
        _, arrival, key = entry
        output = self._choices.get(key)
        return output if output is not None and output.choice.arrival == arrival else None
