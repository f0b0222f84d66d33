"""How values that a schema lets through are written: digits, control characters, members' order."""

import json

import pytest

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.json_schema.compiler import schema_rules
from tests.unit.engine_worker.grammar.test_json_schema import compiled, holds


def test_multiples_are_told_for_any_digits() -> None:
    schema = {"enum": [1e19, 1e30, 0.3, 1e-11], "multipleOf": 1e-10}
    assert [text for text in ("1e19", "1e30", "0.3") if not holds(schema, text)] == []
    assert not holds(schema, "1e-11")


def test_what_leads_nowhere_is_left_out_where_something_else_does() -> None:
    schema = {
        "type": "object",
        "properties": {"self": {"$ref": "#/$defs/endless"}, "a": {"const": 1}},
        "additionalProperties": False,
        "$defs": {
            "endless": {"type": "array", "items": {"$ref": "#/$defs/endless"}, "minItems": 1}
        },
    }
    assert holds(schema, '{"a": 1}')
    assert not holds(schema, '{"self": [[')


@pytest.mark.parametrize(
    "number",
    [
        "9007199254740993",
        "1234567890123456789",
        "-9223372036854775808",
        "123456789.12345679",
        "0.1000",
    ],
)
def test_numbers_keep_their_digits(number: str) -> None:
    for schema in (f'{{"const": {number}}}', f'{{"enum": ["x", {number}]}}'):
        assert holds(schema, number)
        assert not holds(schema, number[:-1] + "7")


@pytest.mark.parametrize("number", ["1e1000", "1e-1000", "1e" + "9" * 30, "9" * 1001])
def test_a_number_of_too_many_digits_is_refused(number: str) -> None:
    with pytest.raises(UnsupportedGrammarError, match="more than 1000 digits"):
        schema_rules(f'{{"enum": ["x", {number}]}}')
    assert schema_rules('{"enum": [1e999, 1e-999]}').lark


CONTROLS = "".join(map(chr, [*range(32), 127]))


@pytest.mark.parametrize("character", CONTROLS, ids=ascii)
def test_a_control_character_is_written_in_one_way(character: str) -> None:
    """Each of a text's ways would be another name, or pass where the text is forbidden."""
    written = json.dumps(character)[1:-1].replace("\x7f", "\\u007f")
    other = (
        written.upper().replace("\\U", "\\u") if "u" in written else f"\\u00{ord(character):02x}"
    )
    schema = {
        "properties": {f"a{character}b": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
        "type": "object",
    }
    assert holds(schema, f'{{"a{written}b": 1}}')
    forbidding = {"type": "string", "not": {"const": character}}
    for spelling in dict.fromkeys((written, other)):
        assert not holds(schema, f'{{"a{spelling}b": "x"}}')
        assert not holds(forbidding, f'"{spelling}"')
    assert holds(forbidding, f'"{written}{written}"')
    assert holds({"const": character}, f'"{written}"')
    assert not holds({"propertyNames": {"not": {"const": character}}}, f'{{"{written}": 1}}')


def test_half_of_a_surrogate_pair_is_written_as_its_escape() -> None:
    assert holds({"enum": ["\ud800", "x"]}, '"\\ud800"')
    for schema in (
        {"properties": {"\ud800": {}}, "patternProperties": {"^a$": {"type": "null"}}},
        {"type": "string", "not": {"const": "\ud800"}},
        {"type": "object", "propertyNames": {"not": {"const": "\ud800"}}},
    ):
        assert compiled(schema)


def test_members_come_in_the_order_of_properties_those_of_branches_behind() -> None:
    schema = {
        "allOf": [{"properties": {"z": {}}}],
        "anyOf": [{"properties": {"y": {}}}],
        "properties": {"b": {}, "a": {}},
        "required": ["q", "a"],
    }
    assert holds(schema, '{"b": 1, "a": 1, "z": 1, "y": 1, "q": 1, "free": 1}')
    assert not holds(schema, '{"z": 1, "b": 1, "a": 1, "q": 1}')


@pytest.mark.parametrize("low", ["-120.5", "-7", "-0.05", "0", "0.3", "9", "10", "99.99"])
@pytest.mark.parametrize("is_left_out", [False, True])
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_numbers_between_bounds_are_told_by_every_digit(
    low: str, is_left_out: bool, kind: str
) -> None:
    lower = {"exclusiveMinimum" if is_left_out else "minimum": float(low)}
    upper = {"exclusiveMaximum" if is_left_out else "maximum": -float(low)}
    for number in [n / 20 for n in range(-2500, 2500, 7)]:
        text = f"{number:.2f}" if kind == "number" else f"{round(number)}"
        value = float(text)
        if text.startswith("-0") and not value:
            continue
        is_above = value > float(low) if is_left_out else value >= float(low)
        assert holds({"type": kind, **lower}, text) is is_above, text
        is_below = value < -float(low) if is_left_out else value <= -float(low)
        assert holds({"type": kind, **upper}, text) is is_below, text
