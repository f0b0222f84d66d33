"""Pairs of texts become rows as transformers makes them: template, types, longest first."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing

from engine_worker.embedding.inputs import InputReader, longest_first
from engine_worker.errors import BEFORE, ContextLengthError
from engine_worker.text.tokenizer import Tokenizer
from engine_worker.text.tokenizer_files import TokenizerFiles
from tests.fakes.late import transformers

WORDS = [f"w{number}" for number in range(20)]
SPECIAL = {"[CLS]": 0, "[SEP]": 1}
PROCESSORS = {
    "bert": BertProcessing(("[SEP]", 1), ("[CLS]", 0)),
    "roberta": RobertaProcessing(("[SEP]", 1), ("[CLS]", 0)),
    "template": TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    ),
    "none": None,
}


def backend_of(name: str) -> Any:
    vocabulary = SPECIAL | {word: 2 + number for number, word in enumerate(WORDS)}
    backend = Backend(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    if PROCESSORS[name] is not None:
        backend.post_processor = PROCESSORS[name]
    return backend


def reader_of(name: str, max_tokens: int) -> InputReader:
    files = TokenizerFiles(backend_of(name), {}, None)
    return InputReader(Tokenizer(files, frozenset()), 100, max_tokens)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pairs_are_joined_and_cut_as_by_transformers(name: str) -> None:
    rng = random.Random(5)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend_of(name))
    for _ in range(200):
        first, second = (
            " ".join(rng.choice(WORDS) for _ in range(rng.randrange(12))) for _ in range(2)
        )
        limit = rng.randrange(8, 24)
        reader = reader_of(name, 24)
        row = reader.pair(
            reader.part(first, 0, limit), reader.part(second, 0, limit), 0, limit, None
        )
        expected = theirs(
            # In lists: by themselves an empty second text makes no pair.
            [first],
            [second],
            truncation="longest_first",
            max_length=limit,
            return_token_type_ids=True,
        )
        assert row.token_ids == expected["input_ids"][0]
        assert row.type_ids == expected["token_type_ids"][0]
        whole = theirs([first], [second])["input_ids"][0]
        assert row.is_cut == (len(whole) > limit)


def test_a_second_text_has_a_bound_of_its_own() -> None:
    reader = reader_of("bert", 24)
    row = reader.pair(
        reader.part("w1 w2", 0, 24), reader.part("w3 w4 w5", 0, 24), 0, 24, max_second=2
    )
    assert row.token_ids == [0, 3, 4, 1, 5, 6, 1]
    assert (row.type_ids, row.is_cut) == ([0, 0, 0, 0, 1, 1, 1], True)


def test_a_pair_that_is_not_to_be_cut_is_refused_with_its_length() -> None:
    reader = reader_of("bert", 6)
    parts = reader.part("w1 w2", 0, None), reader.part("w3 w4", 0, None)
    with pytest.raises(ContextLengthError, match="6 tokens, but input 3 has 7"):
        reader.pair(*parts, 3, None, None)


@pytest.mark.parametrize(
    ("first", "second", "param"),
    [
        ("w1 w2 w3", "w4", BEFORE),  # with nothing beside it, it would fill the context
        ("w1 w2", "w3 w4", "input"),
        ("w1 " * 10_000, "w4", BEFORE),
        ("w1", "w4 " * 10_000, "input"),
    ],
)
def test_of_a_pair_that_is_too_long_it_is_said_which_text_is(
    first: str, second: str, param: str
) -> None:
    reader = reader_of("bert", 6)
    with pytest.raises(ContextLengthError) as refused:
        part = reader.part(first, 0, None, BEFORE)
        reader.pair(part, reader.part(second, 0, None), 0, None, None)
    assert refused.value.param == param


def test_a_limit_below_what_joins_a_pair_still_gives_a_row() -> None:
    reader = reader_of("bert", 24)
    row = reader.pair(reader.part("w1", 0, 2), reader.part("w2", 0, 2), 0, 2, None)
    assert row.token_ids == [0, 1]


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [((10, 2), 8, (6, 2)), ((2, 10), 8, (2, 6)), ((9, 9), 7, (3, 4)), ((9, 3), 4, (2, 2))],
)
def test_the_longer_text_loses_tokens_first(
    lengths: tuple[int, int], most: int, expected: tuple[int, int]
) -> None:
    assert longest_first(*lengths, most) == expected
