"""What the engine tells its gateways: deltas and ends, gathered over a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine_worker.core.choice.batch import TokenScores
from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.decoding.token_logprobs import describe, take_prompt_scores
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Delta,
    Failure,
    Finished,
    FinishReason,
    Generate,
    Scored,
    Usage,
)


@dataclass(slots=True)
class GatewayOutput:
    """What is to be told to one gateway: first the deltas, then the ends, then answers."""

    deltas: list[Delta] = field(default_factory=list)
    ends: list[Finished | Failure] = field(default_factory=list)
    answers: list[Scored | Failure] = field(default_factory=list)


class EngineOutput:
    """What is to be told to each gateway since the last `take`.

    Args:
        tokenizer: Spells the tokens whose log probabilities are told.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._gateways: dict[str, GatewayOutput] = {}

    def __bool__(self) -> bool:
        return bool(self._gateways)

    def take(self) -> dict[str, GatewayOutput]:
        """All of it, by gateway; it is forgotten here."""
        gateways, self._gateways = self._gateways, {}
        return gateways

    def forget_gateway(self, gateway_id: str) -> None:
        """Nobody listens any more."""
        self._gateways.pop(gateway_id, None)

    def tell(self, output: ChoiceOutput) -> None:
        """Add a delta with the new text, and the new tokens and their scores if wanted."""
        text = output.text.take()
        untold, output.untold = output.untold, []
        scores, output.untold_scores = output.untold_scores, []
        unenforced = output.take_unenforced()
        if not (text or scores or unenforced or (output.want_token_ids and untold)):
            return
        choice = output.choice
        told = untold if output.want_token_ids else []
        self._of(choice.gateway_id).deltas.append(
            Delta(
                request_id=choice.request_id,
                choice=choice.index,
                attempt=choice.attempt,
                text=text,
                token_ids=tuple(token_id for token_id, _ in told),
                token_ends=tuple(end for _, end in told),
                logprobs=tuple(describe(each, self._tokenizer) for each in scores),
                unenforced=unenforced,
                cached_tokens=output.take_cached_tokens(),
            )
        )

    def tell_plain(
        self, output: ChoiceOutput, text: str, token_ids: tuple[int, ...], ends: tuple[int, ...]
    ) -> None:
        """Add a delta with plain tokens, as `ChoiceOutput.plain_text` has them."""
        choice, told = output.choice, output.want_token_ids
        output.text.num_characters = ends[-1]
        self._of(choice.gateway_id).deltas.append(
            Delta(
                request_id=choice.request_id,
                choice=choice.index,
                attempt=choice.attempt,
                text=text,
                token_ids=token_ids if told else (),
                token_ends=ends if told else (),
            )
        )

    def tell_prompt_scores(
        self, output: ChoiceOutput, start: int, scores: Sequence[TokenScores]
    ) -> None:
        """Add the log probabilities of prompt tokens from position `start` on."""
        choice = output.choice
        self._of(choice.gateway_id).deltas.append(
            Delta(
                request_id=choice.request_id,
                choice=choice.index,
                attempt=choice.attempt,
                prompt_logprobs=tuple(
                    describe(each, self._tokenizer)
                    for each in take_prompt_scores(choice, start, scores)
                ),
            )
        )

    def end(self, gateway_id: str, end: Finished | Failure) -> None:
        """Add the end of a choice."""
        self._of(gateway_id).ends.append(end)

    def answer(self, gateway_id: str, answer: Scored | Failure) -> None:
        """Add the answer to a Score."""
        self._of(gateway_id).answers.append(answer)

    def _of(self, gateway_id: str) -> GatewayOutput:
        told = self._gateways.get(gateway_id)
        if told is None:
            told = self._gateways[gateway_id] = GatewayOutput()
        return told


def finished(
    choice: Choice, reason: FinishReason, stop_reason: str | int | None = None
) -> Finished:
    """The good end of a choice."""
    return Finished(
        request_id=choice.request_id,
        choice=choice.index,
        attempt=choice.attempt,
        finish_reason=reason,
        usage=_usage(choice),
        stop_reason=stop_reason,
    )


def failed(choice: Choice, code: ErrorCode, message: str) -> Failure:
    """The bad end of a choice, with what it used."""
    return Failure(
        request_id=choice.request_id,
        choice=choice.index,
        attempt=choice.attempt,
        code=code,
        message=message,
        usage=_usage(choice),
    )


def aborted_unseen(command: Generate) -> Finished:
    """The end of a choice whose abort came first."""
    return Finished(
        request_id=command.request_id,
        choice=command.choice,
        attempt=command.attempt,
        finish_reason="abort",
        usage=Usage(
            prompt_tokens=len(command.prompt_token_ids),
            completion_tokens=len(command.output_token_ids),
        ),
    )


def refused(command: Generate, code: ErrorCode, message: str, param: str | None) -> Failure:
    """The end of a choice that was not taken."""
    return Failure(
        request_id=command.request_id,
        choice=command.choice,
        attempt=command.attempt,
        code=code,
        message=message,
        param=param,
    )


def _usage(choice: Choice) -> Usage:
    return Usage(
        prompt_tokens=choice.num_prompt_tokens,
        completion_tokens=choice.num_output_tokens,
        cached_tokens=choice.num_cached_tokens or 0,
    )
