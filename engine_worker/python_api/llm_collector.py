"""Gathers what the engine tells of several requests into whole outputs."""

from dataclasses import dataclass, field

from engine_worker.core.engine_output import GatewayOutput
from engine_worker.errors import EngineError
from engine_worker.python_api.llm_outputs import Completion, RequestOutput
from protocol.wire.messages import Failure, Finished, TokenLogprobs


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: Finished | None = None


class Collector:
    """The outputs of the requests of one call."""

    def __init__(self) -> None:
        self._choices: dict[str, dict[int, _Choice]] = {}
        self.num_ended = 0

    def take(self, told: GatewayOutput) -> None:
        """What one step told.

        Raises:
            EngineError: A request was refused or failed.
        """
        for delta in told.deltas:
            choice = self._choice(delta.request_id, delta.choice)
            choice.texts.append(delta.text)
            choice.token_ids += delta.token_ids
            choice.logprobs += delta.logprobs
            choice.prompt_logprobs += delta.prompt_logprobs
        for end in told.ends:
            if isinstance(end, Failure):
                raise EngineError(end.message, code=end.code, param=end.param)
            self._choice(end.request_id, end.choice).end = end
            self.num_ended += 1

    def output(self, request_id: str, prompt_token_ids: tuple[int, ...]) -> RequestOutput:
        """The whole output of a request that has ended."""
        choices = self._choices[request_id]
        completions = []
        for index, choice in sorted(choices.items()):
            assert choice.end is not None, "the engine ends every request"
            completions.append(
                Completion(
                    index=index,
                    text="".join(choice.texts),
                    token_ids=tuple(choice.token_ids),
                    finish_reason=choice.end.finish_reason,
                    stop_reason=choice.end.stop_reason,
                    logprobs=tuple(choice.logprobs),
                )
            )
        first = choices[0]
        assert first.end is not None
        return RequestOutput(
            prompt_token_ids=prompt_token_ids,
            completions=tuple(completions),
            cached_tokens=first.end.usage.cached_tokens,
            prompt_logprobs=tuple(first.prompt_logprobs),
        )

    def _choice(self, request_id: str, index: int) -> _Choice:
        return self._choices.setdefault(request_id, {}).setdefault(index, _Choice())
