"""Events that are told again, and events that are told on from where an earlier attempt stopped."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import AnotherTextError, GatewayError
from gateway.http.openresponses.already_told import AlreadyTold
from gateway.http.openresponses.events import (
    HostedCallEnded,
    HostedCallRunning,
    ResponseEvent,
    ToolsListed,
    ToolsListing,
    TurnOver,
)
from gateway.http.openresponses.hosted import HostedTool
from gateway.http.openresponses.item_maker import ItemMaker
from gateway.http.openresponses.render import (
    ResponseEvents,
    ResponseHead,
    ToldEvent,
)
from gateway.http.openresponses.replay import replayed
from gateway.request.delivery.events import (
    ContentText,
    GenerationEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.wire.messages import TokenLogprob, TokenLogprobs, Usage
from tests.unit.gateway.http.openresponses.test_response_render import (
    EVENTS,
    HEAD,
    OPTIONS,
    maker,
    whole,
)

TEXTS = (ContentText, ReasoningText, ToolCallArguments)


def loaded(told: Sequence[ToldEvent]) -> list[dict[str, Any]]:
    return [orjson.loads(event.body) for event in told]


def streamed(events: Sequence[GenerationEvent]) -> list[dict[str, Any]]:
    teller = ResponseEvents(HEAD, maker())
    told = [one for event in events for one in teller.render([event])]
    return loaded([*told, *teller.finish(Usage())])


def test_a_replay_tells_what_a_stream_of_whole_texts_tells() -> None:
    response = whole(*EVENTS)
    told = loaded(replayed(orjson.dumps(response)))
    streamed_once = streamed(EVENTS)
    assert [event["type"] for event in told] == [
        kind
        for kind, before in zip(
            [one["type"] for one in streamed_once],
            [None, *(one["type"] for one in streamed_once)],
            strict=False,
        )
        if kind != before or not kind.endswith("delta")
    ]
    assert told[-1]["response"] == response
    assert [event["sequence_number"] for event in told] == list(range(len(told)))


def test_a_replay_ends_with_the_end_whatever_number_it_goes_on_behind() -> None:
    """Numbers of a stream, which tells texts in more pieces, go beyond those of a replay."""
    body = orjson.dumps(whole(*EVENTS))
    told = replayed(body)
    for after in range(-1, len(told) - 1):
        assert replayed(body, after) == told[after + 1 :]
    for after in (len(told) - 1, len(told) + 100):
        (end,) = loaded(replayed(body, after))
        assert end == {**loaded(told)[-1], "sequence_number": after + 1}


HOSTED: list[ResponseEvent] = [
    ToolsListing("s", "mark"),
    ToolsListed("s", [{"name": "add", "input_schema": {}}]),
    ToolCallStarted(0, 0, "c0", "s__add"),
    ToolCallArguments(0, 0, "{}"),
    ToolCallStarted(0, 1, "c1", "s__add"),
    ToolCallArguments(0, 1, "{"),
    ToolCallArguments(0, 1, "}"),
    ToolCallStarted(0, 2, "c2", "s__ask"),
    ToolCallArguments(0, 2, "{}"),
    TurnOver(),
    HostedCallRunning("c0"),
    HostedCallEnded("c0", "5"),
    HostedCallEnded("c1", error={"type": "mcp_protocol_error", "code": 1, "message": "no"}),
    ContentText(0, "It "),
    ContentText(0, "is 5."),
]


def hosting(options: AnswerOptions = OPTIONS) -> ItemMaker:
    hosted = {
        "s__add": HostedTool("s", "add", needs_approval=False),
        "s__ask": HostedTool("s", "ask"),
    }
    return ItemMaker("r", options, {}, seals_reasoning=True, hosted=hosted)


@pytest.mark.parametrize("events", [EVENTS, HOSTED, HOSTED[:11], [], [ContentText(0, "x")]])
@pytest.mark.parametrize("fails", [False, True])
def test_what_was_streamed_is_told_again_event_by_event(
    events: Sequence[ResponseEvent], fails: bool
) -> None:
    teller = ResponseEvents(replace(HEAD, spent=lambda: Usage(prompt_tokens=1)), hosting())
    told = [one for event in events for one in (*teller.render([event]), *teller.silence())]
    assert any(event.type == "response.in_progress" for event in told[2:]) == (len(events) > 3)
    last = teller.finish(Usage())
    if fails:
        last = teller.fail(GatewayError("The store is away."))  # the end above was told to nobody
    told += last
    assert teller.final is not None
    again = replayed(teller.final.body, -1, teller.script)
    assert loaded(again) == loaded(told)
    for after in range(len(told)):
        assert replayed(teller.final.body, after, teller.script)[:-1] == again[after + 1 : -1]
    assert [event.number for event in again] == list(range(len(told)))


def test_log_probabilities_are_told_again_with_their_deltas() -> None:
    chosen = [TokenLogprob(token_id=1, logprob=-0.5, text=one, data=one.encode()) for one in "abc"]
    tokens = [TokenLogprobs(chosen=one) for one in chosen]
    options = AnswerOptions(num_top_logprobs=0)
    teller = ResponseEvents(HEAD, hosting(options))
    told = teller.render([ContentText(0, "ab", tuple(tokens[:2])), ContentText(0, "-")])
    told += teller.render([ContentText(0, "c", tuple(tokens[2:]))])
    told += teller.finish(Usage())
    assert teller.final is not None
    assert loaded(replayed(teller.final.body, -1, teller.script)) == loaded(told)


def recut(events: Sequence[GenerationEvent], cuts: Sequence[int]) -> list[GenerationEvent]:
    """The same texts in other pieces."""
    found: list[GenerationEvent] = []
    sizes = iter([*cuts, *([10_000] * len(events))])
    for event in events:
        if not isinstance(event, TEXTS):
            found.append(event)
            continue
        text, size = event.text, max(1, next(sizes))
        for start in range(0, len(text), size):
            piece = text[start : start + size]
            if isinstance(event, ToolCallArguments):
                found.append(ToolCallArguments(event.choice, event.index, piece))
            else:
                found.append(type(event)(event.choice, piece))
    return found


@pytest.mark.parametrize("is_again", [False, True])
@given(
    st.lists(st.integers(1, 5), max_size=8), st.lists(st.integers(1, 5), max_size=8), st.integers(0)
)
def test_attempts_tell_each_text_once_however_they_are_cut(
    is_again: bool,
    first_cuts: list[int],
    second_cuts: list[int],
    stop: int,
) -> None:
    expected = streamed(EVENTS)
    first = ResponseEvents(HEAD, maker())
    rendered = loaded([one for event in recut(EVENTS, first_cuts) for one in first.render([event])])
    told = rendered[: stop % (len(rendered) + 1)]
    attempts = (second_cuts, first_cuts) if is_again else (second_cuts,)
    for number, cuts in enumerate(attempts):
        head = ResponseHead(
            *(HEAD.id, HEAD.created, HEAD.model, HEAD.echo_json, HEAD.clock),
            first_number=len(told),
            told=AlreadyTold(told),
        )
        teller = ResponseEvents(head, maker())
        more = [one for event in recut(EVENTS, cuts) for one in teller.render([event])]
        is_last = number == len(attempts) - 1
        more += teller.finish(Usage()) if is_last else []
        told = told + loaded(more)
    told = [event for event in told if event["type"] != "response.created"]
    numbers = [event["sequence_number"] for event in told]
    assert numbers == sorted(set(numbers))
    assert texts(told) == texts(expected)
    others = [event["type"] for event in told if "delta" not in event]
    assert others == [
        event["type"]
        for event in expected
        if "delta" not in event and event["type"] != "response.created"
    ]


@given(st.integers(0), st.integers(0), st.lists(st.integers(1, 5), max_size=8), st.booleans())
def test_another_text_is_never_told_behind_what_was_told(
    stop: int, place: int, cuts: list[int], is_shorter: bool
) -> None:
    """A text that differs at a character, or ends there, is found out or is told as a whole."""
    first = ResponseEvents(HEAD, maker())
    rendered = loaded([one for event in EVENTS for one in first.render([event])])
    told = rendered[: stop % (len(rendered) + 1)]
    where = [number for number, event in enumerate(EVENTS) if isinstance(event, TEXTS)]
    number = where[place % len(where)]
    changed: list[GenerationEvent] = list(EVENTS)
    event = EVENTS[number]
    assert isinstance(event, TEXTS)
    at = place % (len(event.text) or 1)
    other = event.text[:at] if is_shorter else f"{event.text[:at]}#{event.text[at + 1 :]}"
    if isinstance(event, ToolCallArguments):
        changed[number] = ToolCallArguments(event.choice, event.index, other)
    else:
        changed[number] = type(event)(event.choice, other)
    head = ResponseHead(
        *(HEAD.id, HEAD.created, HEAD.model, HEAD.echo_json, HEAD.clock),
        first_number=len(told),
        told=AlreadyTold(told),
    )
    second = ResponseEvents(head, maker())
    more: list[ToldEvent] = []
    try:
        for one in recut(changed, cuts):
            more += second.render([one])
        more += second.finish(Usage())
    except AnotherTextError:
        assert all(one.type == "response.in_progress" for one in more)
        ends = loaded(second.fail(AnotherTextError()))
        assert [event["type"] for event in ends[-2:]] == ["error", "response.failed"]
    else:
        assert texts(told + loaded(more)) == texts(streamed(changed))


@given(st.integers(0), st.integers(0))
def test_an_attempt_that_fails_before_it_has_told_all_of_an_earlier_one_tells_its_end(
    stop: int, second_stop: int
) -> None:
    first = ResponseEvents(HEAD, maker())
    rendered = loaded([one for event in EVENTS for one in first.render([event])])
    told = rendered[: stop % (len(rendered) + 1)]
    head = ResponseHead(
        *(HEAD.id, HEAD.created, HEAD.model, HEAD.echo_json, HEAD.clock),
        first_number=len(told),
        told=AlreadyTold(told),
    )
    second = ResponseEvents(head, maker())
    for event in EVENTS[: second_stop % (len(EVENTS) + 1)]:
        second.render([event])
    ends = loaded(second.fail(GatewayError("The engines are gone.")))
    assert [event["type"] for event in ends[-2:]] == ["error", "response.failed"]


def texts(events: list[dict[str, Any]]) -> dict[tuple[str, int], str]:
    found: dict[tuple[str, int], str] = {}
    for event in events:
        if "delta" in event:
            key = (event["type"], event["output_index"])
            found[key] = found.get(key, "") + event["delta"]
    return found
