"""Decides when an output ends: end-of-sequence, stop ids, stop strings, lengths; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine_worker.core.choice.choice import Choice
from protocol.wire.messages import FinishReason


@dataclass(frozen=True, slots=True)
class Stop:
    """Why an output ended.

    Attributes:
        reason: `stop` or `length`.
        detail: The stop string or stop id; None for end-of-sequence and for lengths.
    """

    reason: FinishReason
    detail: str | int | None = None


def token_stop(choice: Choice) -> Stop | None:
    """Whether the last output token ends the output by itself (its text is then left out)."""
    if choice.num_output_tokens <= choice.min_tokens:
        return None
    token_id = choice.output_token_ids[-1]
    if token_id in choice.eos_token_ids:
        return Stop("stop")
    if token_id in choice.stop_token_ids:
        return Stop("stop", token_id)
    return None


def length_stop(choice: Choice) -> Stop | None:
    """Whether the output is as long as it may be: `max_tokens` or what the context left."""
    return Stop("length") if choice.num_output_tokens >= choice.max_output_tokens else None


class StopStrings:
    """Finds the first stop string in text that arrives in pieces, in time linear in the text.

    The string whose end comes first wins; of several that end together the longest. The answer is
    the same however the text is cut. What may be the beginning of a stop string is held back.

    Args:
        strings: Non-empty stop strings.
        include: Whether the string that was found stays at the end of the text.
    """

    def __init__(self, strings: Sequence[str], *, include: bool = False) -> None:
        assert all(strings), "a stop string cannot be empty"
        self._patterns = [_Pattern(string) for string in dict.fromkeys(strings)]
        self._include = include
        self._held = ""

    @property
    def has_any(self) -> bool:
        """Whether there is one to look for."""
        return bool(self._patterns)

    def feed(self, text: str) -> tuple[str, str | None]:
        """Look at more text.

        Returns:
            The text that can be shown now, and the stop string if one was found; what follows it
            is dropped.
        """
        if not self._patterns:
            return text, None
        pending = self._held + text
        for index, character in enumerate(text, start=len(self._held)):
            found: _Pattern | None = None
            for pattern in self._patterns:
                if pattern.advance(character) and (
                    found is None or len(pattern.text) > len(found.text)
                ):
                    found = pattern
            if found is not None:
                self._held = ""
                end = index + 1
                return pending[: end if self._include else end - len(found.text)], found.text
        num_held = max(pattern.num_matched for pattern in self._patterns)
        self._held = pending[len(pending) - num_held :]
        return pending[: len(pending) - num_held], None

    def pass_through(self, text: str) -> str:
        """Show text in which nothing is looked for; a stop string can't span into it."""
        return self.flush() + text

    def flush(self) -> str:
        """What is held back, when the text has ended."""
        held, self._held = self._held, ""
        for pattern in self._patterns:
            pattern.num_matched = 0
        return held


class _Pattern:
    """A stop string as a Knuth-Morris-Pratt automaton (SIAM J. Comput. 6(2), 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._fallback = [0] * len(text)
        length = 0
        for index in range(1, len(text)):
            while length and text[index] != text[length]:
                length = self._fallback[length - 1]
            if text[index] == text[length]:
                length += 1
            self._fallback[index] = length

    def advance(self, character: str) -> bool:
        """Take the next character; whether the string ends with it."""
        while self.num_matched and self.text[self.num_matched] != character:
            self.num_matched = self._fallback[self.num_matched - 1]
        if self.text[self.num_matched] == character:
            self.num_matched += 1
        return self.num_matched == len(self.text)
