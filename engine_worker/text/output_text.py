"""The text side of one output: tokens in, visible text and the reason to stop out."""

from collections.abc import Mapping

from engine_worker.core.choice.choice import Choice
from engine_worker.text.detokenizer import Detokenizer
from engine_worker.text.stopping import Stop, StopStrings, length_stop, token_stop


class OutputText:
    """Follows one choice's output, token by token.

    What an earlier attempt generated is fed through the same way (`push` for each token), so that
    the state after it is the same; text that the client already has is then left out.

    Args:
        detokenizer: Fresh.
        stop_strings: Fresh.
        num_sent_characters: Of the visible text, what the client already has.
        include_stop_text: Whether a stop token's own text is shown.

    Attributes:
        last_piece: What the last token added to the decoded text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop_strings: StopStrings,
        *,
        num_sent_characters: int = 0,
        include_stop_text: bool = False,
    ) -> None:
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._num_to_skip = num_sent_characters
        self._include_stop_text = include_stop_text
        self._new_text: list[str] = []
        self.num_characters = 0
        self.last_piece = ""

    def push(self, choice: Choice, *, is_complete: bool = False) -> Stop | None:
        """Take the choice's last output token; the reason when the output ends with it.

        Args:
            choice: Whose output it is.
            is_complete: Nothing may follow, because the output's grammar is at its end.

        `num_characters` is afterwards how long the whole decoded text is, whether shown or not.
        """
        stop = token_stop(choice)
        text = ""
        if stop is None or self._include_stop_text:
            text = self._detokenizer.push(choice.output_token_ids[-1])
        if is_complete:
            stop = stop or Stop("stop")
        stop = stop or length_stop(choice)
        if stop is not None:
            text += self._detokenizer.finish()
        self.num_characters += len(text)
        self.last_piece = text
        if choice.num_output_tokens <= choice.min_tokens:
            visible, found = self._stop_strings.pass_through(text), None
        else:
            visible, found = self._stop_strings.feed(text)
        if found is not None and (stop is None or stop.reason == "length"):
            stop = Stop("stop", found)
        elif stop is not None and found is None:
            visible += self._stop_strings.flush()
        self._show(visible)
        return stop

    @property
    def is_whole(self) -> bool:
        """Whether the decoded text ends with a whole character."""
        return self._detokenizer.is_whole

    @property
    def texts(self) -> Mapping[int, str] | None:
        """What is shown at once of a token that ends nothing; see `Detokenizer.texts`."""
        if self._num_to_skip or self._new_text or self._stop_strings.has_any:
            return None
        return self._detokenizer.texts

    def close(self) -> None:
        """Nothing more comes, although no token said so: show what is held back."""
        text = self._detokenizer.finish()
        self.num_characters += len(text)
        self._show(self._stop_strings.pass_through(text))

    def take(self) -> str:
        """The visible text since the last call."""
        if not self._new_text:
            return ""
        text = "".join(self._new_text)
        self._new_text.clear()
        return text

    def _show(self, text: str) -> None:
        if self._num_to_skip:
            num_skipped = min(self._num_to_skip, len(text))
            self._num_to_skip -= num_skipped
            text = text[num_skipped:]
        if text:
            self._new_text.append(text)
