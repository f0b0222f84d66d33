"""Messages between gateway and engine: preparing prompts, generating, aborting, step outputs."""

from typing import Literal

from protocol.wire.messages.base import Count, Message, Part
from protocol.wire.messages.control import Credits, Failure, Load, Usage

PrepareKind = Literal["chat", "completion", "count"]
FinishReason = Literal["stop", "length", "abort"]

ALL_CHOICES = -1
"""In `Abort.choice`: every choice of the request."""
NUM_ALONE_TOKENS = 32
"""A request that has made so many new tokens in one attempt is past what killed engines before."""


class SamplingParams(Part, frozen=True):
    """How tokens are chosen and when to stop. Defaults are neutral.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set with at least this probability; 0 is greedy.
        min_p: Drop tokens below this fraction of the most likely one's probability.
        presence_penalty: Subtracted from the logit of each token already in the output.
        frequency_penalty: Subtracted times the count in the output.
        repetition_penalty: Divides positive, multiplies negative logits of tokens seen in prompt
            or output (arXiv:1909.05858).
        seed: Keys the Gumbel noise together with choice, position and token id; always set.
        max_tokens: Output tokens at most; None = what context and lease allow.
        min_tokens: Neither end-of-sequence nor stop ids before so many output tokens.
        stop: Strings that end the text; held back, not included.
        stop_token_ids: Token ids that end the output.
        ignore_eos: Go on past end-of-sequence.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop_str_in_output: Keep the matched stop string at the end of the text.
        logit_bias: (token id, number added to its logit) for some tokens.
        allowed_token_ids: Only these may be drawn; None allows all.
        bad_words: Texts whose token sequences are never completed.
        logprobs: How many likely tokens are reported beside each output token with its log
            probability; 0 reports the token alone, None nothing.
        prompt_logprobs: The same for the tokens of the prompt, from the second on.
        logprob_token_ids: Tokens whose log probabilities are reported beside each output token,
            likely or not; with `logprobs` (since 1.5).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()


class Grammar(Part, frozen=True):
    """A constraint on the text, from the client or from a parser worker.

    Attributes:
        kind: The language of `source`.
        source: JSON text (a schema; for `choice` a list of texts; unused for `json_object`), a
            regular expression, or a Lark grammar in llguidance's dialect.
        after_marker: None applies it at once; otherwise text is free up to the first occurrence of
            this text, special tokens or plain, and the grammar holds from there to the end.
        markers: Texts that `source` (Lark) names `MARKER_0`, `MARKER_1` and so on: the engine
            puts the special tokens of the text in their place, and plain text where there are
            none. A rule `name[suffix=MARKER_0]: TERMINAL` is text that the terminal matches and
            the marker ends.
        is_strict: A JSON schema of which a keyword can't be enforced is refused; otherwise such
            keywords are left to the model and named in the first `Delta`.
        unenforced: Keywords of schemas that `source` was written from and leaves to the model, as
            pointers into them; named in the first `Delta` too (since 1.5).
    """

    kind: Literal["json_schema", "json_object", "regex", "lark", "choice"]
    source: str
    after_marker: str | None = None
    markers: tuple[str, ...] = ()
    is_strict: bool = False
    unenforced: tuple[str, ...] = ()


class Thought(Part, frozen=True):
    """How a model writes the reasoning before its answer, and how that can be ended (since 1.5).

    Attributes:
        begins: `open`: the output begins in reasoning; `marked`: it does once one of `starts` comes
            first, after white space; `no`: the prompt has closed it, or has to open it.
        starts: Markers before reasoning.
        ends: Markers that end it, those of calls that do included.
        closing: The text that is written to end it; it may go on behind the marker with how the
            answer begins.
        reopens: One of `starts` begins reasoning anywhere, also after earlier one.
        before: What the prompt ends with, as far as one of `starts` may begin with it.
        closing_again: What is written instead of `closing` once that was written before; empty
            for the same.
    """

    begins: Literal["no", "marked", "open"]
    ends: tuple[str, ...]
    closing: str
    starts: tuple[str, ...] = ()
    reopens: bool = False
    before: str = ""
    closing_again: str = ""


class Prepare(Message, frozen=True, tag="prepare"):
    """Render the template and tokenise, or only tokenise; also /tokenize and token counting.

    Attributes:
        kind: `chat` uses `messages_json` and `tools_json`; `completion` uses `prompt` or
            `prompt_token_ids`; `count` does as either, without length checks.
        messages_json: The messages of the chat schema as JSON text.
        tools_json: The tools of the chat schema as JSON text, None when there are none.
        template_kwargs_json: `chat_template_kwargs` as a JSON object.
        chat_template: A template instead of the model's own (since 1.5).
        suffix: What stands behind the text that is wanted, of which `prompt` or
            `prompt_token_ids` is what stands before; for engines with `fill_in_middle` among their
            capabilities (since 1.5).
        cache_salt: Keeps the cached blocks of this prompt apart from those of its tenant's others
            that don't have the same (since 1.5).
        template_time: Unix seconds that the template may read; 0 = the engine's clock. Replayed
            on another engine so that the prompt stays the same.
        max_tokens: The requested output, to check prompt plus output against the context.
        truncate_prompt_tokens: Keep only so many tokens of the prompt, the last ones; -1 keeps
            what the context has room for beside the requested output.
        return_tokens: Whether Prepared carries the text of each token, for /tokenize.
        tenant: Salts the block hashes, so that tenants can't probe each other's prompts; also whose
            turn it is.
        trace_id: The client's `X-Request-ID`, for logs.
        traceparent: Where in a trace it belongs (W3C; since 1.5); empty when it isn't traced.
    """

    request_id: str
    kind: PrepareKind
    deadline_s: float
    tenant: str = ""
    messages_json: str | None = None
    tools_json: str | None = None
    template_kwargs_json: str | None = None
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    template_time: int = 0
    max_tokens: int | None = None
    truncate_prompt_tokens: int | None = None
    return_tokens: bool = False
    trace_id: str = ""
    chat_template: str | None = None
    suffix: str | None = None
    cache_salt: str = ""
    traceparent: str = ""


class Detokenize(Message, frozen=True, tag="detokenize"):
    """Give the text of token ids, special tokens included.

    Attributes:
        tenant: Whose turn it is.
        trace_id: The client's `X-Request-ID`, for logs.
    """

    request_id: str
    token_ids: tuple[int, ...]
    deadline_s: float
    tenant: str = ""
    trace_id: str = ""


class Cancel(Message, frozen=True, tag="cancel"):
    """Nobody waits any more for a Prepare, Detokenize, Embed, Score or Classify; unanswered.

    Whoever has not begun with it drops it.
    """

    request_id: str


class Detokenized(Message, frozen=True, tag="detokenized"):
    """The answer to Detokenize."""

    request_id: str
    text: str


class Prepared(Message, frozen=True, tag="prepared"):
    """The answer to Prepare.

    Attributes:
        block_hashes: Chained hashes of the prompt's full blocks, tenant salt included.
        prompt_tail: The last characters of the rendered prompt; a parser starts from them.
        max_output_tokens: What the context leaves for the output.
        tokens: The text of each prompt token, when it was asked for.
        prompt_text: What was tokenised, for `echo`; only of completions.
        stop_token_ids: Tokens that end the output beside end-of-sequence: those after a middle that
            was filled in (since 1.5).
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    block_hashes: tuple[bytes, ...] = ()
    prompt_tail: str = ""
    template_time: int = 0
    max_output_tokens: Count = 0
    tokens: tuple[str, ...] = ()
    prompt_text: str = ""
    stop_token_ids: tuple[int, ...] = ()


