"""Messages to engines: prompts, choices, and questions about whole texts."""

from collections.abc import Sequence
from typing import TypeVar

from msgspec import structs

from protocol.wire.messages import (
    Abort,
    Classify,
    ClearCache,
    Detokenize,
    Embed,
    Extend,
    Generate,
    Grammar,
    Prepare,
    Prepared,
    PrepareKind,
    Profile,
    SamplingParams,
    Score,
    ScoredQuestion,
    Thought,
)


def prompt(
    kind: PrepareKind,
    *,
    messages_json: str | None = None,
    tools_json: str | None = None,
    template_kwargs_json: str | None = None,
    text: str | None = None,
    token_ids: tuple[int, ...] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    add_special_tokens: bool = True,
    max_tokens: int | None = None,
    truncate_prompt_tokens: int | None = None,
    return_tokens: bool = False,
    chat_template: str | None = None,
    suffix: str | None = None,
    cache_salt: str = "",
) -> Prepare:
    """A prompt to be rendered and tokenised; `addressed` says whose it is, and until when."""
    return Prepare(
        request_id="",
        kind=kind,
        deadline_s=0.0,
        messages_json=messages_json,
        tools_json=tools_json,
        template_kwargs_json=template_kwargs_json,
        prompt=text,
        prompt_token_ids=token_ids,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        add_special_tokens=add_special_tokens,
        max_tokens=max_tokens,
        truncate_prompt_tokens=truncate_prompt_tokens,
        return_tokens=return_tokens,
        chat_template=chat_template,
        suffix=suffix,
        cache_salt=cache_salt,
    )


def counted(prompt: Prepare) -> Prepare:
    """The question for the tokens of a prompt that could as well be answered."""
    return structs.replace(prompt, kind="count", max_tokens=None)


def with_room(prompt: Prepare, num_tokens: int) -> Prepare:
    """A prompt whose answer may be cut to what the context leaves, if that is so many tokens."""
    return structs.replace(prompt, max_tokens=num_tokens)


def without_length(prompt: Prepare) -> Prepare:
    """A prompt with any length of answer: to be compared, or where the context may end it."""
    return structs.replace(prompt, max_tokens=None)


def token_ids(ids: tuple[int, ...]) -> Detokenize:
    """Token ids to be spelt as text; not addressed yet."""
    return Detokenize(request_id="", token_ids=ids, deadline_s=0.0)


def embedding_inputs(
    texts: tuple[str, ...],
    ids: tuple[tuple[int, ...], ...],
    dimensions: int | None,
    truncate_prompt_tokens: int | None,
    prompt_name: str = "",
) -> Embed:
    """Texts, or token ids, to be turned into vectors; not addressed yet."""
    return Embed(
        request_id="",
        deadline_s=0.0,
        texts=texts,
        token_ids=ids,
        dimensions=dimensions,
        truncate_prompt_tokens=truncate_prompt_tokens,
        prompt_name=prompt_name,
    )


def classification(
    texts: Sequence[str],
    second_texts: Sequence[str] = (),
    token_ids: tuple[tuple[int, ...], ...] = (),
    *,
    truncate_prompt_tokens: int | None,
    max_second_tokens: int | None = None,
) -> Classify:
    """Texts, pairs or token ids to be classified; not addressed yet."""
    return Classify(
        request_id="",
        deadline_s=0.0,
        texts=tuple(texts),
        second_texts=tuple(second_texts),
        token_ids=token_ids,
        truncate_prompt_tokens=truncate_prompt_tokens,
        max_second_tokens=max_second_tokens,
    )


def score_question(
    messages_json: str,
    questions: Sequence[tuple[str, str, int]],
    label_sets: tuple[tuple[str, ...], ...],
    template_kwargs_json: str,
    max_question_tokens: int | None,
) -> Score:
    """Questions: what the kind of each begins with, its own text, the number of its labels' set.

    It is not addressed yet.
    """
    return Score(
        request_id="",
        deadline_s=0.0,
        messages_json=messages_json,
        questions=tuple(
            ScoredQuestion(
                text=beginning + text, label_set=number, num_shared_characters=len(beginning)
            )
            for beginning, text, number in questions
        ),
        label_sets=label_sets,
        template_kwargs_json=template_kwargs_json,
        max_question_tokens=max_question_tokens,
    )


