"""Texts to vectors by one model: inputs are checked, tokenised, cut and computed."""

from collections.abc import Callable, Sequence

import numpy as np

from engine_worker.embedding.embedder import Embedder, shorten
from engine_worker.embedding.inputs import InputReader, Row
from engine_worker.embedding.row_programs import Vectors
from engine_worker.errors import InvalidRequestError
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Embed, Embedded

MAX_INPUTS = 2048
"""Texts of one request, as OpenAI has it."""


class Embeddings:
    """An embedder with its tokenizer; used by one thread.

    Args:
        embedder: Used by nobody else.
        tokenizer: Of the model.
        vocab_size: Token ids at or above it are refused.
    """

    max_inputs = MAX_INPUTS

    def __init__(self, embedder: Embedder, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._embedder = embedder
        self._reader = InputReader(tokenizer, vocab_size, embedder.max_tokens)
        self._prompts = dict(embedder.pooling.prompts)

    def embed_texts(
        self,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        prompt_name: str = "",
    ) -> tuple[Vectors, list[int]]:
        """Vectors of texts, and how many tokens each has.

        Args:
            texts: None of them empty.
            dimensions: Keep so many leading numbers of each vector.
            truncate_prompt_tokens: Cut longer texts to so many tokens; -1 to what the model takes.
            prompt_name: Of the model's prompt that stands before each; empty is the default one.

        Returns:
            [N, D] float32 and N numbers.

        Raises:
            RequestError: A text can't be embedded, or a number is out of range.
        """
        command = Embed(
            request_id="",
            deadline_s=0.0,
            texts=tuple(texts),
            dimensions=dimensions,
            truncate_prompt_tokens=truncate_prompt_tokens,
            prompt_name=prompt_name,
        )
        rows = self.rows(command, 0, len(texts))
        vectors = self.compute(rows)
        if dimensions is not None:
            vectors = shorten(vectors, dimensions)
        return vectors, [len(row) for row in rows]

    @property
    def max_whole_tokens(self) -> int:
        """Longer rows are computed in pieces."""
        return self._embedder.max_whole_tokens

    def num_inputs(self, command: Embed) -> int:
        """Texts and inputs that are token ids."""
        return len(command.texts) + len(command.token_ids)

    def rows(self, command: Embed, first: int, count: int) -> list[Row]:
        """Some inputs of a command in tokens, none too long.

        Raises:
            RequestError: One of them can't be embedded, or a number is out of range.
        """
        if bool(command.texts) == bool(command.token_ids):
            raise InvalidRequestError("Give texts or token ids, at least one.", param="input")
        self._check_dimensions(command.dimensions)
        limit = self._reader.limit(command.truncate_prompt_tokens)
        prompt = self._prompt(command)
        pooling = self._embedder.pooling
        found = []
        for index in range(first, first + count):
            if command.texts:
                text = prompt + command.texts[index]
                text = text.lower() if pooling.lowercase else text
                found.append(self._reader.text(text, index, limit))
            else:
                found.append(self._reader.token_ids(command.token_ids[index], index, limit))
        return found

    def compute(
        self,
        rows: Sequence[Row],
        is_wanted: Callable[[Sequence[int]], bool] | None = None,
        on_done: Callable[[Sequence[int], Vectors], None] | None = None,
        goes_on: Callable[[int], bool] | None = None,
    ) -> Vectors:
        """Vectors of rows, [N, D] float32; see `RowPrograms.compute`."""
        token_ids = [row.token_ids for row in rows]
        return self._embedder.compute(
            token_ids, is_wanted=is_wanted, on_done=on_done, goes_on=goes_on
        )

    def answer(
        self,
        command: Embed,
        vectors: Vectors,
        num_tokens: Sequence[int],
        truncated: Sequence[int],
    ) -> Embedded:
        """What is sent for a command whose vectors are all there."""
        if command.dimensions is not None:
            vectors = shorten(vectors, command.dimensions)
        return Embedded(
            request_id=command.request_id,
            num_dimensions=vectors.shape[1],
            vectors=np.ascontiguousarray(vectors, "<f4").tobytes(),
            num_tokens=tuple(num_tokens),
        )

    def _check_dimensions(self, dimensions: int | None) -> None:
        most = self._embedder.num_dimensions
        if dimensions is not None and not 1 <= dimensions <= most:
            raise InvalidRequestError(
                f"'dimensions' must be 1 to {most}, not {dimensions}.", param="dimensions"
            )

    def _prompt(self, command: Embed) -> str:
        name = command.prompt_name
        if not name:
            return self._embedder.pooling.prompt
        if name not in self._prompts or command.token_ids:
            known = ", ".join(self._prompts) or "none"
            raise InvalidRequestError(
                f"'prompt_name' {name!r:.80} is no prompt of this model ({known}), or the inputs"
                " are token ids, before which no text can stand.",
                param="prompt_name",
            )
        return self._prompts[name]