class Generate(Message, frozen=True, tag="generate"):
    """Generate one choice; on a resume, go on where another engine stopped.

    Attributes:
        request_id: With `choice`, the identity of the stream.
        choice: Index of the choice, 0 ≤ choice < n; part of the noise key.
        attempt: Grows with each retry; outputs of older attempts are ignored.
        output_token_ids: Already generated by an earlier attempt, apart from the prompt; not
            sampled again, but counted for penalties, limits and stops.
        num_sent_characters: Of the output text that the client already has; only text beyond it
            is sent.
        keep_special_tokens: Texts of special tokens that stay in the output for the parser.
        lease_tokens: Output tokens that are paid for; the engine pauses there until `Extend`.
        deadline_s: Remaining seconds when sent.
        priority: Lower runs first.
        template_time: As prepared.
        block_hashes: Not sent since 1.2; the engine makes its own.
        num_choices: Choices of this prompt under this request, so that the engine computes the
            prompt once for all of them.
        is_streaming: Whether somebody reads the output as it comes; if nobody does, the engine
            may compute several steps before it reports.
        is_alone: Run it with no other request beside it, until it has made `NUM_ALONE_TOKENS` new
            tokens: it was there when engines died.
        lease_id: What the tokens are charged to; the engine reports them to another gateway
            when this one dies.
        thought: How the output's reasoning is ended once it has `max_thought_tokens` tokens; None
            lets it be as long as it wants to (since 1.5).
        max_thought_tokens: Tokens of reasoning at most, that of several thoughts together.
        cache_salt: As in `Prepare`.
        trace_id: The client's `X-Request-ID`, for logs.
        traceparent: Where in a trace it belongs (W3C; since 1.5); empty when it isn't traced.
    """

    request_id: str
    choice: int
    attempt: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    lease_tokens: int
    deadline_s: float
    output_token_ids: tuple[int, ...] = ()
    num_sent_characters: int = 0
    keep_special_tokens: tuple[str, ...] = ()
    grammar: Grammar | None = None
    priority: int = 0
    tenant: str = ""
    template_time: int = 0
    block_hashes: tuple[bytes, ...] = ()
    want_token_ids: bool = False
    num_choices: int = 1
    is_streaming: bool = True
    is_alone: bool = False
    lease_id: str = ""
    trace_id: str = ""
    thought: Thought | None = None
    max_thought_tokens: int = 0
    cache_salt: str = ""
    traceparent: str = ""


