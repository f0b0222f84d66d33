"""Reasoning that an engine ends is reasoning up to there, and content behind, in every format."""

from typing import Any

import pytest

from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.text.thoughts import ThoughtLimit
from protocol.wire.messages import Grammar, OpenParse, ParseDelta, SamplingParams, Thought
from tests.fakes.tiny_tokenizers import byte_level_tokenizer
from toolparser_worker.formats import REASONING_FORMATS
from toolparser_worker.machine.declarations import ReasoningFormat
from toolparser_worker.sessions import Session, SessionStore

FORMATS = {declared.name: declared for declared in REASONING_FORMATS.values()}
CLOSABLE = sorted(name for name, one in FORMATS.items() if one.closing)
FRAMED = sorted(name for name, one in FORMATS.items() if one.framing is not None)
MUSINGS = "so and so " * 9
BUDGET = 35


def session(reasoning_format: str | None, **fields: Any) -> Session:
    store = SessionStore(max_sessions=9, idle_timeout_s=9.0, clock=lambda: 0.0)
    opening = OpenParse(request_id="r", attempt=1, reasoning_format=reasoning_format, **fields)
    return store.open(("g", "r", 1), opening)


def thought_of(declared: ReasoningFormat, **fields: Any) -> Thought:
    thought = session(declared.name, **fields).thought
    assert thought is not None
    return thought


def opened_prompt(declared: ReasoningFormat) -> str:
    return "assistant\n" + next(iter(declared.starts), "")


def ended(thought: Thought, drawn: str) -> str:
    """What an engine writes when the model draws these characters."""
    limit = ThoughtLimit(thought, BUDGET, lambda text: list(map(ord, text)))
    text, draws = "", list(drawn)
    while draws or limit.has_forced:
        character = chr(limit.next_forced()) if limit.has_forced else draws.pop(0)
        limit.push(ord(character), character, is_whole=True)
        text += character
    return text


def parsed(opened: Session, text: str) -> tuple[str, str]:
    """Reasoning and content, of a text that comes character by character."""
    found = {"reasoning": "", "content": ""}
    for end, character in enumerate(text, start=1):
        delta = ParseDelta("r", 0, 1, character, (end,), final=end == len(text))
        for event in opened.parse(delta).events:
            found[event.kind] += event.text
    return found["reasoning"], found["content"]


@pytest.mark.parametrize("name", sorted(set(CLOSABLE) - set(FRAMED)))
@pytest.mark.parametrize("thought", ["", "\n", "\n\n"])
def test_a_thought_of_nothing_ends_where_the_prompt_began_it(name: str, thought: str) -> None:
    declared = FORMATS[name]
    opened = session(name, prompt_tail=opened_prompt(declared))
    reasoning, content = parsed(opened, f"{thought}{declared.closing}Four.")
    assert (reasoning.strip(), content) == ("", "Four.")


@pytest.mark.parametrize("name", CLOSABLE)
@pytest.mark.parametrize("writes_marker", [False, True])
def test_what_the_engine_ends_is_told_apart_there(name: str, writes_marker: bool) -> None:
    declared = FORMATS[name]
    start = declared.rendered_start or next(iter(declared.starts), "")
    if writes_marker and (declared.opens == "prompted" or not start):
        pytest.skip("only a prompt begins its reasoning")
    if not writes_marker and declared.framing is not None:
        pytest.skip("its own header begins its reasoning")
    fields = {} if writes_marker else {"prompt_tail": opened_prompt(declared)}
    opened = session(name, **fields)
    thought = thought_of(declared, **fields)
    text = ended(thought, (start if writes_marker else "") + MUSINGS)
    reasoning, content = parsed(opened, text)
    # Where the text begins in reasoning, its own marker is counted, too.
    assert 0 < len(reasoning) <= BUDGET
    assert MUSINGS.startswith(reasoning.strip())
    assert content.strip()
    assert (reasoning.strip() + content.strip()).replace(" ", "") == MUSINGS.replace(" ", "")


@pytest.mark.parametrize("name", sorted(set(CLOSABLE) - set(FRAMED)))
def test_a_prompt_that_closed_it_leaves_none(name: str) -> None:
    declared = FORMATS[name]
    tail = f"assistant\n{next(iter(declared.starts), '')}\n\n{declared.closing}\n\n"
    assert thought_of(declared, prompt_tail=tail).begins == "no"


