"""Which program shapes exist, and which one a piece of work takes."""

from dataclasses import dataclass

from engine_worker.core.choice.score_pack import ScoreShape

DECODE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL_TOKENS = (32, 128, 512)
"""Larger chunks gain nothing on a CPU and delay the rows that decode."""
DETERMINISTIC_ROWS = 16
"""Rows of the one program of the deterministic mode."""
SCORE_SHAPES = (ScoreShape(32, 16), ScoreShape(16, 32), ScoreShape(8, 64))
"""Rows and tokens of the programs that score questions."""
DRAFT_ROWS = 8
"""Rows of the largest decode program, at least, where rows draft their next tokens."""
MOST_PROMPTS = 16
"""Prompts that one program computes together, at most; each has no more tokens than the smallest
prefill takes. Rows of 128 took longer together than alone in int8 (three prompts of 100 tokens 1.2
times the CPU time), and 0.83 times in bfloat16, so there are none."""


def most_step_tokens(max_num_batched_tokens: int, block_size: int, *, deterministic: bool) -> int:
    """The most tokens of one sequence that a step stores: a chunk, or a question that is scored.

    A question's first block is a copy of the one before it.

    Args:
        max_num_batched_tokens: The most tokens of a step.
        block_size: Tokens a block.
        deterministic: Chunks are as long as a step may be.
    """
    chunk = max_num_batched_tokens
    if not deterministic:
        chunk = max(2, min(chunk, PREFILL_TOKENS[-1]))
    return max(chunk, block_size + max(shape.num_tokens for shape in SCORE_SHAPES))


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of one program.

    Attributes:
        num_rows: Rows with sampling parameters.
        num_queries: Tokens of a row; above 1 they are chunks of prompts.
        num_prompts: In a prefill, rows that have tokens and a block table. With one of them a
            second row is padding that keeps products at two rows.
    """

    num_rows: int
    num_queries: int
    num_prompts: int = 1

    @property
    def is_prefill(self) -> bool:
        """Whether the program computes chunks of prompts."""
        return self.num_queries > 1

    @property
    def is_group(self) -> bool:
        """Whether it computes those of several choices."""
        return self.is_prefill and self.num_prompts > 1

    @property
    def num_token_rows(self) -> int:
        """Rows that have tokens."""
        return self.num_prompts if self.is_prefill else self.num_rows


@dataclass(frozen=True, slots=True)
class Buckets:
    """All program shapes of a runner, each kind in rising order.

    Attributes:
        decode: For rows of one token.
        prefill: For a chunk of one prompt.
        groups: For chunks of several prompts.
        score_shapes: For questions.
        skips_padding: Tokens that are padding cost nothing.
    """

    decode: tuple[Bucket, ...]
    prefill: tuple[Bucket, ...]
    groups: tuple[Bucket, ...] = ()
    score_shapes: tuple[ScoreShape, ...] = SCORE_SHAPES
    skips_padding: bool = False

    @property
    def sampler_rows(self) -> tuple[int, ...]:
        """Rows of the full samplers, in rising order: every second decode shape, and the last.

        They are rare enough that a wider one than needed costs less than compiling them all.
        """
        return tuple(bucket.num_rows for bucket in self.decode[::-2])[::-1]

    def sampler_rows_for(self, num_rows: int) -> int:
        """The smallest full sampler with room for some rows."""
        return next(rows for rows in self.sampler_rows if rows >= num_rows)

    @property
    def all(self) -> tuple[Bucket, ...]:
        """Every shape."""
        return self.decode + self.prefill + self.groups

    @property
    def prefill_chunk_size(self) -> int:
        """The most tokens of one prefill program; 0 where decode programs do the prefill."""
        return self.prefill[-1].num_queries if self.prefill else 0

    @property
    def largest(self) -> tuple[Bucket | int, ...]:
        """What all work fits: one program of each kind; the full sampler by its rows."""
        return (*self.decode[-1:], *self.prefill[-1:], self.sampler_rows[-1])

    @property
    def by_demand(self) -> tuple[Bucket | int, ...]:
        """All step shapes and full samplers, those that a lone request takes first."""
        return (
            *self.decode[:1],
            *self.prefill,
            *self.decode[1:],
            *self.groups,
            *self.sampler_rows,
        )

    def for_decode(self, num_rows: int) -> tuple[Bucket, ...]:
        """The decode shapes with room for some rows, smallest first."""
        return tuple(bucket for bucket in self.decode if bucket.num_rows >= num_rows)

    def for_prefill(self, num_tokens: int) -> tuple[Bucket, ...]:
        """The prefill shapes with room for some tokens, smallest first."""
        return tuple(bucket for bucket in self.prefill if bucket.num_queries >= num_tokens)


def choose_buckets(
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    min_rows: int,
    deterministic: bool,
    speculates: bool = False,
    skips_padding: bool = False,
) -> Buckets:
    """The program shapes of a runner.

    Args:
        max_num_seqs: The most rows of a step; at most the largest decode bucket.
        max_num_batched_tokens: The most tokens of prompts in a step.
        min_rows: The fewest rows of a product: 2 where one row is slow (bfloat16 on XLA:CPU).
        deterministic: One fixed shape for everything.
        speculates: Draft tokens take rows as well.
        skips_padding: Tokens that are padding cost nothing.
    """
    if deterministic:
        decode = (Bucket(DETERMINISTIC_ROWS, 1),)
        return Buckets(decode, prefill=(), score_shapes=SCORE_SHAPES[-1:])
    most = max(min_rows, max_num_seqs)
    if speculates:
        most = max(most, DRAFT_ROWS)
    rows = [num for num in DECODE_ROWS if min_rows <= num < most] + [most]
    chunk = max(2, min(max_num_batched_tokens, PREFILL_TOKENS[-1]))
    tokens = [num for num in PREFILL_TOKENS if num < chunk]
    # With no more tokens than the largest chunk has, so that they take no more memory.
    prompts = [(min(MOST_PROMPTS, max_num_seqs, chunk // num), num) for num in tokens[:1]]
    return Buckets(
        decode=tuple(Bucket(num, 1) for num in rows),
        prefill=tuple(Bucket(min_rows, num) for num in (*tokens, chunk)),
        groups=tuple(
            Bucket(num_prompts, num, num_prompts) for num_prompts, num in prompts if num_prompts > 1
        ),
        skips_padding=skips_padding,
    )