class Extend(Message, frozen=True, tag="extend"):
    """The lease grew: the engine may go on to `lease_tokens` output tokens in all."""

    request_id: str
    choice: int
    attempt: int
    lease_tokens: int


class Abort(Message, frozen=True, tag="abort"):
    """Stop generating; idempotent, leaves a tombstone, still yields `Finished(abort, usage)`.

    A `choice` of `ALL_CHOICES` stops every choice of the request.
    """

    request_id: str
    attempt: int
    choice: int = ALL_CHOICES


class TokenLogprob(Part, frozen=True):
    """One token with its log probability.

    Attributes:
        text: The token's own text, special tokens included; U+FFFD where its bytes are part of
            a character.
        data: The token's own bytes.
        logprob: Natural logarithm of the probability that the model gave it (before temperature,
            penalties and filters).
        rank: 1 for the most likely token.
    """

    token_id: int
    text: str
    data: bytes
    logprob: float
    rank: int = 0


class TokenLogprobs(Part, frozen=True):
    """One position: the token that stands there and the likeliest ones, best first.

    Attributes:
        wanted: Those of `logprob_token_ids`, in that order, without ranks (since 1.5).
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()
    wanted: tuple[TokenLogprob, ...] = ()


class Delta(Part, frozen=True):
    """New output of one choice.

    Attributes:
        text: New visible text: valid UTF-8, possible beginnings of stop strings held back.
        token_ids: New token ids, in order.
        token_ends: For each of `token_ids`, how many characters the whole output text has once
            it is decoded; so a character's token can be found although text may lag behind.
        cached_tokens: Of the prompt, what needn't be computed; in the first delta of an attempt
            (since 1.5), as `Usage` says it at the end.
    """

    request_id: str
    choice: int
    attempt: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    token_ends: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    unenforced: tuple[str, ...] = ()
    cached_tokens: int = 0


class Finished(Message, frozen=True, tag="finished"):
    """The terminal event of one choice that went well, or was aborted.

    Attributes:
        stop_reason: The stop string or stop token id that ended it.
    """

    request_id: str
    choice: int
    attempt: int
    finish_reason: FinishReason
    usage: Usage
    stop_reason: str | int | None = None


class StepOutput(Message, frozen=True, tag="step_output"):
    """All that one step made for one gateway: first the deltas, then the ends.

    Attributes:
        progress_counter: As in Heartbeat.
        load: The engine's load after the step.
        credits: The gateway's credit after the step.
    """

    deltas: tuple[Delta, ...] = ()
    ends: tuple[Finished | Failure, ...] = ()
    progress_counter: int = 0
    load: Load = Load()
    credits: Credits | None = None


class CachedBlocks(Message, frozen=True, tag="cached_blocks"):
    """Which prompt blocks an engine's prefix cache gained and lost, for routing.

    Attributes:
        is_reset: All that was known of this engine is void.
        added: Block hashes as in Prepared.
        removed: Likewise.
    """

    is_reset: bool = False
    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


class Profile(Message, frozen=True, tag="profile"):
    """Record what the engine does for some seconds, for its developers."""

    request_id: str
    duration_s: float


class Profiled(Message, frozen=True, tag="profiled"):
    """The answer to Profile: where the recording lies on the engine's machine."""

    request_id: str
    directory: str
    size_bytes: int


class ClearCache(Message, frozen=True, tag="clear_cache"):
    """Forget the computed blocks of prompts that no running request holds (since 1.4)."""

    request_id: str


class CacheCleared(Message, frozen=True, tag="cache_cleared"):
    """The answer to `ClearCache`: so many blocks were forgotten."""

    request_id: str
    num_blocks: int
