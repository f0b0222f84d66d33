"""Finds out, by rendering short conversations, which of them a chat template can take."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

from engine_worker.text.history import (
    REASONING,
    HistoryRules,
    JsonObject,
    LineBreaks,
    shaped,
)

Render = Callable[[list[JsonObject]], str | None]
"""The text of a conversation; None when the template refuses it."""

_BRIDGE: Final = "OK."
"""What the assistant says where it has to say something."""


def probe_rules(
    render: Render,
    *,
    developer: bool,
    null_content: bool,
    argument_objects: bool,
    call_tags: bool = False,
) -> HistoryRules:
    """Find out what a template can take.

    Args:
        render: By the template.
        developer: Its source has the word, which may mean something else.
        null_content: See `HistoryRules`, as the next; read from its source.
        argument_objects: Found by rendering a call.
        call_tags: It tells the model to write calls between `<tool_call>` tags.
    """

    def shows(*turns: tuple[str, str]) -> bool:
        """Whether the texts of a conversation come out in their order."""
        text = render([{"role": role, "content": content} for role, content in turns])
        place = 0
        for _, content in turns:
            place = -1 if text is None else text.find(content, place)
            if place < 0:
                return False
        return True

    known = HistoryRules(
        developer=developer, null_content=null_content, argument_objects=argument_objects
    )
    first, second = ("user", "probe-u1"), ("user", "probe-u2")
    answer, system = ("assistant", "probe-a1"), ("system", "probe-s1")
    if not shows(first, answer, second):
        # A template that shows no plain conversation tells nothing about others.
        return known
    takes_system = shows(system, first)
    takes_developer = developer and shows(("developer", "probe-d1"), first)
    late = ("system", "probe-s2")
    return HistoryRules(
        developer=takes_developer,
        null_content=null_content,
        argument_objects=argument_objects,
        calls="shown" if shows_calls(render, known) else "tagged" if call_tags else "text",
        results=_shows_results(render, known),
        system=takes_system,
        lone_system=shows(system),
        late_system=takes_system and shows(system, first, answer, late, second),
        repeats=shows(first, second) and shows(first, answer, ("assistant", "probe-a2"), second),
        opening_answer=shows(answer, first),
        empty_answer=shows(first, ("assistant", ""), second),
        bridge=_bridge(render, known),
        ids=_ids_of_calls(render, known),
        several_calls=_shows_several_calls(render, known),
        text_beside_reasoning=_takes_text_beside_reasoning(render, known),
    )


def wants_argument_texts(render: Render, *, null_content: bool) -> bool:
    """Whether arguments of calls have to be JSON text, not objects.

    Args:
        render: By the template.
        null_content: See `HistoryRules`.
    """

    def shown(arguments: str | JsonObject) -> str:
        function = {"name": "f", "arguments": arguments}
        call = {"id": "call_000000000", "type": "function", "function": function}
        content = None if null_content else ""
        answer = {"role": "assistant", "content": content, "tool_calls": [call]}
        return render([{"role": "user", "content": "?"}, answer]) or ""

    probe = {"penstock_probe": "1"}
    as_object = shown(probe)
    # An object may be spelt in a way of the model's own, but not as Python writes it.
    is_spelt = "penstock_probe" in as_object and repr(probe) not in as_object
    return not is_spelt and json.dumps(probe) in shown(json.dumps(probe))


def shows_calls(render: Render, rules: HistoryRules) -> bool:
    """Whether a call is seen in the prompt: its tool, or its id."""
    *call, _result = shaped(_with_calls("abcdefghi"), rules)
    text = render(call)
    return text is not None and ("probe_f0" in text or "abcdefghi" in text)


def with_place_of_text(render: Render, rules: HistoryRules) -> HistoryRules:
    """The rules with where the prompt has what the assistant says beside calls, with the calls.

    Args:
        render: By the template.
        rules: All others.
    """
    # Twice: some templates write the first calls of a conversation otherwise than all later ones.
    question, first, result = _with_calls("abcdefghi")
    _, second, other = _with_calls("jklmnopqr")
    first, second = {**first, "content": "probe-t1"}, {**second, "content": "probe-t2"}
    turn = [question, first, result, second, other]
    texts = ("probe-t1", "probe-t2")

    def shows(turns: list[JsonObject], rules: HistoryRules, *wanted: str) -> bool:
        """Whether texts come out in their order, and both calls."""
        prompt = render(shaped(turns, rules)) or ""
        places = list(map(prompt.find, wanted))
        has_calls = prompt.count("probe_f0") >= 2 or all(
            one in prompt for one in ("abcdefghi", "jklmnopqr")
        )
        return has_calls and places == sorted(places) and places[0] >= 0

    # Templates that take it for reasoning (gpt-oss) leave it out later, and mean to.
    if shows(turn, rules, *texts) or not shows_calls(render, rules):
        return rules
    answered = [*turn, {"role": "assistant", "content": "probe-a1"}]
    before = replace(rules, text_beside_calls="before")
    if shows(answered, before, *texts, "probe-a1"):
        return before
    after = replace(rules, text_beside_calls="after")
    if not shows(answered, after, *texts, "probe-a1"):
        return rules
    waiting = replace(after, waiting_text=True)
    return waiting if shows(turn, waiting, texts[0]) else after


def line_breaks(render: Render, rules: HistoryRules) -> LineBreaks:
    """Those that the template writes.

    Args:
        render: By the template.
        rules: All others.
    """
    question, calls, result = _with_calls("abcdefghi")
    text, thought = {"content": "probe-t1"}, dict.fromkeys(REASONING, "probe-r1")

    def shown(*turns: JsonObject) -> str:
        return render(shaped([question, *turns], rules)) or ""

    beside = shown({**calls, **text}, result)
    # Where both become one text, the breaks between them are ours.
    said = text if rules.text_beside_reasoning else {"content": ""}
    prompts = [
        shown({**calls, **said, **thought}, result),
        shown({"role": "assistant", **text, **thought}),
    ]
    thinking = next((prompt for prompt in prompts if "probe-r1" in prompt), "")
    head, _, tail = thinking.partition("probe-r1")
    between, has_text, _ = tail.partition("probe-t1")
    behind = beside.partition("probe-t1")[2] if rules.text_beside_calls == "shown" else ""
    return LineBreaks(
        before_reasoning=len(head) - len(head.rstrip("\n")),
        after_reasoning=len(tail) - len(tail.lstrip("\n")),
        before_text=len(between) - len(between.rstrip("\n")) if has_text else 0,
        after_text=len(behind) - len(behind.lstrip("\n")),
    )


def _shows_results(render: Render, rules: HistoryRules) -> bool:
    text = render(shaped(_with_calls("abcdefghi"), rules))
    return text is not None and "probe-r0" in text


def _bridge(render: Render, rules: HistoryRules) -> str | None:
    """What has to stand between results of tools and the user's next message."""
    before = shaped(_with_calls("abcdefghi"), rules)
    after = {"role": "user", "content": "probe-u2"}

    def shows(*between: JsonObject) -> bool:
        text = render([*before, *between, after])
        return text is not None and after["content"] in text

    if shows():
        return None
    texts = ("", _BRIDGE)
    return next((one for one in texts if shows({"role": "assistant", "content": one})), None)


