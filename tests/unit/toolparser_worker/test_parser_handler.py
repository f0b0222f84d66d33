"""What gateways get back from the parser worker, message by message."""

import json
import tracemalloc
from typing import Any

import pytest

from protocol.errors import ErrorCode
from protocol.runtime.logs import JsonFormatter
from protocol.wire import codec
from protocol.wire.messages import (
    CloseParse,
    Failure,
    Message,
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseDelta,
    ParseEvent,
    ParseOpened,
)
from tests.fakes.log_lines import log_lines
from toolparser_worker import sessions
from toolparser_worker.handler import (
    MAX_ANSWERED_TOGETHER,
    MAX_REMEMBERED_FAILURES,
    ParserHandler,
)
from toolparser_worker.machine.machine import Machine
from toolparser_worker.sessions import SessionStore

TOOLS = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}])
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


class World:
    """A handler with everything around it that it talks to."""

    def __init__(self, max_sessions: int = 10, max_tools_bytes: int = 100_000) -> None:
        self.now_s = 0.0
        self.sent: list[tuple[str, Message]] = []
        self.store = store = SessionStore(
            max_sessions=max_sessions,
            idle_timeout_s=60.0,
            clock=lambda: self.now_s,
            max_tools_bytes=max_tools_bytes,
        )
        self.flushed: list[int] = []
        self.handler = ParserHandler(
            store,
            lambda gateway, m: self.sent.append((gateway, m)),
            lambda: self.flushed.append(len(self.sent)),
        )

    def open(self, request_id: str = "r", gateway: str = "g", **options: Any) -> Message:
        defaults: dict[str, Any] = {"tool_format": "hermes", "tools_json": TOOLS, "attempt": 0}
        options = defaults | options
        self.handler.on_command(gateway, OpenParse(request_id=request_id, **options))
        return self.take()[-1]

    def feed(self, *deltas: ParseDelta, gateway: str = "g") -> list[Message]:
        self.handler.on_command(gateway, ParseBatch(deltas=deltas))
        return self.take()

    def take(self) -> list[Message]:
        messages = [message for _, message in self.sent]
        self.sent.clear()
        return messages


def delta(text: str = "", request_id: str = "r", **options: Any) -> ParseDelta:
    options = {"choice": 0, "attempt": 0} | options
    return ParseDelta(request_id=request_id, text=text, **options)


def only_delta(messages: list[Message]) -> ParsedDelta:
    (batch,) = messages
    assert isinstance(batch, ParsedBatch)
    (parsed,) = batch.deltas
    return parsed


def only_failure(messages: list[Message]) -> Failure:
    (failure,) = messages
    assert isinstance(failure, Failure)
    return failure


def test_opening_tells_which_special_tokens_must_stay() -> None:
    opened = World().open(reasoning_format="think")
    assert isinstance(opened, ParseOpened)
    assert set(opened.keep_special_tokens) == {
        *("<tool_call>", "</tool_call>", "<think>", "</think>")
    }


def test_a_batch_is_answered_entry_by_entry() -> None:
    world = World()
    world.open("a")
    world.open("b", num_choices=2)
    (batch,) = world.feed(
        delta("x", "a"), delta("y", "b", choice=1), delta("<to", "b"), delta(CALL, "a", final=True)
    )
    assert isinstance(batch, ParsedBatch)
    assert [(d.request_id, d.choice, d.final) for d in batch.deltas] == [
        ("a", 0, False),
        ("b", 1, False),
        ("b", 0, False),
        ("a", 0, True),
    ]
    assert [event.kind for event in batch.deltas[3].events] == [
        "tool_call_start",
        "tool_call_arguments",
        "tool_call_end",
    ]
    assert batch.deltas[2].events == ()


