"""What of a context that is too long is left out, with `truncation: auto`."""

from typing import Any

import orjson

from gateway.http.openresponses.stored_items import Context

Item = dict[str, Any]


def said(role: str, text: str) -> Item:
    return {"type": "message", "role": role, "content": text}


CALL: Item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT: Item = {"type": "function_call_output", "call_id": "c", "output": "x"}


def selected(own: list[Item], before: list[Item], most: int | None) -> tuple[list[Item], Context]:
    told: Item = {"items": before, "references": {}, "most": most, "progress": None}
    context = Context(b"", orjson.dumps(told))
    return context.select(own, truncates=True), context


def test_what_the_system_and_the_developer_say_is_never_left_out() -> None:
    rules, more = said("system", "rules"), said("developer", "more rules")
    asked, answered = said("user", "one"), said("assistant", "first")
    before = [rules, asked, CALL, OUTPUT, answered, more, said("user", "two")]
    last = said("user", "three")
    whole, context = selected([last], before, None)
    assert (whole, context.num_left_out, context.num_before) == ([*before, last], 0, 7)
    found, context = selected([last], before, context.num_bytes - 1)
    assert found == [rules, more, said("user", "two"), last]
    # Places of the request's own items are counted from there.
    assert (context.num_left_out, context.num_before) == (4, 3)
    assert context.num_bytes == sum(len(orjson.dumps(item)) for item in found)
    found, context = selected([last], before, 1)
    assert found == [rules, more, last]
    assert (context.num_left_out, context.num_before) == (5, 2)


def test_rules_at_the_end_are_no_turn_that_costs_the_question() -> None:
    asked, rules = said("user", "What is it?"), said("developer", "Be brief.")
    assert selected([said("user", "x"), asked, rules], [], 1)[0] == [asked, rules]
    assert selected([asked, rules], [], 1)[0] == [asked, rules]