def _ids_of_calls(render: Render, rules: HistoryRules) -> Literal["any", "short", "named"]:
    """Which ids of tool calls the template can take."""
    if render(shaped(_with_calls("abcdefghi"), rules)) is None:
        return "any"  # it takes none
    if not all(render(shaped(_with_calls(one), rules)) for one in ("call_0123456789abcdef", "1")):
        return "short"
    *call, _result = shaped(_with_calls("abcdefghi"), rules)
    text = render(call)
    is_named = text is not None and "abcdefghi" in text and "probe_f0" not in text
    return "named" if is_named else "any"


def _shows_several_calls(render: Render, rules: HistoryRules) -> bool:
    one = render(shaped(_with_calls("abcdefghi"), rules))
    if one is None:
        return True  # nor does it take a single one
    several = render(shaped(_with_calls("abcdefghi", "jklmnopqr"), rules))
    return several is not None and ("probe_f1" in several or "probe_f0" not in one)


def _takes_text_beside_reasoning(render: Render, rules: HistoryRules) -> bool:
    question, answer, result = shaped(_with_calls("abcdefghi"), rules)
    answer = {**answer, **dict.fromkeys(REASONING, "probe-r1")}
    alone = render([question, {**answer, "content": ""}, result])
    return alone is None or render([question, {**answer, "content": "!"}, result]) is not None


def _with_calls(*ids: str) -> list[JsonObject]:
    """A question, one message with calls of these ids, and their results."""
    functions = [{"name": f"probe_f{number}", "arguments": "{}"} for number in range(len(ids))]
    calls = [
        {"id": call_id, "type": "function", "function": function}
        for call_id, function in zip(ids, functions, strict=True)
    ]
    results = [
        {"role": "tool", "content": f"probe-r{number}", "tool_call_id": call_id}
        for number, call_id in enumerate(ids)
    ]
    for result, function in zip(results, functions, strict=True):
        result["name"] = function["name"]
    question = {"role": "user", "content": "?"}
    return [question, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
