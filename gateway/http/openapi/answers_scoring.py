"""What embeddings, decisions, rerank, score and classify answer."""

from typing import Final

from gateway.http.openapi.shapes import (
    FLAG,
    NUMBER,
    TEXT,
    WHOLE,
    Answers,
    Schema,
    absent_or,
    by_field,
    either,
    is_exactly,
    list_of,
    map_of,
    or_null,
    record,
    ref,
)

_CUT: Final = absent_or({"type": "boolean", "const": True})
_USED: Final = record(prompt_tokens=WHOLE, total_tokens=WHOLE, completion_tokens=WHOLE)
_VALUE: Final = either(TEXT, FLAG, NUMBER)
_RERANKED: Final = Answers(ref("Reranking"))
SCHEMAS: Final[dict[str, Schema]] = {
    "Embeddings": record(
        object=is_exactly("list"),
        data=list_of(
            record(
                object=is_exactly("embedding"),
                index=WHOLE,
                embedding=either(list_of(NUMBER), TEXT),
            )
        ),
        model=TEXT,
        usage=record(prompt_tokens=WHOLE, total_tokens=WHOLE),
    ),
    "PredicateAnswer": record(type=is_exactly("predicate"), name=TEXT, probability=NUMBER),
    "ChoiceAnswer": record(
        type=is_exactly("choice"),
        name=TEXT,
        choice=_VALUE,
        confidence=NUMBER,
        probabilities=list_of(record(value=_VALUE, probability=NUMBER)),
    ),
    "ScoreAnswer": record(
        type=is_exactly("score"),
        name=TEXT,
        score=NUMBER,
        confidence=NUMBER,
        probabilities=list_of(record(value=WHOLE, label=TEXT, probability=NUMBER)),
    ),
    "DecisionAnswer": by_field(
        "type",
        {"predicate": "PredicateAnswer", "choice": "ChoiceAnswer", "score": "ScoreAnswer"},
    ),
    "Decision": record(
        model=TEXT, answers=list_of(ref("DecisionAnswer")), usage=ref("ResponseUsage")
    ),
    "NoulAnswer": record(type=is_exactly("noul"), noul=NUMBER, x_label_mass=NUMBER),
    "NamedChoiceAnswer": record(
        type=is_exactly("choice"),
        choice=TEXT,
        confidence=NUMBER,
        probabilities=map_of(NUMBER),
        x_label_mass=NUMBER,
    ),
    "NamedScoreAnswer": record(
        type=is_exactly("score"),
        score=NUMBER,
        legend=map_of(TEXT),
        confidence=NUMBER,
        probabilities=map_of(NUMBER),
        x_label_mass=NUMBER,
    ),
    "SystemoneAnswer": by_field(
        "type",
        {"noul": "NoulAnswer", "choice": "NamedChoiceAnswer", "score": "NamedScoreAnswer"},
    ),
    "Systemone": record(
        model=TEXT,
        answers=map_of(ref("SystemoneAnswer")),
        usage=record(input_tokens=WHOLE, output_tokens=WHOLE),
    ),
    "PairUsage": record(
        prompt_tokens=WHOLE,
        total_tokens=WHOLE,
        completion_tokens=WHOLE,
        prompt_tokens_details=record(cached_tokens=WHOLE),
    ),
    "Reranking": record(
        id=TEXT,
        object=is_exactly("list"),
        model=TEXT,
        results=list_of(
            record(
                index=WHOLE,
                relevance_score=NUMBER,
                document=absent_or(record(text=TEXT)),
                truncated=_CUT,
            )
        ),
        usage=ref("PairUsage"),
        meta=record(api_version=record(version=TEXT), billed_units=record(search_units=WHOLE)),
    ),
    "Scores": record(
        id=TEXT,
        object=is_exactly("list"),
        created=WHOLE,
        model=TEXT,
        data=list_of(record(index=WHOLE, object=is_exactly("score"), score=NUMBER, truncated=_CUT)),
        usage=ref("PairUsage"),
    ),
    "Classification": record(
        id=TEXT,
        object=is_exactly("list"),
        created=WHOLE,
        model=TEXT,
        data=list_of(
            record(
                index=WHOLE,
                label=or_null(TEXT),
                probs=list_of(NUMBER),
                num_classes=WHOLE,
                labels=absent_or(list_of(TEXT)),
                truncated=_CUT,
            )
        ),
        usage=_USED,
    ),
}
ROUTES: Final[dict[str, Answers]] = {
    "POST /v1/embeddings": Answers(ref("Embeddings")),
    "POST /v1/decisions": Answers(ref("Decision")),
    "POST /v1/systemone": Answers(ref("Systemone")),
    "POST /v1/rerank": _RERANKED,
    "POST /v2/rerank": _RERANKED,
    "POST /v1/score": Answers(ref("Scores")),
    "POST /v1/classify": Answers(ref("Classification")),
}