@pytest.mark.parametrize("num_more", [0, 1, MAX_ANSWERED_TOGETHER])
def test_the_events_of_a_large_batch_leave_in_parts_and_in_order(num_more: int) -> None:
    world = World(max_sessions=100)
    world.open(num_choices=2 * MAX_ANSWERED_TOGETHER)
    num_deltas = MAX_ANSWERED_TOGETHER + num_more
    answers = world.feed(*(delta(str(n), choice=n) for n in range(num_deltas)))
    batches = [answer.deltas for answer in answers if isinstance(answer, ParsedBatch)]
    assert [len(batch) for batch in batches] == [MAX_ANSWERED_TOGETHER, num_more][
        : 1 + (num_more > 0)
    ]
    assert [one.choice for batch in batches for one in batch] == list(range(num_deltas))
    # The first part has left before anything else is parsed; the worker sends the last one.
    assert world.flushed == [1] * (num_more > 0)


def test_tools_are_given_back_whatever_their_session_fails_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    world = World(max_tools_bytes=2 * len(TOOLS))
    with monkeypatch.context() as broken:
        broken.setattr(sessions, "request_grammar", fail)
        for number in range(10):
            with pytest.raises(MemoryError):
                world.open(tools_json=TOOLS + " " * number)
    assert isinstance(world.open(), ParseOpened)


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        ("pythonic", r"[f(x='\ud800')]"),
        ("pythonic", r"[f(x={'\ud800': 'a\udfff'})]"),
        ("hermes", r'<tool_call>{"name": "f", "arguments": "{\"x\":\"\ud83d\"}"}</tool_call>'),
        (
            "qwen3_coder",
            r'<tool_call><function=f><parameter=l>["\ud800"]</parameter></function></tool_call>',
        ),
        ("gemma4", r'<|tool_call>call:f{x:"\ud800"}<tool_call|>'),
    ],
)
def test_half_a_surrogate_pair_costs_neither_its_request_nor_others(
    tool_format: str, text: str
) -> None:
    parameters = {"properties": {"l": {"type": "array"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    world = World()
    world.open("evil", tool_format=tool_format, tools_json=json.dumps(tools))
    world.open("victim")
    answers = world.feed(delta(text, "evil", final=True), delta("hello", "victim"))
    (batch,) = (codec.parser_event_decoder().decode(codec.encode(one)) for one in answers)
    assert isinstance(batch, ParsedBatch)
    evil, victim = batch.deltas
    assert victim.events[0].text == "hello"
    arguments = "".join(one.text for one in evil.events if one.kind == "tool_call_arguments")
    assert "\ufffd" in json.dumps(json.loads(arguments), ensure_ascii=False)


def test_reasoning_that_the_request_switched_off_is_not_expected() -> None:
    for thinking, kind in ((False, "content"), (None, "reasoning")):
        world = World()
        world.open(reasoning_format="qwen3", thinking=thinking)
        assert only_delta(world.feed(delta("Hello"))).events[0].kind == kind


def test_a_grammar_is_sent_and_not_kept() -> None:
    world = World()
    opened = world.open(tool_choice="required")
    assert isinstance(opened, ParseOpened)
    assert opened.grammar is not None
    session = world.store.find(("g", "r", 0), 0.0)
    assert session is not None
    assert session.grammar is None


def test_counts_travel_with_the_answer() -> None:
    world = World()
    world.open(reasoning_format="think")
    parsed = only_delta(
        world.feed(
            delta(
                '<think>a</think><tool_call>{"name": "f", oops',
                token_ends=(7, 8, 16, 30),
                final=True,
            )
        )
    )
    assert (parsed.num_reasoning_tokens, parsed.num_malformed) == (3, 1)


def test_another_worker_that_replays_the_text_gives_the_same_answer() -> None:
    answers = []
    for pieces in ([CALL], list(CALL)):
        world = World()
        world.open(attempt=3)
        events: list[ParseEvent] = []
        for piece in pieces:
            events += only_delta(world.feed(delta(piece, attempt=3))).events
        answers.append([(event.id, event.name) for event in events if event.id])
    assert answers[0] == answers[1]
    assert answers[0][0][0].startswith("call_")
    assert len(answers[0][0][0]) == len("call_") + 24


def test_opening_again_begins_anew() -> None:
    world = World()
    world.open()
    world.feed(delta("<tool_"))
    world.open()
    assert only_delta(world.feed(delta("call>"))).events[0].text == "call>"


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"tool_format": "hermess"}, None, "hermes"),
        ({"reasoning_format": "thinking"}, None, "think"),
        ({"tools_json": "[{]"}, "tools", "not valid JSON"),
        ({"tools_json": "[" * 100_000}, "tools", "not valid JSON"),
        ({"tools_json": "{}"}, "tools", "list"),
        ({"tools_json": "[1]"}, "tools[0]", "function with a name"),
        ({"tools_json": '[{"function": {"name": ""}}]'}, "tools[0]", "function with a name"),
        ({"tool_choice": "named", "tool_name": "g"}, "tool_choice", "'g'"),
        ({"num_choices": 0}, "n", "between 1 and"),
    ],
)
def test_a_wrong_opening_is_refused_with_its_field(
    options: dict[str, Any], param: str | None, words: str
) -> None:
    failure = World().open(**options)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INVALID_REQUEST
    assert failure.param == param
    assert words in failure.message
    assert len(failure.message) < 1000


