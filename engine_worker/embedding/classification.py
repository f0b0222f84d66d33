"""Texts and pairs of texts to logits by one classifier."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from engine_worker.embedding.classifier import Classifier
from engine_worker.embedding.inputs import InputReader, Row
from engine_worker.embedding.row_programs import Vectors
from engine_worker.errors import BEFORE, InvalidRequestError
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Classified, Classify

MAX_INPUTS: Final = 10_000
"""Texts or pairs of one request: as many as a gateway reranks documents."""


class Classifications:
    """A classifier with its tokenizer; used by one thread.

    Args:
        classifier: Used by nobody else.
        tokenizer: Of the model.
        vocab_size: Token ids at or above it are refused.
    """

    max_inputs = MAX_INPUTS

    def __init__(self, classifier: Classifier, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._classifier = classifier
        self._reader = InputReader(tokenizer, vocab_size, classifier.max_tokens)

    @property
    def max_whole_tokens(self) -> int:
        """Longer rows are computed in pieces."""
        return self._classifier.max_whole_tokens

    def num_inputs(self, command: Classify) -> int:
        """Texts, pairs or inputs that are token ids."""
        return command.num_inputs

    def rows(self, command: Classify, first: int, count: int) -> list[Row]:
        """Some inputs of a command in tokens, none too long.

        Raises:
            RequestError: One of them can't be classified, or a number is out of range.
        """
        num_texts, num_seconds = len(command.texts), len(command.second_texts)
        if bool(num_texts) == bool(command.token_ids) or (
            num_seconds and num_texts not in (1, num_seconds)
        ):
            raise InvalidRequestError(
                "Give texts, token ids, or pairs with one first text for all or one for each.",
                param="input",
            )
        if command.max_second_tokens is not None and command.max_second_tokens < 1:
            raise InvalidRequestError("'max_tokens_per_doc' must be at least 1.")
        limit = self._reader.limit(command.truncate_prompt_tokens)
        places = range(first, first + count)
        if command.token_ids:
            ids = command.token_ids
            return [self._reader.token_ids(ids[index], index, limit) for index in places]
        if not num_seconds:
            return [self._reader.text(command.texts[index], index, limit) for index in places]
        part = self._reader.part
        shared = part(command.texts[0], first, limit, BEFORE) if num_texts == 1 else None
        rows = [
            self._reader.pair(
                shared or part(command.texts[index], index, limit, BEFORE),
                part(command.second_texts[index], index, limit),
                index,
                limit,
                command.max_second_tokens,
            )
            for index in places
        ]
        empty = next((index for index, row in zip(places, rows, strict=True) if not len(row)), None)
        if empty is not None:
            # Of two empty texts, where the tokenizer adds nothing to a pair.
            raise InvalidRequestError(f"Pair {empty} is empty.", param="input")
        return rows

    def compute(
        self,
        rows: Sequence[Row],
        is_wanted: Callable[[Sequence[int]], bool] | None = None,
        on_done: Callable[[Sequence[int], Vectors], None] | None = None,
        goes_on: Callable[[int], bool] | None = None,
    ) -> Vectors:
        """Logits of rows, [N, labels] float32; see `RowPrograms.compute`."""
        return self._classifier.compute(
            [row.token_ids for row in rows],
            [row.type_ids or [0] * len(row) for row in rows],
            is_wanted=is_wanted,
            on_done=on_done,
            goes_on=goes_on,
        )

    def answer(
        self,
        command: Classify,
        vectors: Vectors,
        num_tokens: Sequence[int],
        truncated: Sequence[int],
    ) -> Classified:
        """What is sent for a command whose logits are all there."""
        return Classified(
            request_id=command.request_id,
            num_labels=vectors.shape[1],
            logits=np.ascontiguousarray(vectors, "<f4").tobytes(),
            num_tokens=tuple(num_tokens),
            truncated=tuple(truncated),
        )
