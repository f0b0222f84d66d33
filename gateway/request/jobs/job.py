"""What one client asks for, in the words of the wire, before anybody has been asked for it."""

from hashlib import blake2b
from typing import Any

from msgspec import Struct, structs

from gateway import bridge
from gateway.request.jobs.answer_options import PLAIN_ANSWER, AnswerOptions
from protocol.wire import codec
from protocol.wire.messages import Grammar, Message, Prepare, SamplingParams, ToolChoiceMode

CHAT_ENDPOINT = "/v1/chat/completions"
COMPLETION_ENDPOINT = "/v1/completions"
MESSAGES_ENDPOINT = "/v1/messages"
RESPONSES_ENDPOINT = "/v1/responses"
COMPACT_ENDPOINT = "/v1/responses/compact"
SEED_MASK = 2**63 - 1
"""Seeds as they are sent to engines."""


class GenerationJob(Struct, frozen=True):
    """One client request in the words of the wire; ids, deadline and tenant come later.

    Attributes:
        endpoint: The route template.
        prepares: One a prompt, without `request_id`, `deadline_s` and `tenant`.
        sampling: With the seed set.
        has_own_seed: Whether the client named the seed, which is then that of each prompt; without
            one each prompt gets another, or equal prompts would have equal answers.
        max_tokens: Output tokens a choice; None = what context and lease allow.
        prompt_bytes: Upper bound of the prompt's tokens, all prompts together.
        tools_json: The tools that the model may call; None when it may call none.
        enforced_tools_json: The tools with what is enforced of them, for the parser.
        tool_params: The fields that their schemas came from, in the same order.
        tool_name: The tool of a named choice.
        response_grammar: What the content has to be; None when it is free.
        grammar_param: The field that a grammar without a way to follow it came from.
        prompt_param: The field that a chat's messages came from.
        logprobs_param: The field that asks for log probabilities; empty where it is that of a chat
            or a completion.
        parse_reasoning: Whether reasoning is told apart from content (chat only).
        wants_reasoning: The client asked for a reasoning effort.
        answer_so_far: What there is of the answer that the output goes on with; empty for a new
            one.
        thinking: Whether the client switched reasoning on or off; None when it said nothing.
        reasoning_effort: As the client says it; empty when it doesn't. Its tokens are a setting.
        thinking_budget: Tokens of reasoning that the client allows; negative for any number, None
            when it said none.
        demands_budget: A model that can't hold to `thinking_budget` refuses the request.
        discards_output: The client wants the prompt looked at and no output; an engine makes at
            least one token, which nobody sees or pays.
        is_cut_by_context: `max_tokens` may be more than the context leaves, and more than one token
            isn't demanded of it.
        options: What the answer shows beside text.
        end_user: For whom it is, as the body says; empty when it doesn't.
        is_background: The client lets others go first.
        verbosity_param: The field that says how long the answer should be; empty where none does.
        take: Names this attempt at it to engines and parsers, where an earlier one may have died
            with its gateway: ids at workers are used once.
    """

    endpoint: str
    model: str
    prepares: tuple[Prepare, ...]
    sampling: SamplingParams
    max_tokens: int | None
    prompt_bytes: int
    tools_json: str | None = None
    enforced_tools_json: str | None = None
    tool_choice: ToolChoiceMode = "none"
    tool_name: str = ""
    response_grammar: Grammar | None = None
    grammar_param: str = "tools"
    prompt_param: str = "messages"
    parallel_tool_calls: bool = True
    parse_reasoning: bool = False
    wants_reasoning: bool = False
    answer_so_far: str = ""
    thinking: bool | None = None
    reasoning_effort: str = ""
    thinking_budget: int | None = None
    demands_budget: bool = False
    discards_output: bool = False
    is_cut_by_context: bool = False
    options: AnswerOptions = PLAIN_ANSWER
    end_user: str = ""
    is_background: bool = False
    verbosity_param: str = ""
    take: str = ""
    tool_params: tuple[str, ...] = ()
    logprobs_param: str = ""
    has_own_seed: bool = False

    def changed(self, **fields: Any) -> "GenerationJob":
        """The same job with other values of some fields."""
        return GenerationJob(**{**structs.asdict(self), **fields})

    def cut_by_context(self) -> "GenerationJob":
        """The same job for a context that may end the answer."""
        return self.changed(prepares=tuple(map(bridge.without_length, self.prepares)))

    @property
    def names_token_ids(self) -> bool:
        """Whether it says something in ids, which mean other tokens with another tokenizer."""
        sampling = self.sampling
        return bool(
            sampling.logit_bias
            or sampling.stop_token_ids
            or sampling.allowed_token_ids
            or sampling.logprob_token_ids
            or [1 for prepare in self.prepares if prepare.prompt_token_ids]
        )

    @property
    def num_choices_in_all(self) -> int:
        """Choices of all prompts together."""
        return len(self.prepares) * self.options.num_choices

    def sampling_of(self, number: int) -> SamplingParams:
        """The parameters of a prompt, by its number."""
        if self.has_own_seed or not number:
            return self.sampling
        return bridge.with_seed(self.sampling, (self.sampling.seed + number) & SEED_MASK)

    def attempt_id(self, request_id: str) -> str:
        """The id of a request at workers."""
        return f"{request_id}-{self.take}" if self.take else request_id


def job_fingerprint(job: GenerationJob, tenant: str) -> bytes:
    """What makes two requests the same for the quarantine.

    The tenant and everything that an engine computes with: another tenant's prompt, or the same
    prompt with other parameters, is another request. Seeds and lengths are left out.
    """
    digest = blake2b(digest_size=16)
    for part in (tenant, job.model, job.enforced_tools_json or "", job.tool_choice, job.tool_name):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    parts = (bridge.without_seed_and_length(job.sampling), job.response_grammar)
    digest.update(repr(parts).encode("utf-8", "surrogatepass"))
    for prepare in job.prepares:
        digest.update(codec.encode(bridge.without_length(prepare)))
    return digest.digest()


class JobFingerprint:
    """A job's fingerprint, made when it is called, which is seldom.

    Attributes:
        tenant: Whose job it is; known after the grant.
    """

    def __init__(self, job: GenerationJob) -> None:
        self.tenant = ""
        self._job = job

    def __call__(self) -> bytes:
        return job_fingerprint(self._job, self.tenant)


def question_fingerprint(message: Message, model: str, tenant: str) -> bytes:
    """The same for a question that is one message, as it was before it was addressed."""
    digest = blake2b(f"{tenant}\0{model}\0".encode("utf-8", "surrogatepass"), digest_size=16)
    digest.update(codec.encode(message))
    return digest.digest()