@pytest.mark.parametrize("options", [{"tool_choice": "none"}, {"tools_json": "[]"}])
def test_without_tools_to_call_markup_is_content(options: dict[str, Any]) -> None:
    world = World()
    opened = world.open(**options)
    assert isinstance(opened, ParseOpened)
    assert opened.keep_special_tokens == ()
    assert only_delta(world.feed(delta(CALL))).events[0].text == CALL


def test_with_a_format_and_no_list_of_tools_any_name_is_a_tools() -> None:
    world = World()
    world.open(tools_json=None)
    assert only_delta(world.feed(delta(CALL.replace('"f"', '"g"')))).events[0].name == "g"


@pytest.mark.parametrize(
    "options", [{"tool_choice": "required"}, {"tool_choice": "named", "tool_name": "f"}]
)
def test_other_tool_choices_parse_calls(options: dict[str, Any]) -> None:
    world = World()
    world.open(**options)
    assert only_delta(world.feed(delta(CALL))).events[0].name == "f"


def test_an_unknown_request_fails_once_and_the_others_go_on() -> None:
    world = World()
    world.open("a")
    batch, failure = world.feed(delta("x", "lost"), delta("y", "a"), delta("z", "lost", choice=1))
    assert isinstance(batch, ParsedBatch)
    assert [parsed.request_id for parsed in batch.deltas] == ["a"]
    assert isinstance(failure, Failure)
    assert (failure.request_id, failure.code) == ("lost", ErrorCode.UNKNOWN_REQUEST)
    assert world.feed(delta("more", "lost")) == []


def test_what_failed_can_be_opened_again() -> None:
    world = World()
    assert only_failure(world.feed(delta("x"))).code is ErrorCode.UNKNOWN_REQUEST
    world.open()
    assert only_delta(world.feed(delta("x"))).events[0].text == "x"


def test_the_memory_of_failures_is_bounded() -> None:
    world = World()
    for number in range(MAX_REMEMBERED_FAILURES + 2):
        only_failure(world.feed(delta("x", f"lost-{number}")))
    only_failure(world.feed(delta("x", "lost-0")))


def test_another_attempt_is_another_session() -> None:
    world = World()
    world.open(attempt=1)
    failure = only_failure(world.feed(delta("x", attempt=0)))
    assert (failure.code, failure.attempt) == (ErrorCode.UNKNOWN_REQUEST, 0)
    only_delta(world.feed(delta("x", attempt=1)))


def test_another_gateway_cannot_reach_the_session() -> None:
    world = World()
    world.open(gateway="g")
    assert only_failure(world.feed(delta("x"), gateway="h")).code is ErrorCode.UNKNOWN_REQUEST


