"""Messages between gateway and engine for scoring labels as answers to questions."""

from protocol.wire.messages.base import Count, Message, Part


class ScoredQuestion(Part, frozen=True):
    """One question.

    Attributes:
        text: What the last message goes on with, after what all questions share.
        label_set: Index into `Score.label_sets`: what the answer may be.
        num_shared_characters: The first so many characters (code points) of the text are those of
            its kind of question: they are tokenised apart, and computed once for all questions
            that begin with the same ones.
    """

    text: str
    label_set: Count = 0
    num_shared_characters: Count = 0


class Score(Message, frozen=True, tag="score"):
    """Give the log probability of each label as the whole answer to each question.

    The beginning that the questions share is computed once. It, what a kind of question begins
    with, the text of a question, what the chat template writes behind, and a label are tokenised
    apart, so that the prompt of a question is the same whichever others are asked beside it.

    Attributes:
        deadline_s: Remaining seconds when sent.
        messages_json: As in `Prepare`; each question's text stands at the end of the last message.
        template_kwargs_json: `chat_template_kwargs` as a JSON object.
        questions: At least one.
        label_sets: Texts; no label of a set may be the beginning of another one in tokens.
        max_question_tokens: Longer texts of questions are cut to their first tokens; None refuses
            what doesn't fit the context.
        priority: Lower runs first.
        tenant: Salts the block hashes; also whose turn it is.
        trace_id: The client's `X-Request-ID`, for logs.
    """

    request_id: str
    deadline_s: float
    messages_json: str
    questions: tuple[ScoredQuestion, ...]
    label_sets: tuple[tuple[str, ...], ...]
    template_kwargs_json: str | None = None
    max_question_tokens: int | None = None
    priority: int = 0
    tenant: str = ""
    trace_id: str = ""


class Scored(Message, frozen=True, tag="scored"):
    """The answer to Score.

    Attributes:
        logprobs: float32 little-endian: for each question, in order, the natural logarithm of the
            probability of each label of its set, summed over the label's tokens.
        num_prompt_tokens: What was computed: the shared beginning once, what each kind of question
            begins with once, and every question.
        num_cached_tokens: Of these, what was cached before.
        num_tokens: Tokens of each question, without the beginnings and the labels.
    """

    request_id: str
    logprobs: bytes
    num_prompt_tokens: Count
    num_cached_tokens: Count = 0
    num_tokens: tuple[int, ...] = ()
