"""Texts, pairs of texts and token ids as rows of tokens: checked, tokenised, cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine_worker.errors import BEFORE, ContextLengthError, InvalidRequestError
from engine_worker.text.tokenizer import EncodedText, Tokenizer

_MAX_CHARACTERS_PER_TOKEN: Final = 64
"""A text with more cannot be worth tokenising to its end when it is to be cut."""
_NO_LIMIT: Final = -1


@dataclass(frozen=True, slots=True)
class Row:
    """An input in tokens.

    Attributes:
        type_ids: As many, 1 in the second text of a pair; None is all 0.
        is_cut: Whether tokens were left out because there were too many.
    """

    token_ids: list[int]
    type_ids: list[int] | None = None
    is_cut: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)


class InputReader:
    """Turns the inputs of requests into rows for one model; used by one thread.

    Args:
        tokenizer: Of the model.
        vocab_size: Token ids at or above it are refused.
        max_tokens: The longest row.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens

    def limit(self, truncate_prompt_tokens: int | None) -> int | None:
        """How many tokens of an input count; None refuses more than the model takes.

        Args:
            truncate_prompt_tokens: -1 cuts to what the model takes.

        Raises:
            InvalidRequestError: It is out of range.
        """
        if truncate_prompt_tokens is None:
            return None
        most = self._max_tokens
        if truncate_prompt_tokens != _NO_LIMIT and not 1 <= truncate_prompt_tokens <= most:
            raise InvalidRequestError(
                f"'truncate_prompt_tokens' must be -1 or 1 to {most}, not"
                f" {truncate_prompt_tokens}.",
                param="truncate_prompt_tokens",
            )
        return most if truncate_prompt_tokens == _NO_LIMIT else truncate_prompt_tokens

    def text(self, text: str, index: int, limit: int | None) -> Row:
        """A text with the tokenizer's special tokens.

        Args:
            text: Of any length.
            index: Its place in the request, for messages.
            limit: From `limit`.

        Raises:
            RequestError: It is too long, or no text.
        """
        text, was_cut = self._bounded(text, index, limit)
        row = self.tokenizer.encode(text, add_special_tokens=True)
        return self._fitted(row, index, limit, was_cut=was_cut)

    def token_ids(self, token_ids: Sequence[int], index: int, limit: int | None) -> Row:
        """An input that is token ids; arguments and errors as of `text`."""
        wrong = next((one for one in token_ids if not 0 <= one < self._vocab_size), None)
        if wrong is not None:
            raise InvalidRequestError(
                f"Token id {wrong} is not between 0 and {self._vocab_size - 1}.", param="input"
            )
        return self._fitted(list(token_ids), index, limit)

    def part(
        self, text: str, index: int, limit: int | None, param: str = "input"
    ) -> tuple[EncodedText, bool]:
        """A text of a pair, and whether it was cut; `param` says in errors which one it is.

        Other arguments and errors are as of `text`.
        """
        text, was_cut = self._bounded(text, index, limit, param)
        return self.tokenizer.encode_part(text), was_cut

    def pair(
        self,
        first: tuple[EncodedText, bool],
        second: tuple[EncodedText, bool],
        index: int,
        limit: int | None,
        max_second: int | None,
    ) -> Row:
        """Two texts as the tokenizer joins a pair.

        Args:
            first: From `part`, as the next one.
            second: The other one.
            index: The pair's place in the request, for messages.
            limit: From `limit`: the longer text loses tokens first, as in transformers'
                `longest_first`.
            max_second: The second text keeps so many tokens at most; None leaves it.

        Raises:
            ContextLengthError: Together they are too long, and aren't to be cut.
        """
        (one, one_was_cut), (other, other_was_cut) = first, second
        num_one, num_other = len(one), len(other)
        if max_second is not None:
            num_other = min(num_other, max_second)
        num_added = self.tokenizer.num_pair_tokens
        most = self._max_tokens if limit is None else limit
        if num_one + num_other + num_added > most:
            if limit is None:
                # Where not even an empty text would fit beside it, the first one is too long.
                param = BEFORE if num_one + num_added >= most else "input"
                raise self._too_long(index, str(num_one + num_other + num_added), param)
            num_one, num_other = longest_first(num_one, num_other, max(0, most - num_added))
        is_cut = one_was_cut or other_was_cut or (num_one, num_other) != (len(one), len(other))
        token_ids, type_ids = self.tokenizer.join_pair(one.cut(num_one), other.cut(num_other))
        if len(token_ids) > most:
            # Not even what the tokenizer adds fits.
            token_ids, type_ids = token_ids[:most], type_ids[:most]
        return Row(token_ids, type_ids, is_cut)

    def _bounded(
        self, text: str, index: int, limit: int | None, param: str = "input"
    ) -> tuple[str, bool]:
        """A text worth tokenising, and whether it was cut for that."""
        per_token = self.tokenizer.max_token_bytes
        if limit is not None:
            most = limit * _MAX_CHARACTERS_PER_TOKEN
            return text[:most], len(text) > most
        if per_token and len(text) > self._max_tokens * per_token:
            # A hopeless text is refused by its length, before seconds are spent on its tokens.
            raise self._too_long(index, f"at least {-(-len(text) // per_token)}", param)
        return text, False

    def _fitted(
        self, row: list[int], index: int, limit: int | None, *, was_cut: bool = False
    ) -> Row:
        if not row:
            raise InvalidRequestError(f"Input {index} is empty.", param="input")
        if limit is None:
            if len(row) > self._max_tokens:
                raise self._too_long(index, str(len(row)))
            return Row(row)
        if len(row) <= limit:
            return Row(row, is_cut=was_cut)
        # As sentence-transformers cuts: what the tokenizer adds at the end stays at the end.
        num_added = int(row[-1] in self.tokenizer.special_token_ids)
        kept = (
            row[: limit - num_added] + row[len(row) - num_added :]
            if limit > num_added
            else row[:limit]
        )
        return Row(kept, is_cut=True)

    def _too_long(self, index: int, num_tokens: str, param: str = "input") -> ContextLengthError:
        return ContextLengthError(
            f"This model's maximum context length is {self._max_tokens} tokens, but input"
            f" {index} has {num_tokens}. Shorten it, or set 'truncate_prompt_tokens' to -1.",
            param=param,
        )


def longest_first(num_one: int, num_other: int, most: int) -> tuple[int, int]:
    """How many tokens two texts keep when the longer one loses tokens until `most` are left.

    Args:
        num_one: Tokens of one.
        num_other: Tokens of the other.
        most: Of both together; less than they have.
    """
    short, long = sorted((num_one, num_other))
    long = max(short, most - short)
    if short + long > most:
        short, long = most // 2, most - most // 2
    return (short, long) if num_one <= num_other else (long, short)
