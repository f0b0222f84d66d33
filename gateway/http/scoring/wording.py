"""How a chat model is asked, so that its answer is one of some labels.

What all questions share comes first and is computed once: how to answer, then the material; behind
it what those of one kind share, once for each kind. So nothing of that stands behind a question's
own words, where it would be computed for every one. An answer may depend on every word here;
whoever changes one raises `WORDING_VERSION`.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WORDING_VERSION: Final = 2

DECISION_SYSTEM: Final = (
    "You judge material that the user gives. After it stands one question about it. Answer a"
    " statement with Yes if it is true of the material, and with No if it is not. Answer a question"
    " that has options or levels with the letter of the one that fits best. Answer with nothing"
    " else."
)
YES_NO: Final = ("Yes", "No")


@dataclass(frozen=True, slots=True)
class RerankWords:
    """How a model is asked whether a document answers a query.

    Attributes:
        yes_no: Labels: what it answers then, and what otherwise.
    """

    system: str
    instruction: str
    yes_no: tuple[str, str]


_RERANK_WORDS: Final = {
    "": RerankWords(
        "Judge whether the document answers the query, by the instruction. Answer Yes or No, with"
        " nothing else.",
        "Given a web search query, retrieve passages that answer the query.",
        YES_NO,
    ),
    # As Qwen3-Reranker was trained (its model card); its chat template writes the rest.
    "qwen3-reranker": RerankWords(
        "Judge whether the Document meets the requirements based on the Query and the Instruct"
        ' provided. Note that the answer can only be "yes" or "no".',
        "Given a web search query, retrieve relevant passages that answer the query",
        ("yes", "no"),
    ),
}
"""By what an engine offers as `rerank_wording`; another one's is asked in the first words."""
_LETTERS: Final = string.ascii_uppercase


def letters(num_options: int) -> tuple[str, ...]:
    """A label for each of some options: A to Z, or two letters each where there are more.

    All labels have the same length, so that none begins another one.
    """
    if num_options <= len(_LETTERS):
        return tuple(_LETTERS[:num_options])
    pairs = (first + second for first in _LETTERS for second in _LETTERS)
    return tuple(label for label, _ in zip(pairs, range(num_options), strict=False))


def material(state: str) -> str:
    """The user's message up to where each question stands."""
    return f"Material:\n{state}\n\n"


STATEMENT: Final = "Is this statement true of the material? Answer Yes or No.\n"
"""What predicates begin with. It ends with a line, so that no token spans it and what follows."""
CHOICE: Final = "Answer this question with the letter of the option that fits best.\n"
SCORE: Final = (
    "Answer this question with the letter of the level that fits best. The levels go from the"
    " lowest to the highest.\n"
)


def statement(instructions: str, true: str | None = None, false: str | None = None) -> str:
    """A predicate, behind `STATEMENT`."""
    lines = [instructions]
    lines += [f"Yes: {true}"] if true else []
    lines += [f"No: {false}"] if false else []
    return "\n".join(lines)


def question(instructions: str, options: Sequence[str]) -> str:
    """A question with options, behind `CHOICE`, or levels, behind `SCORE`; each has its letter."""
    lines = (f"{label}. {text}" for label, text in zip(letters(len(options)), options, strict=True))
    return "\n".join((instructions, *lines))


def rerank_words(style: str) -> RerankWords:
    """How a model is asked that offers this `rerank_wording`."""
    return _RERANK_WORDS.get(style, _RERANK_WORDS[""])


def rerank_head(words: RerankWords, instruction: str | None, query: str | None = None) -> str:
    """The user's message up to where each document stands, or each pair of texts."""
    head = f"<Instruct>: {instruction or words.instruction}\n"
    return head if query is None else f"{head}<Query>: {query}\n<Document>: "


def rerank_pair(query: str, document: str) -> str:
    """A pair of texts."""
    return f"<Query>: {query}\n<Document>: {document}"
