"""Prompts for models that were trained to fill in the middle between two texts of code.

The spellings are those of the models' own cards: Qwen2.5-Coder, CodeGemma and Granite; StarCoder2
and models like it; Code Llama; DeepSeek-Coder; Codestral.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine_worker.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Spelling:
    """How one family writes the two texts.

    Attributes:
        before_prefix: Text of the token before what comes before the middle; empty for none.
        before_suffix: Likewise.
        before_middle: Likewise, after both.
        suffix_first: Whether what comes after the middle is written first.
        ends: Texts of tokens that end the middle beside end-of-sequence.
    """

    before_prefix: str
    before_suffix: str
    before_middle: str
    suffix_first: bool = False
    ends: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """The tokens that a model has of this family."""
        every = (self.before_prefix, self.before_suffix, self.before_middle)
        return tuple(marker for marker in every if marker)


_SPELLINGS: Final = (
    _Spelling(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ends=(
            "<|endoftext|>",
            "<|fim_pad|>",
            "<|file_sep|>",
            "<|repo_name|>",
            "<|file_separator|>",
        ),
    ),
    _Spelling(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ends=("<|endoftext|>", "<fim_pad>", "<file_sep>", "<repo_name>"),
    ),
    _Spelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<|endoftext|>",)),
    _Spelling("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),
    _Spelling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ends=("<|EOT|>",)),
    _Spelling("[PREFIX]", "[SUFFIX]", "", suffix_first=True),
)
_NEWLINE: Final = "\n"


class FillInMiddle:
    """Writes prompts of one model; safe to use from several threads.

    Args:
        tokenizer: The model's.

    Attributes:
        exists: Whether the model has tokens for it.
        ending_token_ids: Tokens that end the middle beside end-of-sequence.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.added_token_ids()
        self._tokenizer = tokenizer
        self._ids = ids
        self._spelling = next(
            (one for one in _SPELLINGS if all(marker in ids for marker in one.markers)), None
        )
        self.exists = self._spelling is not None
        ends = () if self._spelling is None else self._spelling.ends
        self.ending_token_ids = tuple(ids[text] for text in ends if text in ids)

    def token_ids(
        self,
        prefix: str | Sequence[int],
        suffix: str,
        *,
        add_special_tokens: bool,
        is_wanted: Callable[[], bool] | None = None,
    ) -> list[int]:
        """The prompt for what stands between two texts.

        Args:
            prefix: What stands before, as text or tokens.
            suffix: What stands behind.
            add_special_tokens: Begin with what the tokenizer puts before every text.
            is_wanted: See `Tokenizer.encode`.

        Raises:
            InvalidRequestError: A text holds lone surrogates.
            AbandonedError: It is not wanted any more.
        """
        spelling = self._spelling
        assert spelling is not None, "`exists` says so"
        before = self._inside(prefix, is_wanted) if isinstance(prefix, str) else list(prefix)
        behind = self._inside(suffix, is_wanted)
        first = [*self._marker(spelling.before_prefix), *before]
        second = [*self._marker(spelling.before_suffix), *behind]
        parts = (second, first) if spelling.suffix_first else (first, second)
        begin = self._beginning() if add_special_tokens else []
        return [*begin, *parts[0], *parts[1], *self._marker(spelling.before_middle)]

    def _marker(self, text: str) -> tuple[int, ...]:
        return (self._ids[text],) if text else ()

    def _beginning(self) -> list[int]:
        """What the tokenizer puts before a text, and not behind it."""
        newline = self._tokenizer.encode(_NEWLINE, add_special_tokens=False)
        whole = self._tokenizer.encode(_NEWLINE, add_special_tokens=True)
        for start in range(len(whole)):
            if whole[start : start + len(newline)] == newline:
                return whole[:start]
        return []

    def _inside(self, text: str, is_wanted: Callable[[], bool] | None) -> list[int]:
        """The tokens of a text behind others: without the space that SentencePiece puts first."""
        if not text:
            return []
        newline = self._tokenizer.encode(_NEWLINE, add_special_tokens=False)
        token_ids = self._tokenizer.encode(
            _NEWLINE + text, add_special_tokens=False, is_wanted=is_wanted
        )
        if token_ids[: len(newline)] == newline:
            return token_ids[len(newline) :]
        return self._tokenizer.encode(text, add_special_tokens=False, is_wanted=is_wanted)