QuestionT = TypeVar("QuestionT", Prepare, Detokenize, Embed, Score, Classify)


def addressed(
    question: QuestionT,
    request_id: str,
    *,
    deadline_s: float,
    tenant: str,
    priority: int,
    trace_id: str,
    traceparent: str = "",
) -> QuestionT:
    """A question with whose it is and how long it may take."""
    sent = structs.replace(
        question, request_id=request_id, deadline_s=deadline_s, tenant=tenant, trace_id=trace_id
    )
    if traceparent and isinstance(sent, Prepare):
        sent = structs.replace(sent, traceparent=traceparent)
    # Prompts and tokens are read in turn by tenant alone.
    has_priority = isinstance(sent, (Embed, Score, Classify))
    return structs.replace(sent, priority=priority) if has_priority else sent


def generate(
    request_id: str,
    number: int,
    prepared: Prepared,
    sampling: SamplingParams,
    *,
    attempt: int,
    lease_id: str,
    lease_tokens: int,
    deadline_s: float,
    tenant: str,
    trace_id: str,
    traceparent: str = "",
    priority: int,
    keep_special_tokens: tuple[str, ...],
    grammar: Grammar | None,
    output_token_ids: Sequence[int],
    num_sent_characters: int,
    num_choices: int,
    is_streaming: bool,
    is_alone: bool,
    thought: Thought | None = None,
    max_thought_tokens: int = 0,
    cache_salt: str = "",
) -> Generate:
    """One choice of a prompt, from its beginning or from where another engine stopped."""
    return Generate(
        request_id=request_id,
        choice=number,
        attempt=attempt,
        prompt_token_ids=prepared.prompt_token_ids,
        sampling=sampling,
        lease_tokens=lease_tokens,
        deadline_s=deadline_s,
        output_token_ids=tuple(output_token_ids),
        num_sent_characters=num_sent_characters,
        keep_special_tokens=keep_special_tokens,
        grammar=grammar,
        priority=priority,
        tenant=tenant,
        template_time=prepared.template_time,
        want_token_ids=True,
        num_choices=num_choices,
        is_streaming=is_streaming,
        is_alone=is_alone,
        lease_id=lease_id,
        trace_id=trace_id,
        traceparent=traceparent,
        thought=thought,
        max_thought_tokens=max_thought_tokens,
        cache_salt=cache_salt,
    )


def with_seed(sampling: SamplingParams, seed: int) -> SamplingParams:
    """The same parameters with another seed."""
    return structs.replace(sampling, seed=seed)


def with_stop_token_ids(
    sampling: SamplingParams, stop_token_ids: tuple[int, ...]
) -> SamplingParams:
    """The same parameters with other tokens that end an output."""
    return structs.replace(sampling, stop_token_ids=stop_token_ids)


def without_prompt_logprobs(sampling: SamplingParams) -> SamplingParams:
    """The same parameters, with nothing told of the prompt."""
    return structs.replace(sampling, prompt_logprobs=None)


def without_seed_and_length(sampling: SamplingParams) -> SamplingParams:
    """Parameters as they are compared with others: whatever the seed and the output's length."""
    return structs.replace(sampling, seed=0, max_tokens=None)


def extend(request_id: str, number: int, attempt: int, lease_tokens: int) -> Extend:
    """A choice may go on to so many output tokens in all."""
    return Extend(request_id=request_id, choice=number, attempt=attempt, lease_tokens=lease_tokens)


def abort(request_id: str, number: int, attempt: int) -> Abort:
    """Stop a choice."""
    return Abort(request_id=request_id, attempt=attempt, choice=number)


def profile(request_id: str, duration_s: float) -> Profile:
    """Record what an engine does."""
    return Profile(request_id=request_id, duration_s=duration_s)


def clear_cache(question_id: str) -> ClearCache:
    """Forget the computed prompts that nobody uses at the moment."""
    return ClearCache(request_id=question_id)
