"""Lark grammars as regular expressions: what they match, and what can't be one."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.http.schemas.tools.custom_tools import CustomDefinition
from gateway.http.schemas.tools.lark_regex import (
    MAX_DEPTH,
    Expressions,
    NotRegularError,
    PlainSpelling,
    as_regex,
)
from gateway.http.schemas.tools.lark_tokens import LarkError, Token, definition, statements
from tests.fakes.client_requests import APPLY_PATCH_LARK

MOST = 10_000
SUMS = """
// As OpenAI's guide writes one.
start: expr
expr: term (SP ADD SP term)* -> add
    | term
?term.2: factor (SP MUL SP factor)* -> mul
    | factor
factor:
    INT
SP: " "
ADD: "+"
MUL: "*"  # a comment
%import common.INT
"""


def matches(grammar: str, text: str) -> bool:
    return re.fullmatch(as_regex(grammar, MOST), text) is not None


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (SUMS, "4 + 4 * 12", "4 +"),
        ('start: "a"i "b"', "Ab", "AB"),
        ('start: "a".."c"~2..3', "abc", "abca"),
        ('start: "a"~2 ["b"]', "aab", "ab"),
        ("start: /a.c/s /[\\/]/", "a\nc/", "ac/"),
        ('start: A | B\nA: "x"\nB: "y" "z"*', "yzz", "xz"),
        ('start: ("a" | "b")+ "."?', "abab.", "abab.."),
        (r'start: "\n\t\\\"\x41"', '\n\t\\"A', "n"),
        ('start: "a" (\n  "b"\n| "c"\n)\n', "ac", "a"),
        ("start: NAME\n%import common.CNAME -> NAME", "_a1", "1a"),
        ("start: WORD WS_INLINE NUMBER\n%import common (WORD, WS_INLINE, NUMBER)", "a  1.5", "a1"),
    ],
)
def test_a_grammar_matches_what_its_expression_does(grammar: str, good: str, bad: str) -> None:
    assert matches(grammar, good)
    assert not matches(grammar, bad)


def test_patches_of_codex_are_held_to_its_grammar() -> None:
    patch = (
        "*** Begin Patch\n*** Add File: a.py\n+x = 1\n+\n*** Update File: b.py\n*** Move to: c.py\n"
        "@@ def f\n-a\n+b\n c\n*** End of File\n*** Delete File: d.py\n*** End Patch\n"
    )
    assert matches(APPLY_PATCH_LARK, patch)
    assert not matches(APPLY_PATCH_LARK, patch.replace("+x", "x"))
    assert not matches(APPLY_PATCH_LARK, "*** Begin Patch\n*** End Patch\n")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('start: "a" start', "line 1: the rule `start` contains itself"),
        ('start: a\na: b\nb: a | "x"', "line 2: the rule `a` contains itself"),
        ('start: "a"\n%ignore " "', "line 2: `%ignore`"),
        ('start: list{"a"}', "line 1: `list` is used as a template"),
        ('start: "a"\nlist{x}: x', "line 2: `list` is a template"),
        ("start: " + "(" * (MAX_DEPTH + 1), "nested deeper"),
        (
            'start: r0\nr99: "a"\n' + "\n".join(f"r{n}: r{n + 1}" for n in range(99)),
            "nested deeper",
        ),
        (
            'start: r0\nr20: "a"\n' + "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(20)),
            "more than",
        ),
    ],
)
def test_what_is_more_than_an_expression_is_told(grammar: str, reason: str) -> None:
    with pytest.raises(NotRegularError, match=re.escape(reason)):
        as_regex(grammar, MOST)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("start: missing", "line 1: there is no rule `missing`"),
        ('other: "a"', "no rule `start`"),
        (
            "start: X\n%import python.X",
            "line 2: `%import python . X` is not supported: import from",
        ),
        ("start: X\n%import common.X", "line 2: `common` has no `X`"),
        ('start: "a"\n%declare X', "line 2: `%declare` is not supported"),
        ('start: ("a"', "line 1: a bracket isn't closed"),
        ('start: "b".."a"', "line 1: a range goes from one character to a later one"),
        ('start: "a"~3..2', "line 1: `~3..2` ends before it begins"),
        (r'start: "\ud83d"', r"line 1: there is no character \ud83d"),
        ("start: /a/l", "flags `l`"),
        ('start: "a"\nstart: "b"', "line 2: `start` is defined twice"),
        ('start: ""', "empty string"),
        ("start: ;", "line 1 can't be read"),
        ('start: "a"~12345', "four digits"),
        ("%import", "not supported"),
        (")", "line 1: a rule is expected"),
        ('\nstart "a"', "line 2: a rule is expected"),
    ],
)
def test_what_is_no_grammar_is_told(grammar: str, reason: str) -> None:
    with pytest.raises(LarkError, match=re.escape(reason)) as raised:
        as_regex(grammar, MOST)
    assert not isinstance(raised.value, NotRegularError)


class Counted(list[Token]):
    """A list that counts what is copied out of it."""

    num_copied = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if not isinstance(index, slice):
            return found
        Counted.num_copied += len(found)
        return Counted(found)


def test_the_marks_before_a_rule_are_skipped_at_once() -> None:
    (statement,) = statements("!?" * 5000 + 'start: "a"')
    rules = Expressions(MOST, PlainSpelling())
    Counted.num_copied = 0
    rules.add(definition(Counted(statement)))
    assert rules.of("start") == "a"
    assert Counted.num_copied < 10


def test_a_long_rule_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    fits = Expressions.fits

    def noted(self: Any, text: str) -> str:
        written.append(len(text))
        return fits(self, text)

    monkeypatch.setattr(Expressions, "fits", noted)
    assert matches('start: "x"' + ' "x"' * 1999, "x" * 2000)
    assert sum(written) <= 2 * 2000


def test_alternatives_are_counted_before_they_are_joined() -> None:
    long = "x" * (MOST - 10)
    rules = Expressions(MOST, PlainSpelling())
    for line in statements(f'start: {"A | " * 500} A | B\nA: "{long}"\nB: "b"'):
        rules.add(definition(line))
    with pytest.raises(LarkError, match="more than"):
        rules.of("start")
    assert "B" not in rules._made  # given up long before


def test_nesting_of_one_kind_within_another_ends_in_words() -> None:
    brackets = "(" * 62 + "/" + "(" * MAX_DEPTH + "y" + ")" * MAX_DEPTH + "/" + ")" * 62
    rule = "(" * MAX_DEPTH + "A" + ")" * MAX_DEPTH
    grammar = {"syntax": "lark", "definition": f'start: start "b" | {rule}\nA: {brackets}'}
    tool = {"name": "t", "format": {"type": "grammar", "grammar": grammar}}
    with pytest.raises(ValidationError, match="nested too deeply"):
        CustomDefinition.model_validate(tool)


def test_brackets_and_rules_are_nested_up_to_one_depth() -> None:
    brackets = MAX_DEPTH // 4
    inner, outer = "(" * brackets, ")" * brackets
    rules = "\n".join(f"r{n}: {inner} r{n + 1} {outer}" for n in range(6))
    with pytest.raises(LarkError, match="nested deeper than 64 levels"):
        as_regex(f'start: r0\n{rules}\nr6: "a"', MOST)
    assert matches(f'start: r0 r0\nr0: {inner} r1 {outer}\nr1: {inner} "a" {outer}', "aa")


@given(st.text(min_size=1).filter(str.isprintable))
def test_a_string_matches_itself_alone(text: str) -> None:
    grammar = f"start: {json.dumps(text, ensure_ascii=False)}"
    assert matches(grammar, text)
    assert not matches(grammar, text + "x")


@given(st.text(alphabet='start:a|()[]?*+~."/%->\n1 \\', max_size=60))
def test_any_text_is_an_expression_or_a_clear_error(text: str) -> None:
    try:
        made = as_regex(f"start: {text}", MOST)
    except LarkError as error:
        assert str(error)  # noqa: PT017 - either is fine
    else:
        assert len(made) <= MOST
