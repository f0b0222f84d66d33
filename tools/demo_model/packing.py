"""Conversations to tokens with loss weights, and tokens to rows of one length."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tools.demo_model.conversation import Conversation
from tools.demo_model.grammar import training_conversation

ANSWER_START = "<|im_start|>assistant\n"
ANSWER_END = "<|im_end|>"
ANSWER_LOSS_WEIGHT = 1.0
# Predicting the prompt a little teaches the words and the copying that answers are made of.
PROMPT_LOSS_WEIGHT = 0.1
# Rows of at least this many tokens hold conversations of many turns.
LONG_ROW = 1024

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


class ChatFormat:
    """Renders conversations with the shipped template, exactly as transformers does."""

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self._template = environment.from_string(source)
        self.tokenizer = tokenizer or Tokenizer.from_file(str(folder / "tokenizer.json"))

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text."""
        return self._template.render(
            messages=list(conversation.messages),
            tools=list(conversation.tools) or None,
            add_generation_prompt=add_generation_prompt,
        )

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids up to where the assistant's next answer starts."""
        text = self.render(conversation, add_generation_prompt=True)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def training_ids(
        self, conversation: Conversation, max_tokens: int
    ) -> tuple[list[int], list[float]]:
        """Token ids of a conversation and the loss weight of predicting each of them.

        A conversation that is longer than `max_tokens` ends with the last answer that fits; both
        lists are empty when not even the first does.
        """
        token_ids: list[int] = []
        weights: list[float] = []
        num_kept = 0
        for text, weight in _segments(self.render(conversation)):
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(token_ids) + len(ids) > max_tokens:
                break
            token_ids += ids
            weights += [weight] * len(ids)
            if weight == ANSWER_LOSS_WEIGHT:
                num_kept = len(token_ids)
        return token_ids[:num_kept], weights[:num_kept]


def _segments(rendered: str) -> Iterator[tuple[str, float]]:
    """Cuts a rendered conversation into prompts and answers (with their end of turn)."""
    first, *rest = rendered.split(ANSWER_START)
    prompt = first
    for part in rest:
        yield prompt + ANSWER_START, PROMPT_LOSS_WEIGHT
        answer, prompt = part.split(ANSWER_END, 1)
        yield answer + ANSWER_END, ANSWER_LOSS_WEIGHT
    yield prompt, PROMPT_LOSS_WEIGHT


@dataclass(frozen=True)
class Batch:
    """Packed rows, each array `[rows, length]`.

    Attributes:
        token_ids: inputs, shifted by one against `targets`.
        targets: the token that should follow each input.
        weights: the loss weight of each target; 0 for padding.
        documents: which conversation of the row a token belongs to.
    """

    token_ids: IntArray
    targets: IntArray
    weights: FloatArray
    documents: IntArray


def packed_batch(
    chat_format: ChatFormat, seed: int, step: int, *, num_rows: int, row_length: int
) -> Batch:
    """The batch of one training step: a function of the seed and the step alone.

    Conversations are put one behind the other while they fit; a conversation that is too long is
    shortened to the room that is left. In long rows one conversation fills most of the row.
    """
    rng = random.Random(f"{seed}:{step}:{row_length}")
    shape = (num_rows, row_length + 1)
    token_ids = np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    documents = np.zeros(shape, np.int32)
    # About 2.5 characters a token.
    max_characters = int(row_length * rng.uniform(1.0, 2.5)) if row_length >= LONG_ROW else 0
    for row in range(num_rows):
        used, document, num_failures = 0, 1, 0
        while num_failures < 8 and used < row_length - 16:
            conversation = training_conversation(rng, max_characters=max_characters)
            ids, loss = chat_format.training_ids(conversation, row_length + 1 - used)
            if not ids:
                num_failures += 1
                continue
            end = used + len(ids)
            token_ids[row, used:end] = ids
            weights[row, used:end] = loss
            weights[row, used] = 0.0
            documents[row, used:end] = document
            used, document = end, document + 1
    return Batch(
        token_ids=token_ids[:, :-1],
        targets=token_ids[:, 1:],
        weights=weights[:, 1:],
        documents=documents[:, :-1],
    )
