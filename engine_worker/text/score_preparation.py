"""Turns a Score into tokens: the beginning that questions share, the questions, their labels."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine_worker.core.choice.score_pack import ScoredTexts
from engine_worker.errors import (
    BEFORE,
    ChatTemplateError,
    ContextLengthError,
    InvalidRequestError,
    UnsupportedParameterError,
)
from engine_worker.text.chat_messages import JsonObject, parse_json, parse_messages
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.control_tokens import Rendered
from engine_worker.text.preparation import check_token_ids
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Score

_MAX_LABEL_SETS: Final = 64
"""Label sets whose tokens are remembered."""
_MAX_NORMALISATION_FACTOR: Final = 4
_OPEN_THOUGHTS: Final = ("<think>", "<|thinking|>", "[THINK]")

LabelIds = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ScorePrompt:
    """A Score in tokens.

    Attributes:
        head: The beginning that all questions share; at least one token.
        questions: Each with its labels.
        num_labels: Of all questions together.
    """

    head: tuple[int, ...]
    questions: tuple[ScoredTexts, ...]
    num_labels: int

    @property
    def num_tokens(self) -> int:
        """What has to be computed, without labels."""
        beginnings = {texts.beginning for texts in self.questions}
        own = sum(len(texts.token_ids) for texts in self.questions)
        return len(self.head) + sum(map(len, beginnings)) + own


class ScorePreparer:
    """Tokenises Scores of one model; for any number of threads.

    Args:
        tokenizer: The model's.
        template: The model's.
        vocab_size: Token ids at or above it are refused.
        max_len: Beginning, question and label together, tokens; see `Engine.max_score_len`.
        now: Unix seconds, for templates that show the date.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        vocab_size: int,
        max_len: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = vocab_size
        self._max_len = max_len
        self._now = now
        self._label_ids: OrderedDict[tuple[str, tuple[str, ...]], LabelIds] = OrderedDict()

    def prepare(self, command: Score) -> ScorePrompt:
        """The tokens of a Score.

        Raises:
            RequestError: Something is wrong with it, or too long for the context.
        """
        _check(command)
        head_text, end_text = self._rendered(command)
        self._refuse_hopeless(head_text)
        head = self._checked(self._template.encode(head_text))
        end = self._checked(self._template.encode(end_text))
        label_sets = [self._labels(end_text, end, labels) for labels in command.label_sets]
        beginnings = self._beginnings(command)
        texts = [one.text[one.num_shared_characters :] for one in command.questions]
        questions, first = [], 0
        for index, (question, token_ids) in enumerate(
            zip(command.questions, self._template.encode_texts(texts), strict=True)
        ):
            labels = label_sets[question.label_set]
            beginning = beginnings[question.text[: question.num_shared_characters]]
            most = self._max_len - len(head) - len(beginning) - len(end)
            kept = self._checked(token_ids)
            if command.max_question_tokens is not None:
                kept = kept[: max(0, min(command.max_question_tokens, most - _longest(labels)))]
            if len(kept) + _longest(labels) > most:
                # Where not even an empty question fits, what stands first is too long.
                param = BEFORE if _longest(labels) > most else "input"
                num_question = len(beginning) + len(kept) + len(end)
                raise self._too_long(len(head), num_question, index, param)
            questions.append(ScoredTexts((*kept, *end), labels, first, beginning))
            first += len(labels)
        if not head or not all(texts.token_ids for texts in questions):
            raise ChatTemplateError(
                "The chat template leaves nothing before or after a question, so none can be asked."
            )
        return ScorePrompt(tuple(head), tuple(questions), first)

    def _beginnings(self, command: Score) -> dict[str, tuple[int, ...]]:
        """The tokens of what kinds of questions begin with, by its text."""
        texts = list({one.text[: one.num_shared_characters]: None for one in command.questions})
        found = self._template.encode_texts(texts)
        return {
            text: tuple(self._checked(token_ids)) if text else ()
            for text, token_ids in zip(texts, found, strict=True)
        }

    def _rendered(self, command: Score) -> tuple[Rendered, Rendered]:
        """What stands before and after a question."""
        messages = parse_messages(command.messages_json)
        place = f"question{secrets.token_hex(16)}"
        _append(messages, place)
        arguments = parse_json(command.template_kwargs_json or "{}", "chat_template_kwargs")
        if not isinstance(arguments, dict):
            raise InvalidRequestError(
                "'chat_template_kwargs' must be an object.", param="chat_template_kwargs"
            )
        rendered = self._template.render(
            messages, template_arguments=arguments, template_time=int(self._now())
        )
        if rendered.count(place) != 1:
            raise ChatTemplateError(
                "The chat template doesn't show the end of the last message once, so no question"
                " can be asked there."
            )
        start = rendered.index(place)
        end = start + len(place)
        head = Rendered(rendered[:start], tuple(m for m in rendered.marks if m <= start))
        tail = Rendered(rendered[end:], tuple(m - end for m in rendered.marks if m > end))
        if tail.rstrip().endswith(_OPEN_THOUGHTS):
            raise UnsupportedParameterError(
                "The chat template lets the model think before it answers, so labels can't be"
                " scored; a `chat_template_kwargs` of this model may switch that off."
            )
        return head, tail

    def _labels(self, end_text: Rendered, end: Sequence[int], labels: tuple[str, ...]) -> LabelIds:
        """The tokens of each label right behind a question."""
        key = (str(end_text), labels)
        found = self._label_ids.get(key)
        if found is not None:
            return found
        found = tuple(self._label(end_text, end, label) for label in labels)
        known: set[tuple[int, ...]] = set()
        for label, token_ids in zip(labels, found, strict=True):
            beginnings = {token_ids[:length] for length in range(1, len(token_ids) + 1)}
            if beginnings & known or any(one[: len(token_ids)] == token_ids for one in known):
                raise InvalidRequestError(
                    f"The label {label!r:.80} is another label, or begins one, in this model's"
                    " tokens; both can't be told apart."
                )
            known.add(token_ids)
        self._label_ids[key] = found
        while len(self._label_ids) > _MAX_LABEL_SETS:
            self._label_ids.popitem(last=False)
        return found

    def _label(self, end_text: Rendered, end: Sequence[int], label: str) -> tuple[int, ...]:
        whole = self._template.encode(Rendered(end_text + label, end_text.marks))
        if len(whole) <= len(end) or whole[: len(end)] != list(end):
            raise InvalidRequestError(
                f"The label {label!r:.80} has no tokens of its own behind this model's chat"
                " template."
            )
        return tuple(self._checked(whole[len(end) :]))

    def _refuse_hopeless(self, text: str) -> None:
        """Refuse what is too long by its length, before minutes are spent on its tokens."""
        per_token = self._tokenizer.max_token_characters * _MAX_NORMALISATION_FACTOR
        if len(text) > per_token * self._max_len:
            raise self._too_long(-(-len(text) // per_token), 1, None, BEFORE)

    def _too_long(
        self, num_head: int, num_question: int, index: int | None, param: str
    ) -> ContextLengthError:
        which = "a question" if index is None else f"question {index}"
        return ContextLengthError(
            f"This model scores at most {self._max_len} tokens at a time, but the input has"
            f" {num_head} tokens, {which} {num_question}, and the answer needs room as well.",
            param=param,
        )

    def _checked(self, token_ids: list[int]) -> list[int]:
        check_token_ids(token_ids, self._vocab_size, param="input")
        return token_ids


def _longest(labels: LabelIds) -> int:
    return max(map(len, labels))


def _check(command: Score) -> None:
    if not command.questions or not command.label_sets or not all(command.label_sets):
        raise InvalidRequestError("There is no question, or one without labels.")
    if any(one.num_shared_characters > len(one.text) for one in command.questions):
        raise InvalidRequestError("A question shares more characters than it has.")
    if max(question.label_set for question in command.questions) >= len(command.label_sets):
        raise InvalidRequestError("A question names a set of labels that isn't there.")


def _append(messages: list[JsonObject], text: str) -> None:
    """Write a text behind the last message's."""
    content = messages[-1].get("content") if messages else None
    if not isinstance(content, str):
        raise InvalidRequestError(
            "The last message has to be a text, behind which questions stand."
        )
    messages[-1]["content"] = content + text
