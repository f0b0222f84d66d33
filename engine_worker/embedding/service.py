"""Texts to vectors by one model: inputs are checked, tokenised, cut and computed."""

from collections.abc import Sequence
from typing import Final

from engine_worker.embedding.embedder import Embedder, Vectors, shorten
from engine_worker.errors import ContextLengthError, InvalidRequestError
from engine_worker.text.tokenizer import Tokenizer

_MAX_CHARACTERS_PER_TOKEN: Final = 64
"""A text with more cannot be worth tokenising to its end when it is to be cut."""


class Embeddings:
    """An embedder with its tokenizer; used by one thread.

    Args:
        embedder: Used by nobody else.
        tokenizer: Of the model.
        vocab_size: Token ids at or above it are refused.
    """

    def __init__(self, embedder: Embedder, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._embedder = embedder
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    def embed_texts(
        self,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> tuple[Vectors, list[int]]:
        """Vectors of texts, and how many tokens each has.

        Args:
            texts: None of them empty.
            dimensions: Keep so many leading numbers of each vector.
            truncate_prompt_tokens: Cut longer texts to so many tokens; -1 to what the model takes.

        Returns:
            [N, D] float32 and N numbers.

        Raises:
            RequestError: A text can't be embedded, or a number is out of range.
        """
        self.check_dimensions(dimensions)
        rows = self.rows(texts, (), truncate_prompt_tokens)
        vectors = self.embed(rows)
        if dimensions is not None:
            vectors = shorten(vectors, dimensions)
        return vectors, [len(row) for row in rows]

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Vectors of token ids from `rows`, [N, D] float32."""
        return self._embedder.embed(rows)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Refuse more numbers than a vector has, or none.

        Raises:
            InvalidRequestError: Naming the range.
        """
        most = self._embedder.num_dimensions
        if dimensions is not None and not 1 <= dimensions <= most:
            raise InvalidRequestError(
                f"'dimensions' must be 1 to {most}, not {dimensions}.", param="dimensions"
            )

    def rows(
        self,
        texts: Sequence[str],
        token_ids: Sequence[Sequence[int]],
        truncate_prompt_tokens: int | None,
        *,
        first_index: int = 0,
    ) -> list[list[int]]:
        """Token ids of texts and of inputs that are ids already, none too long.

        Args:
            texts: Come first.
            token_ids: Follow them.
            truncate_prompt_tokens: See `embed_texts`.
            first_index: Of the first of them within its request, for messages.

        Raises:
            RequestError: One of them can't be embedded.
        """
        limit = self._limit(truncate_prompt_tokens)
        rows = [self._encode(text, index, limit) for index, text in enumerate(texts, first_index)]
        rows += [self._checked(one) for one in token_ids]
        return [self._fitted(row, index, limit) for index, row in enumerate(rows, first_index)]

    def _limit(self, limit: int | None) -> int | None:
        """How many tokens of an input count; None refuses more than the model takes."""
        most = self._embedder.max_tokens
        if limit is None:
            return None
        if limit != -1 and not 1 <= limit <= most:
            raise InvalidRequestError(
                f"'truncate_prompt_tokens' must be -1 or 1 to {most}, not {limit}.",
                param="truncate_prompt_tokens",
            )
        return most if limit == -1 else limit

    def _encode(self, text: str, index: int, limit: int | None) -> list[int]:
        pooling = self._embedder.pooling
        text = pooling.prompt + (text.lower() if pooling.lowercase else text)
        per_token = self._tokenizer.max_token_bytes
        if limit is not None:
            text = text[: limit * _MAX_CHARACTERS_PER_TOKEN]
        elif per_token and len(text) > self._embedder.max_tokens * per_token:
            # A hopeless text is refused by its length, before seconds are spent on its tokens.
            raise self._too_long(index, f"at least {-(-len(text) // per_token)}")
        return self._tokenizer.encode(text, add_special_tokens=True)

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        wrong = next((one for one in token_ids if not 0 <= one < self._vocab_size), None)
        if wrong is not None:
            raise InvalidRequestError(
                f"Token id {wrong} is not between 0 and {self._vocab_size - 1}.", param="input"
            )
        return list(token_ids)

    def _fitted(self, row: list[int], index: int, limit: int | None) -> list[int]:
        if not row:
            raise InvalidRequestError(f"Input {index} is empty.", param="input")
        if limit is None:
            if len(row) > self._embedder.max_tokens:
                raise self._too_long(index, str(len(row)))
            return row
        if len(row) <= limit:
            return row
        # As sentence-transformers cuts: what the tokenizer adds at the end stays at the end.
        num_added = self._num_added_at_end(row)
        return (
            row[: limit - num_added] + row[len(row) - num_added :]
            if limit > num_added
            else row[:limit]
        )

    def _too_long(self, index: int, num_tokens: str) -> ContextLengthError:
        return ContextLengthError(
            f"This model's maximum context length is {self._embedder.max_tokens} tokens, but input"
            f" {index} has {num_tokens}. Shorten it, or set 'truncate_prompt_tokens' to -1.",
            param="input",
        )

    def _num_added_at_end(self, row: Sequence[int]) -> int:
        """1 when a text's last token is the tokenizer's own, such as [SEP]."""
        return int(row[-1] in self._tokenizer.special_token_ids)