@pytest.mark.parametrize("choice", [-1, 1])
def test_text_for_a_choice_that_is_not_there_ends_the_request(choice: int) -> None:
    world = World()
    world.open()
    assert only_failure(world.feed(delta("x", choice=choice))).code is ErrorCode.INVALID_REQUEST
    assert world.handler.num_unfinished() == 0


def test_text_after_the_end_of_a_choice_is_refused() -> None:
    world = World()
    world.open()
    world.feed(delta("x", final=True))
    assert "has ended" in only_failure(world.feed(delta("y"))).message


def test_closing_is_idempotent_and_unanswered() -> None:
    world = World()
    world.open()
    for _ in range(2):
        world.handler.on_command("g", CloseParse(request_id="r", attempt=0))
    assert world.take() == []
    assert world.handler.num_unfinished() == 0
    assert only_failure(world.feed(delta("x"))).code is ErrorCode.UNKNOWN_REQUEST


def test_sessions_that_wait_for_their_engine_do_not_look_like_stuck_work() -> None:
    world = World()
    world.open()
    # Work that runs without progress counts as hung (`protocol.wire.peers`).
    assert world.handler.load().num_running == 0
    assert world.handler.num_unfinished() == 1


def test_an_idle_session_expires_and_a_used_one_does_not() -> None:
    world = World()
    world.open("idle")
    world.open("used")
    world.now_s = 50.0
    world.feed(delta("x", "used"))
    world.now_s = 70.0
    assert world.handler.load().num_waiting == 1
    assert only_failure(world.feed(delta("x", "idle"))).code is ErrorCode.UNKNOWN_REQUEST
    only_delta(world.feed(delta("x", "used")))


def test_too_many_sessions_are_refused_until_one_is_closed() -> None:
    world = World(max_sessions=2)
    world.open("a")
    world.open("b")
    failure = world.open("c")
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.OVERLOADED
    assert failure.retry_after_s is not None
    assert isinstance(world.open("b"), ParseOpened)
    world.handler.on_command("g", CloseParse(request_id="a", attempt=0))
    assert isinstance(world.open("c"), ParseOpened)


def test_each_choice_takes_room_for_a_session() -> None:
    world = World(max_sessions=3)
    world.open("a", num_choices=2)
    assert isinstance(world.open("b", num_choices=2), Failure)
    assert isinstance(world.open("b", num_choices=1), ParseOpened)
    assert isinstance(world.open("a", num_choices=2), ParseOpened)


def test_tools_take_room_once_however_many_requests_have_them() -> None:
    world = World(max_tools_bytes=len(TOOLS) + 10)
    assert isinstance(world.open("a"), ParseOpened)
    assert isinstance(world.open("b"), ParseOpened)
    others = TOOLS.replace('"f"', '"g"')
    refused = world.open("c", tools_json=others)
    assert isinstance(refused, Failure)
    assert refused.code is ErrorCode.OVERLOADED
    for request_id in ("a", "b"):
        world.handler.on_command("g", CloseParse(request_id=request_id, attempt=0))
    assert isinstance(world.open("c", tools_json=others), ParseOpened)


def test_a_refused_opening_leaves_no_tools_behind() -> None:
    world = World(max_tools_bytes=len(TOOLS))
    assert isinstance(world.open("a", tool_format="no such format"), Failure)
    others = TOOLS.replace('"f"', '"g"')
    assert isinstance(world.open("b", tools_json=others), ParseOpened)