UNFRAMED = sorted(name for name, one in FORMATS.items() if one.ends and one.framing is None)


@pytest.mark.parametrize("name", UNFRAMED)
def test_an_answer_that_goes_on_goes_on_as_what_it_is(name: str) -> None:
    """Content, but for reasoning that has begun in it and not ended."""
    declared = FORMATS[name]
    start, end = "".join(declared.starts[:1]), declared.ends[0]
    for answer, drawn, wanted in (
        ("The answer", " is four.", ("", " is four.")),
        (f"{start}So it is{end}Four", " it is.", ("", " it is.")),
        (f"\n{start}So it ", f"is.{end}Four", ("is.", "Four")),
    ):
        if not start and answer.startswith("\n"):
            continue
        opened = session(name, prompt_tail="assistant\n" + answer, answer_so_far=answer)
        assert parsed(opened, drawn) == wanted
        assert opened.thought is None or (opened.thought.begins == "open") == bool(wanted[0])


def test_an_answer_that_goes_on_is_not_given_reasoning_by_a_grammar() -> None:
    digits = Grammar(kind="regex", source="[0-9]+")
    fields = {"prompt_tail": "It is ", "answer_so_far": "It is ", "response_grammar": digits}
    assert session("deepseek_r1", **fields).grammar == digits
    assert session("deepseek_r1", response_grammar=digits).grammar != digits


@pytest.mark.parametrize(
    ("answer", "begins"),
    [
        ("The tag <think> opens it", "no"),
        ("a</think>b<think>", "no"),
        ("  \n", "open"),
    ],
)
def test_a_marker_within_an_answer_that_goes_on_opens_nothing(answer: str, begins: str) -> None:
    assert thought_of(FORMATS["deepseek_r1"], answer_so_far=answer).begins == begins


def test_an_answer_that_the_template_puts_into_reasoning_goes_on_there() -> None:
    """Nemotron Nano 2's opens it before every answer that goes on."""
    tail = "Assistant\n<think>\n\nWell, so"
    assert (
        thought_of(FORMATS["think"], prompt_tail=tail, answer_so_far="Well, so ").begins == "open"
    )
    closed = "Assistant\n<think></think>Well, so"
    assert thought_of(FORMATS["think"], prompt_tail=closed, answer_so_far="Well, so").begins == "no"


def test_a_family_that_thinks_again_goes_on_with_its_last_thought() -> None:
    answer = "<think>a</think>b<think>c"
    assert thought_of(FORMATS["glm45"], answer_so_far=answer).begins == "open"
    assert thought_of(FORMATS["glm45"], answer_so_far=answer + "</think>").begins == "no"


def test_where_it_begins_is_what_the_request_says() -> None:
    assert thought_of(FORMATS["qwen3"], thinking=False).begins == "marked"
    assert thought_of(FORMATS["qwen3"]).begins == "open"
    assert thought_of(FORMATS["deepseek_v3"]).begins == "no"


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - set(CLOSABLE)))
def test_a_format_without_a_marker_for_it_says_so(name: str) -> None:
    assert session(name).thought is None


def test_without_a_format_there_is_nothing_to_end() -> None:
    assert session(None).thought is None


def test_calls_end_it_where_the_format_says_so() -> None:
    tools = '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'
    with_tools = thought_of(FORMATS["glm45"], tool_format="hermes", tools_json=tools)
    assert "<tool_call>" in with_tools.ends
    assert "<tool_call>" not in thought_of(FORMATS["glm45"]).ends
    never = thought_of(FORMATS["deepseek_r1"], tool_format="hermes", tools_json=tools)
    assert "<tool_call>" not in never.ends


TOOLS = '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'
HARMONY = FORMATS["openai_gptoss"]
ANALYSIS = "<|channel|>analysis<|message|>"
NEXT = "<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


def test_the_answer_of_harmony_begins_with_its_header() -> None:
    text = ended(thought_of(HARMONY), ANALYSIS + "m" * 40)
    assert text == f"{ANALYSIS}{'m' * BUDGET}{NEXT}{FINAL}mmmmm"


