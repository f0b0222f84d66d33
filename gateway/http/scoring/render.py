"""What an engine scored, as the answers of decisions."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from gateway.http.scoring.convert import Asked, DecisionBody
from gateway.http.scoring.probabilities import (
    choice_confidence,
    expected_level,
    label_mass,
    probabilities,
    score_confidence,
    shown,
)
from protocol.wire.messages import Scored, Usage


def logprobs_of(scored: Scored) -> list[float]:
    """The numbers of an answer, label by label.

    Raises:
        ValueError: They are no whole numbers of floats.
    """
    if len(scored.logprobs) % 4:
        raise ValueError("log probabilities have four bytes each")
    values = array("f")
    values.frombytes(scored.logprobs)
    if values.itemsize != 4:
        raise ValueError("this machine's floats have other sizes")
    if memoryview(b"\1\0").cast("h")[0] != 1:
        values.byteswap()
    return values.tolist()


def by_question(scored: Scored, asked: Sequence[Asked]) -> Iterator[list[float]]:
    """The log probabilities of each question's labels."""
    logprobs, first = logprobs_of(scored), 0
    for one in asked:
        yield logprobs[first : first + one.num_labels]
        first += one.num_labels


def decision(scored: Scored, body: DecisionBody, usage: Usage) -> bytes:
    """The answer of /v1/decisions."""
    answers = [
        _answer(one, probabilities(logprobs))
        for one, logprobs in zip(body.asked, by_question(scored, body.asked), strict=True)
    ]
    return orjson.dumps(
        {
            "model": body.model,
            "answers": answers,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens,
            },
        }
    )


def _answer(one: Asked, chances: list[float]) -> dict[str, Any]:
    if one.kind == "predicate":
        return {"type": "predicate", "name": one.name, "probability": shown(chances[0])}
    if one.kind == "choice":
        return {
            "type": "choice",
            "name": one.name,
            "choice": one.values[chances.index(max(chances))],
            "confidence": shown(choice_confidence(chances)),
            "probabilities": [
                {"value": value, "probability": shown(chance)}
                for value, chance in zip(one.values, chances, strict=True)
            ],
        }
    return {
        "type": "score",
        "name": one.name,
        "score": shown(expected_level(chances)),
        "confidence": shown(score_confidence(chances)),
        "probabilities": [
            {"value": number, "label": label, "probability": shown(chance)}
            for number, (label, chance) in enumerate(zip(one.values, chances, strict=True))
        ],
    }


def systemone(scored: Scored, body: DecisionBody, usage: Usage) -> bytes:
    """The answer of /v1/systemone."""
    answers = {
        one.name: _systemone_answer(one, logprobs)
        for one, logprobs in zip(body.asked, by_question(scored, body.asked), strict=True)
    }
    counted = {"input_tokens": usage.prompt_tokens, "output_tokens": 0}
    return orjson.dumps({"model": body.model, "answers": answers, "usage": counted})


def _systemone_answer(one: Asked, logprobs: list[float]) -> dict[str, Any]:
    chances = probabilities(logprobs)
    mass = {"x_label_mass": shown(label_mass(logprobs))}
    if one.kind == "predicate":
        return {"type": "noul", "noul": shown(chances[0]), **mass}
    if one.kind == "choice":
        return {
            "type": "choice",
            "choice": one.values[chances.index(max(chances))],
            "confidence": shown(choice_confidence(chances)),
            "probabilities": {
                str(value): shown(chance) for value, chance in zip(one.values, chances, strict=True)
            },
            **mass,
        }
    return {
        "type": "score",
        "score": shown(expected_level(chances)),
        "legend": {str(number): text for number, text in enumerate(one.values)},
        "confidence": shown(score_confidence(chances)),
        "probabilities": {str(number): shown(chance) for number, chance in enumerate(chances)},
        **mass,
    }


def lowest_mass(scored: Scored, asked: Sequence[Asked]) -> float:
    """The label mass of the question whose labels fit least."""
    return min(map(label_mass, by_question(scored, asked)))
