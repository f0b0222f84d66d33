"""One choice of one request as the engine works on it: mutable, private, host data only."""

from dataclasses import dataclass, field
from enum import StrEnum

from engine_worker.core.choice.allowed_tokens import AllowedTokens
from engine_worker.core.choice.batch import MaskSource, RowSampling
from engine_worker.core.choice.ngram_drafts import ChoiceDrafts
from engine_worker.core.choice.token_mask import MaskWords


class ChoiceStatus(StrEnum):
    """Where a choice is: `waiting` → `running` ⇄ `preempted` → `finished`."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Choice:
    """One choice of one request.

    Attributes:
        gateway_id: The gateway that wants it; with `request_id` and `index` its identity.
        index: Of the choice within its request; `choice` on the wire. That of a Score's prompt is
            below `ALL_CHOICES`, where no command names one.
        attempt: Which try of the gateway this is; outputs carry it.
        max_output_tokens: The smaller of what was asked for and what the context leaves.
        lease_tokens: Output tokens that are paid for; at it the choice pauses.
        deadline: On the engine's monotonic clock, seconds.
        priority: Lower runs first.
        arrival: Grows with each choice; the second sort key.
        rank: The first sort key, given by the scheduler from priority and time of arrival.
        cache_salt: Keeps its cached blocks apart from those of others, its tenant's excepted.
        is_streaming: Whether somebody reads the output as it comes.
        reads_cache: Whether blocks that are computed already may be used; not when something is
            wanted of every token of the prompt.
        eos_token_ids: Ids that end the output (empty with `ignore_eos`).
        allowed_tokens: Which tokens may come next; None allows all.
        pending_mask: Makes the mask of the output's grammar; None without one.
        forced_mask: Allows the one token that may come next, whatever else holds; None when there
            is no such token.
        num_free_tokens: Tokens that can be drawn before one may be forced that no draw decides;
            None for any number.
        drops_rest: More may be drawn nevertheless: what a step drew behind a token that others are
            forced behind is dropped.
        output_token_ids: What was sampled, an earlier attempt's tokens included.
        num_computed_tokens: Tokens, from the first of the prompt, whose keys and values are in
            the cache. In decode it is one less than `num_tokens`.
        num_scored_tokens: Of the prompt from its second token on, how many log probabilities were
            told.
        block_ids: KV blocks of the first cache group in order of position, `NO_BLOCK` for freed
            ones.
        window_block_ids: The same of the second cache group, if the model has one.
        slot: Device row, None while it doesn't run.
        block_hashes: Names of its first full blocks, as far as the prefix cache asked for them.
        num_named_blocks: How many full blocks from the first on are computed.
        awaited_block: Name of the block that another choice computes and that it waits for.
        num_cached_tokens: Of the prompt, what was found computed when it first got a slot; None
            before.
        drafts: Drafts its next tokens; None while nobody wanted any.
        trace_id: The client's `X-Request-ID`, for logs.
        traceparent: Where in a trace it belongs; empty when it isn't traced.
        is_scored: It is the prompt of a Score: nothing is sampled after it, and it keeps its slot
            until its questions are scored.
        plain_until: While the output has fewer tokens, the next one is plain: nothing masks, scores
            or forces it, and its text is told as it is, unless the token itself ends the output
            (`ChoiceOutput.settle` says so).
        ending_token_ids: `eos_token_ids` and `stop_token_ids`, rising.
    """

    gateway_id: str
    request_id: str
    index: int
    attempt: int
    prompt_token_ids: tuple[int, ...]
    sampling: RowSampling
    max_output_tokens: int
    lease_tokens: int
    deadline: float
    priority: int = 0
    arrival: int = 0
    rank: int = 0
    cache_salt: str = ""
    is_streaming: bool = True
    reads_cache: bool = True
    min_tokens: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    allowed_tokens: AllowedTokens | None = None
    pending_mask: MaskSource | None = None
    forced_mask: MaskWords | None = None
    num_free_tokens: int | None = None
    drops_rest: bool = False
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_scored_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)
    window_block_ids: list[int] = field(default_factory=list)
    slot: int | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    num_named_blocks: int = 0
    awaited_block: bytes | None = None
    num_cached_tokens: int | None = None
    drafts: ChoiceDrafts | None = None
    trace_id: str = ""
    traceparent: str = ""
    is_scored: bool = False
    plain_until: int = 0
    status: ChoiceStatus = ChoiceStatus.WAITING
    ending_token_ids: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.ending_token_ids = tuple(sorted(self.eos_token_ids | self.stop_token_ids))

    @property
    def key(self) -> tuple[str, str, int]:
        """The identity of the choice, whatever the attempt."""
        return (self.gateway_id, self.request_id, self.index)

    @property
    def order(self) -> tuple[int, int]:
        """The sort key: rank first, then arrival; the greatest is preempted first."""
        return (self.rank, self.arrival)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Length of the output, an earlier attempt's tokens included."""
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 in decode."""
        num_tokens = len(self.prompt_token_ids) + len(self.output_token_ids)
        return num_tokens - self.num_computed_tokens

    @property
    def is_paused(self) -> bool:
        """Whether it has used up its lease: it keeps its place but doesn't run."""
        return len(self.output_token_ids) >= self.lease_tokens

    def token_ids(self, start: int, end: int) -> tuple[int, ...]:
        """Tokens at positions start ≤ position < end, prompt and output as one sequence."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return tuple(self.output_token_ids[start - num_prompt : end - num_prompt])
        if end <= num_prompt:
            return self.prompt_token_ids[start:end]
        return (*self.prompt_token_ids[start:], *self.output_token_ids[: end - num_prompt])

    def allowed_mask(self) -> MaskWords | None:
        """The tokens that may come next; None allows all."""
        if self.forced_mask is not None:
            return self.forced_mask
        if self.allowed_tokens is None:
            return None
        return self.allowed_tokens.mask(self.output_token_ids)
