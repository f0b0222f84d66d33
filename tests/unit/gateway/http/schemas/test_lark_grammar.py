"""Whole Lark grammars as rules over terminals: recursion, `%ignore`, templates; what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.schemas.tools.lark_grammar import MAX_RULES, LarkGrammar, as_grammar
from gateway.http.schemas.tools.lark_regex import MAX_DEPTH
from gateway.http.schemas.tools.lark_tokens import LarkError

MOST = 10_000


def rules_of(grammar: str) -> LarkGrammar:
    return as_grammar(grammar, MOST)


def test_a_rule_may_contain_itself() -> None:
    made = rules_of('start: "(" start ")" | WORD\nWORD: /[a-z]+/')
    assert made.rules == ("R1", "(T0 R1 T1 | T2)")
    assert [plain for plain, _ in made.terminals] == [r"\(", r"\)", "(?:[a-z]+)"]


def test_what_is_ignored_may_stand_first_and_behind_every_terminal() -> None:
    made = rules_of('start: "a" start?\n%ignore " "\n%ignore /\\n/')
    assert made.rules == ("R1 R2", "(T0 | T1)*", "(T2 R1) (R2)?")


def test_a_template_is_written_out_for_each_of_its_arguments() -> None:
    made = rules_of(
        'start: _list{"a"} _list{B} _list{"a"}\n_list{x}: x _rest{x, ","}*\n'
        '_rest{item, sep}: sep item\nB: "b"'
    )
    assert made.rules[1].split() == ["R2", "R3", "R2"]
    assert sorted(made.rules[2:]) == ["T0 (R5)*", "T1 (R4)*", "T2 T0", "T2 T1"]


def test_the_same_terminal_is_told_once() -> None:
    assert len(rules_of('start: "a" start "a" | A\nA: "a"').terminals) == 1


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ('"a"~0 start?', '"" (R1)?'),
        ('"a"~2..3 start?', "(T0){2,3} (R1)?"),
        ('["a"] start?', "(T0)? (R1)?"),
        ('("a" | ) start?', '((T0 | "")) (R1)?'),
        ('"a" -> one | start', "(T0 | R1)"),
        ('"a" (\n"b"\n|  start)', "T0 ((T1 | R1))"),
    ],
)
def test_bodies_are_those_of_the_engine_s_language(written: str, made: str) -> None:
    assert rules_of(f"start: {written}").rules[1] == made


def test_priorities_and_marks_of_trees_say_nothing_of_texts() -> None:
    assert rules_of('?start.2: "a" b\n!b: start\n_C.3: "c"') == rules_of('start: "a" b\nb: start')


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("start: a\n\na: b", "line 3: there is no rule `b`"),
        ("start: a\na: B start", "line 2: there is no terminal `B`"),
        ('start: start "x"\n%declare A', "line 2: `%declare` is not supported"),
        ('start: start "x"\n%extend start: "y"', "line 2: `%extend` is not supported"),
        ('start: start "x"\n%override start: "y"', "line 2: `%override` is not supported"),
        ("start: start A\n%import .other.A", "line 2: `%import . other . A` is not supported"),
        ('start: A start\nA{x}: "x"', "line 2: the terminal `A` is a template"),
        ("start: a{start}\na{x, y}: x y", "line 1: the template `a` has 2 parameters, not 1"),
        ("start: a{start\na{x}: x", "line 1: the `{` of a template isn't closed"),
        ("start: a start\na{x}: x", "line 1: the template `a` has 1 parameters, not 0"),
        ("start: A start\nA: B\nB: A", "line 2: the rule `A` contains itself"),
        ('start: A start\nA: b\nb: "b"', "line 2: there is no rule `b`"),
        ('start: start "x"\nstart: "y"', "line 2: `start` is defined twice"),
        ("start: start " + "(" * (MAX_DEPTH + 1), "brackets are nested deeper than 64 levels"),
        ("start: start\n  | /(?=a)b/", "line 2: an expression has the group `(?=a`"),
        ("start: start /^a/", "line 1: an expression has the anchor `^`"),
        ('start: a{"x"}\na{x}: a{(x "x")}', f"more than {MAX_RULES} rules"),
        (
            "start: start | " + "a{" * 3000 + '"b"' + "}" * 3000 + "\na{x}: x",
            "line 1: arguments of templates are nested deeper than 64 levels",
        ),
        ("start: start /(?-u:\\w)/", "line 1: an expression has the group `(?-u`"),
        ("start: start /\\<a/", "line 1: an expression has `\\<`"),
        ("start: start" + ' "x"' * MOST, f"more than {MOST} characters"),
        ("start: start /[a-z]{9}/ " + f'"{"x" * MOST}"', f"more than {MOST} characters"),
    ],
)
def test_what_is_not_supported_is_named_with_its_line(grammar: str, reason: str) -> None:
    with pytest.raises(LarkError, match=re.escape(reason)):
        as_grammar(grammar, MOST if "rules" not in reason else 10**7)


@given(st.text(alphabet='start:aA|()[]?*+~."/%->\n1 \\{},', max_size=60))
def test_any_text_is_a_grammar_or_a_clear_error(text: str) -> None:
    try:
        made = as_grammar(f"start: {text}", MOST)
    except LarkError as error:
        assert str(error)  # noqa: PT017 - either is fine
    else:
        assert sum(map(len, made.rules)) <= MOST
