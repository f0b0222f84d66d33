"""An expression over a JSON string's escapes matches what the expression itself does."""

import json
import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from engine_worker.grammar.vocabulary import GrammarVocabulary
from gateway.http.schemas.tools.json_spelling import JsonSpelling
from gateway.http.schemas.tools.lark_body import Literal
from gateway.http.schemas.tools.lark_regex import PlainSpelling
from gateway.http.schemas.tools.lark_tokens import LarkError
from tests.fakes.tiny_tokenizers import byte_level_tokenizer
from toolparser_worker.grammar.lark import regex

MOST = 10_000
TOKENIZER = byte_level_tokenizer()
VOCABULARY = GrammarVocabulary(TOKENIZER, TOKENIZER.num_tokens)
LITERALS = [
    Literal('a"\\b\n\x00/'),
    Literal("aB\n\\é", is_folded=True),
    Literal("\x01", last="z"),
    Literal(" ", last="!"),
    *(
        Literal(pattern=pattern)
        for pattern in (
            ".",
            "(?s:.)",
            r"[^a]",
            r"[\n\t]",
            r"[a-z\\\x22]",
            r"[\x00-\x{1f}]",
            r"\s",
            r"\S",
            r"\w\W",
            r"[^\w\s]",
            r"[[:cntrl:]&&[^\n]]",
            r"[\s--\n]",
            r"[]a]",
            r"[^]\]]",
            r"[a\-z]",
            r"[-a]",
            r"[--a]",
            r"[^--\\]",
            r"[-]a",
            r"\p{L}|\P{L}",
            r"[\p{Cc}]",
            r"[[:^punct:]]",
            r"a\n?|b\\+",
            r"(?i)b\n|(?-i:A)",
            r"(?i:[^b])",
            r"(?<x>a)(?P<y>\t){2,}?",
            "a{0,2}b{2}\\n{1,2}",
            r"(?x) a \  b",
            r"\u000a|\U0000000D|\x41",
            r'"|\\"',
        )
    ),
    Literal(pattern="A.", flags="is"),
]
TEXTS = st.text(alphabet='aAbB"\\\n\t\r\x00\x1f\x7f é/]-K', max_size=4)
EACH = [chr(code) for code in range(128)] + ["é", "K"]


@cache
def matcher(pattern: str) -> LLMatcher:
    made = LLMatcher(VOCABULARY.ll_tokenizer, f"start: {regex(pattern)}\n", log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def matches(pattern: str, text: str) -> bool:
    run = matcher(pattern).deep_copy()
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    return run.validate_tokens(tokens) == len(tokens) and (
        (not tokens or run.consume_tokens(tokens)) and (run.is_accepting() or run.is_stopped())
    )


def spelt(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


@pytest.mark.parametrize("literal", LITERALS, ids=repr)
def test_every_character_is_matched_by_both_or_neither(literal: Literal) -> None:
    plain, quoted = PlainSpelling().of(literal), JsonSpelling(MOST).of(literal)
    for text in (*EACH, literal.text, "aa\n", "a\t\t", "a b", "b\\\\", "é/"):
        assert matches(quoted, spelt(text)) is matches(plain, text), text


@given(literal=st.sampled_from(LITERALS), text=TEXTS)
def test_any_text_is_matched_by_both_or_neither(literal: Literal, text: str) -> None:
    plain, quoted = PlainSpelling().of(literal), JsonSpelling(MOST).of(literal)
    assert matches(quoted, spelt(text)) is matches(plain, text)


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\\u000A", "\\N", "\\/"])
def test_there_is_one_spelling_of_each_text(text: str) -> None:
    quoted = JsonSpelling(MOST).of(Literal(pattern="(?si:.)"))
    assert not matches(quoted, text)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a$", "the anchor `$`"),
        ("(?<=a)b", "the group `(?<=`"),
        (r"(a)\1", r"`\1`"),
        (r"\bx", r"`\b`"),
        (r"\p{Klingon}", r"the class `\p{Klingon}`, which is not known"),
        ("[[:odd:]]", "the class `[:odd:]`, which is not known"),
        ("(a", "a `(` that isn't closed"),
        ("a)", "a `)` too many"),
        ("[a", "a `[` that isn't closed"),
        ("[z-a]", "the range"),
        ("*a", "a `*` that repeats nothing"),
        ("a|+", "a `+` that repeats nothing"),
        ("a{,2}", "a `{` that repeats nothing"),
        ("{a", "a `{` that repeats nothing"),
        (r"\x{110000}", "no character"),
        ("(?x:[a b])", "white space in a class"),
        ("(" * 65 + ")" * 65, "nested deeper than 64 levels"),
        ("[" * 70, "nested deeper than 64 levels"),
        ("\\", "`\\`"),
        ("." * 100, "too many characters"),
    ],
)
def test_what_has_no_spelling_is_told_with_its_line(pattern: str, reason: str) -> None:
    with pytest.raises(LarkError, match=re.escape(reason)) as raised:
        JsonSpelling(MOST).of(Literal(pattern=pattern, line=7))
    assert str(raised.value).startswith("line 7: an expression has ")


@given(st.text(alphabet=r'ab[]()^-&~\\sdwpP{L}:*+?|.,1#x"', max_size=30))
def test_any_expression_is_spelt_or_a_clear_error(pattern: str) -> None:
    try:
        made = JsonSpelling(MOST).of(Literal(pattern=pattern)) if pattern else ""
    except LarkError as error:
        assert str(error)  # noqa: PT017 - either is fine
    else:
        assert len(made) <= 900 * (len(pattern) + 1)
