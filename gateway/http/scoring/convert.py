"""From bodies of decisions to the one question for an engine, and what its answer is told as."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway import bridge
from gateway.http.schemas.base.body import dump_json, load_json_object, unknown_fields, validate
from gateway.http.scoring import wording
from gateway.http.scoring.decision_schemas import (
    Call,
    CallOutput,
    Choice,
    DecisionRequest,
    Item,
    JsonPart,
    Message,
    Option,
    Question,
    RefusalPart,
    Score,
    SystemoneQuestion,
    SystemoneRequest,
    check_json,
)
from gateway.request.callers.caller import named_end_user
from protocol.wire.messages import Score as ScoreMessage

_KWARGS_JSON: Final = '{"enable_thinking":false,"thinking":false}'
"""Templates that let a model think first know one of these names."""
_TEMPLATE_TOKENS: Final = 64
"""What a chat template writes around a message, at most, in any model that is known here."""

Kind = Literal["predicate", "choice", "score"]
_BEGINNINGS: Final[dict[Kind, str]] = {
    "predicate": wording.STATEMENT,
    "choice": wording.CHOICE,
    "score": wording.SCORE,
}
"""What the questions of a kind share."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as its answer will tell of it.

    Attributes:
        name: Of the question; empty where it has none.
        values: Of its options or levels, in order; empty for a predicate.
    """

    kind: Kind
    name: str | None
    values: tuple[str | bool, ...] = ()

    @property
    def num_labels(self) -> int:
        """Labels that were scored for it."""
        return len(self.values) or len(wording.YES_NO)


@dataclass(frozen=True, slots=True)
class DecisionBody:
    """Of /v1/decisions and /v1/systemone.

    Attributes:
        num_bytes: Upper bound of the tokens that are computed.
        ignored: Fields that no schema knows.
        material: The field with what is judged.
        end_user: For whom it is; empty when the body doesn't say.
    """

    model: str
    message: ScoreMessage
    asked: tuple[Asked, ...]
    num_bytes: int
    ignored: list[str]
    material: str
    end_user: str = ""

    @property
    def before(self) -> str:
        """The field with the text that stands first."""
        return self.material


class _Questions:
    """Texts of questions, and the sets of labels that they share."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str, int]] = []
        self.label_sets: dict[tuple[str, ...], int] = {}

    def add(self, beginning: str, text: str, labels: tuple[str, ...]) -> None:
        number = self.label_sets.setdefault(labels, len(self.label_sets))
        self.texts.append((beginning, text, number))

    def body(
        self,
        model: str,
        state: str,
        asked: Iterable[Asked],
        ignored: list[str],
        material: str,
        end_user: str = "",
    ) -> DecisionBody:
        messages = [
            {"role": "system", "content": wording.DECISION_SYSTEM},
            {"role": "user", "content": wording.material(state)},
        ]
        messages_json = dump_json(messages, material)
        return DecisionBody(
            model=model,
            message=bridge.score_question(
                messages_json, self.texts, tuple(self.label_sets), _KWARGS_JSON, None
            ),
            asked=tuple(asked),
            num_bytes=upper_bound(
                messages_json, (beginning + text for beginning, text, _ in self.texts)
            ),
            ignored=ignored,
            material=material,
            end_user=end_user,
        )


def upper_bound(messages_json: str, texts: Iterable[str]) -> int:
    """Tokens at most of a beginning and the questions behind it."""
    sizes = [len(text.encode("utf-8", "surrogatepass")) + _TEMPLATE_TOKENS for text in texts]
    return len(messages_json.encode("utf-8", "surrogatepass")) + 4 * _TEMPLATE_TOKENS + sum(sizes)


def decision_body(body: bytes) -> DecisionBody:
    """Of /v1/decisions.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(DecisionRequest, value)
    questions, asked = _Questions(), []
    for one in request.questions:
        text, labels, values = _worded(one)
        questions.add(_BEGINNINGS[one.type], text, labels)
        asked.append(Asked(one.type, one.name, values))
    ignored = unknown_fields(request, value)
    return questions.body(
        request.model,
        _transcript(request.input),
        asked,
        ignored,
        "input",
        named_end_user(request.safety_identifier),
    )


def systemone_body(body: bytes) -> DecisionBody:
    """Of /v1/systemone.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    value = load_json_object(body)
    request = validate(SystemoneRequest, value)
    questions, asked = _Questions(), []
    for name, one in request.questions.items():
        text, labels, kind, values = _worded_systemone(one)
        questions.add(_BEGINNINGS[kind], text, labels)
        asked.append(Asked(kind, name, values))
    state = request.state if isinstance(request.state, str) else check_json(request.state)
    ignored = unknown_fields(request, value)
    return questions.body(request.model, state, asked, ignored, "state")


def _worded(one: Question) -> tuple[str, tuple[str, ...], tuple[str | bool, ...]]:
    instructions = _text(one.instructions)
    if isinstance(one, Choice):
        options = _options(one.choices)
        labels = wording.letters(len(options))
        values = tuple(option.value for option in one.choices)
        return wording.question(instructions, options), labels, values
    if isinstance(one, Score):
        levels = [_described(level.label, level.description) for level in one.levels]
        names = tuple(level.label for level in one.levels)
        return wording.question(instructions, levels), wording.letters(len(levels)), names
    return wording.statement(instructions), wording.YES_NO, ()


def _worded_systemone(
    one: SystemoneQuestion,
) -> tuple[str, tuple[str, ...], Kind, tuple[str, ...]]:
    criteria = one.criteria
    if isinstance(criteria, list):
        text = wording.question(one.instructions, criteria)
        return text, wording.letters(len(criteria)), "score", tuple(criteria)
    criteria = criteria or {}
    if one.type == "choice":
        options = [_described(name, description) for name, description in criteria.items()]
        text = wording.question(one.instructions, options)
        return text, wording.letters(len(options)), "choice", tuple(criteria)
    text = wording.statement(one.instructions, criteria.get("true"), criteria.get("false"))
    return text, wording.YES_NO, "predicate", ()


def _options(choices: Sequence[Option]) -> list[str]:
    """Each option in a line; texts are quoted where a boolean may look the same."""
    has_truth = any(isinstance(option.value, bool) for option in choices)
    shown = []
    for option in choices:
        value = option.value
        is_plain = isinstance(value, str) and not has_truth
        shown.append(
            _described(str(value) if is_plain else dump_json(value, "choices"), option.description)
        )
    return shown


def _described(name: str, description: str | None) -> str:
    return f"{name}: {description}" if description else name


def _text(parts: Any) -> str:
    """A text, or parts of one, as text."""
    if isinstance(parts, str):
        return parts
    return "\n".join(_part_text(part) for part in parts)


def _part_text(part: Any) -> str:
    if isinstance(part, JsonPart):
        return check_json(part.data)
    if isinstance(part, RefusalPart):
        return part.refusal
    text: str = part.text
    return text


def _transcript(items: str | list[Item]) -> str:
    """What is judged, as one text: a conversation is told, not continued."""
    return items if isinstance(items, str) else "\n\n".join(map(_told, items))


def _told(item: Message | Call | CallOutput) -> str:
    if isinstance(item, Message):
        return f"[{item.role}]\n{_text(item.content)}"
    if isinstance(item, Call):
        name = f"{item.namespace}.{item.name}" if item.namespace else item.name
        return f"[call of {name}, {item.call_id}]\n{item.text}"
    return f"[answer to {item.call_id}]\n{_text(item.output)}"