def test_ten_thousand_streams_fit_into_little_memory() -> None:
    world = World(max_sessions=10_000)

    def stream(number: int) -> None:
        world.open(f"r{number}", reasoning_format="think")
        world.feed(delta('<think>hm</think><tool_call>{"name": "f", "argu', f"r{number}"))

    # Tracing takes most of the time, so that only the last of them are traced: beside all others.
    for number in range(9_000):
        stream(number)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(9_000, 10_000):
            stream(number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 1_000 < 8192
    assert world.handler.load().num_waiting == 10_000


def test_metrics_count_by_format() -> None:
    world = World()
    world.open("a", reasoning_format="think", num_choices=2)
    world.open("b", tool_format=None, reasoning_format="qwen-3", tools_json=None)
    world.feed(delta(CALL, "a"), delta("hm", "b"), delta("<tool_call>", "a", choice=1))
    broken = '{"name": "f", oops</tool_call>'
    world.feed(delta(broken, "a", choice=1), delta(broken, "a", choice=1, final=True))
    assert world.handler.load().num_waiting == 2  # each heartbeat asks, and takes counts over
    samples = {
        (sample.name, *(value for _, value in sample.labels)): sample.value
        for sample in world.handler.metrics.registry.message().samples
    }
    assert samples == {
        ("penstock_parser_open_sessions",): 2,
        ("penstock_parser_streams", "hermes", "think"): 2,
        ("penstock_parser_streams", "none", "qwen3"): 1,
        ("penstock_parser_deltas", "hermes", "think"): 4,
        ("penstock_parser_deltas", "none", "qwen3"): 1,
        ("penstock_parser_events", "hermes", "think"): 6,
        ("penstock_parser_events", "none", "qwen3"): 1,
        ("penstock_parser_malformed_calls", "hermes", "think"): 1,
    }


def test_a_lost_gateway_takes_its_sessions_along() -> None:
    world = World()
    world.open("a", gateway="g")
    world.open("a", gateway="h")
    world.handler.on_gateway_lost("g")
    assert world.handler.num_unfinished() == 1
    only_delta(world.feed(delta("x", "a"), gateway="h"))


def test_a_draining_worker_finishes_what_is_open_and_opens_no_more() -> None:
    world = World()
    world.open("a")
    world.handler.on_drain(5.0)
    failure = world.open("b")
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.WORKER_UNAVAILABLE
    only_delta(world.feed(delta("x", "a")))
    world.handler.on_command("g", CloseParse(request_id="a", attempt=0))
    assert world.handler.num_unfinished() == 0


def test_a_bug_of_ours_costs_one_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter("toolparser"))
    world = World()
    world.open("a", trace_id="mine-1")
    world.open("b")
    feed = Machine.feed

    def broken(machine: Machine, text: str, token_ends: tuple[int, ...] = ()) -> Any:
        if text == "boom":
            raise KeyError("secret text")
        return feed(machine, text, token_ends)

    monkeypatch.setattr(Machine, "feed", broken)
    batch, failure = world.feed(delta("boom", "a"), delta("x", "b"))
    assert isinstance(batch, ParsedBatch)
    assert isinstance(failure, Failure)
    assert (failure.request_id, failure.code) == ("a", ErrorCode.INTERNAL_ERROR)
    assert "secret" not in failure.message
    assert world.handler.num_unfinished() == 1
    line = json.loads(caplog.text)
    assert line["message"] == "parsing failed for request a"
    assert (line["request_id"], line["trace_id"]) == ("a", "mine-1")


def test_progress_counts_deltas_and_credit_is_not_needed() -> None:
    world = World()
    world.open()
    world.feed(delta("x"), delta("y"))
    assert world.handler.progress_counter() == 2
    assert world.handler.credits("g") is None


def test_every_answer_can_be_sent() -> None:
    world = World()
    world.open()
    (batch,) = world.feed(delta('<tool_call>{"name": "\\ud83d\\ude42", "arguments": {}}'))
    decoded = codec.parser_event_decoder().decode(codec.encode(batch))
    assert decoded == batch
    assert only_delta([batch]).events[0].name == "🙂"


def test_a_session_s_lines_carry_the_ids_of_server_and_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    with log_lines("penstock.toolparser") as lines:
        world.open(trace_id="mine-1")
        world.open("s", tool_format="nonsense", trace_id="mine-2")

        def broken(self: Machine, *_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(Machine, "feed", broken)
        world.feed(delta("text"))
    assert lines.about("mine-1") == [
        ("debug", "session opened, attempt 0"),
        ("error", "parsing failed for request r"),
    ]
    ((level, text),) = lines.about("mine-2", "s")
    assert (level, text.split(":")[0]) == ("debug", "session refused")