@pytest.mark.parametrize(
    ("name", "begun", "text"),
    [
        ("inkling", "<|content_thinking|>", "<|end_message|><|message_model|><|content_text|>"),
        ("muse_glimmer", " to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    ],
)
def test_so_does_that_of_other_formats_made_of_messages(name: str, begun: str, text: str) -> None:
    assert ended(thought_of(FORMATS[name]), begun + "m" * 40) == f"{begun}{'m' * BUDGET}{text}mmmmm"


def test_reasoning_that_harmony_ends_itself_is_left_alone() -> None:
    drawn = f"{ANALYSIS}m{NEXT}{FINAL}" + "a" * 90
    assert ended(thought_of(HARMONY), drawn) == drawn


def test_where_tools_may_be_called_the_model_chooses_what_follows_once() -> None:
    thought = thought_of(HARMONY, tool_format="openai", tools_json=TOOLS)
    assert ended(thought, ANALYSIS + "m" * BUDGET) == f"{ANALYSIS}{'m' * BUDGET}{NEXT}"
    call = " to=functions.f<|channel|>commentary json<|message|>" + "1" * 90
    first = ANALYSIS + "m" * BUDGET
    assert ended(thought, first + call) == first + NEXT + call
    # Reasoning that begins again is over at once, and then there is an answer.
    again = f"{first}{ANALYSIS}m"
    assert ended(thought, again) == f"{first}{NEXT}{ANALYSIS}{NEXT}{FINAL}m"


def test_nothing_is_put_into_a_call_of_the_channel_for_reasoning() -> None:
    thought = thought_of(HARMONY, tool_format="openai", tools_json=TOOLS)
    call = " to=functions.f<|channel|>analysis<|message|>" + "1" * 90
    assert ended(thought, call) == call
    later = f"{ANALYSIS}m<|end|><|start|>assistant{call}"
    assert ended(thought, later) == later


def test_a_message_without_an_end_ends_where_the_next_one_begins() -> None:
    thought = thought_of(HARMONY)
    answered = f"{ANALYSIS}m<|start|>assistant{FINAL}" + "a" * 90
    assert ended(thought, answered) == answered
    musing = f"{ANALYSIS}m<|start|>assistant{ANALYSIS}"
    left = BUDGET - len("m<|start|>")
    assert ended(thought, musing + "m" * 40).startswith(f"{musing}{'m' * left}{NEXT}{FINAL}")


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("is_closed_by_engine", [False, True])
def test_what_the_engine_writes_is_what_the_grammar_of_the_answer_waits_for(
    name: str, *, is_closed_by_engine: bool
) -> None:
    """The wanted content follows reasoning that the engine ends as what the model ends itself."""
    declared = FORMATS[name]
    wanted = Grammar("choice", '["yes", "no"]')
    opened = session(name, response_grammar=wanted)
    assert opened.grammar is not None
    assert opened.thought is not None
    tokenizer = byte_level_tokenizer()
    constraint = GrammarCompiler(tokenizer, tokenizer.num_tokens).start(
        opened.grammar, SamplingParams()
    )
    assert declared.rendered_start is not None
    assert declared.framing is not None
    musing = declared.rendered_start + "m" * BUDGET
    text = (
        ended(opened.thought, musing)
        if is_closed_by_engine
        else musing + declared.closing + declared.framing.rendered_content
    )
    for token_id in tokenizer.encode(text + "yes", add_special_tokens=False):
        constraint.push(token_id)
        assert not constraint.failure
    assert constraint.is_complete


@pytest.mark.parametrize(
    ("thinking", "accepted"),
    [
        (None, ["<think>m</think>yes", "m</think>yes"]),
        (False, ["<think>m</think>yes", "yes"]),
    ],
)
def test_a_grammar_begins_in_reasoning_where_the_parser_does(
    thinking: bool | None, accepted: list[str]
) -> None:
    wanted = Grammar("choice", '["yes", "no"]')
    grammar = session("deepseek_r1", response_grammar=wanted, thinking=thinking).grammar
    assert grammar is not None
    tokenizer = byte_level_tokenizer()
    compiler = GrammarCompiler(tokenizer, tokenizer.num_tokens)

    def is_accepted(text: str) -> bool:
        constraint = compiler.start(grammar, SamplingParams())
        for token_id in tokenizer.encode(text, add_special_tokens=False):
            constraint.push(token_id)
            if constraint.failure:
                return False
        return constraint.is_complete

    texts = ["<think>m</think>yes", "m</think>yes", "yes"]
    assert [text for text in texts if is_accepted(text)] == accepted
