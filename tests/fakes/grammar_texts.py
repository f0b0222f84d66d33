"""Walks through grammars at random: what any weights could write under them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Grammar


@contextmanager
def compiler_for(tokenizer: Tokenizer, **options: float) -> Iterator[GrammarCompiler]:
    """A compiler whose processes end with the block."""
    compiler = GrammarCompiler(tokenizer, tokenizer.num_tokens, **options)  # type: ignore[arg-type]
    try:
        yield compiler
    finally:
        compiler.close()


def allowed_tokens(constraint: Constraint) -> list[int]:
    """The ids that may come next."""
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def random_walk(
    constraint: Constraint,
    eos_token_ids: frozenset[int],
    *,
    seed: int,
    max_tokens: int = 400,
    eager_to_end: float = 0.5,
) -> tuple[list[int], bool]:
    """Tokens drawn at random among those allowed, and whether a sentence was finished.

    Args:
        constraint: At its beginning; advanced.
        eos_token_ids: The end is taken with the probability `eager_to_end` where it is allowed.
    """
    source = random.Random(seed)
    token_ids: list[int] = []
    while len(token_ids) < max_tokens:
        if constraint.is_complete:
            return token_ids, True
        if constraint.has_forced:
            token_id = constraint.next_forced()
        else:
            allowed = allowed_tokens(constraint)
            assert allowed, f"a dead end after {token_ids}: {constraint.failure}"
            ends = [token_id for token_id in allowed if token_id in eos_token_ids]
            others = [token_id for token_id in allowed if token_id not in eos_token_ids]
            if ends and (not others or source.random() < eager_to_end):
                return token_ids, True
            token_id = source.choice(others)
        constraint.push(token_id)
        token_ids.append(token_id)
    return token_ids, False


def sentence(
    compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, seed: int
) -> str | None:
    """A random text of a grammar; None when it got too long."""
    constraint = compiler.compile(grammar).start(jumps=True)
    token_ids, is_whole = random_walk(constraint, tokenizer.eos_token_ids, seed=seed)
    return tokenizer.decode(token_ids) if is_whole else None
