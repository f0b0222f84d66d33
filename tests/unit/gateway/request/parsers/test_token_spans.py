"""Which tokens belong to which piece of parsed content."""

from gateway.request.delivery.events import ContentText, GenerationEvent, PromptReport, PromptShown
from gateway.request.delivery.pipeline import PromptGate
from gateway.request.parsers.token_spans import TokenSpans
from protocol.wire.messages import Prepared, TokenLogprob, TokenLogprobs


def logprobs(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(chosen=TokenLogprob(token_id=token_id, text="", data=b"", logprob=-1.0))


def spans(*ends: int) -> TokenSpans:
    """Tokens 0, 1, 2 … that end there."""
    made = TokenSpans()
    made.add(0, ends, [logprobs(number) for number in range(len(ends))])
    return made


def ids(tokens: tuple[TokenLogprobs, ...]) -> list[int]:
    return [token.chosen.token_id for token in tokens]


def test_tokens_before_the_content_are_left_out() -> None:
    # "<think>", "hm", "</think>", "An", "swer"
    made = spans(7, 9, 17, 19, 23)
    made.leave_content()
    assert ids(made.take(17, 19)) == [3]
    assert ids(made.take(19, 23)) == [4]
    assert ids(made.take_rest()) == []


def test_a_token_across_two_pieces_belongs_to_the_first() -> None:
    made = spans(3, 6)
    assert ids(made.take(0, 4)) == [0, 1]
    assert ids(made.take(4, 6)) == []


def test_a_token_that_is_half_markup_belongs_to_the_content() -> None:
    made = spans(3, 8)
    made.leave_content()
    assert ids(made.take(5, 8)) == [1]


def test_parts_of_a_character_belong_where_it_stands() -> None:
    # A marker up to 8, then an emoji of two tokens at 8:9.
    made = spans(8, 8, 9)
    made.leave_content()
    assert ids(made.take(8, 9)) == [1, 2]


def test_a_text_that_was_nothing_but_tokens_is_content() -> None:
    made = TokenSpans()
    made.add(0, (0,), [logprobs(0)])
    assert ids(made.take_rest()) == [0]
    assert made.take_rest() == ()


def test_the_end_of_a_text_belongs_to_it_only_when_it_ended_as_content() -> None:
    made = spans(2, 2)
    assert ids(made.take(0, 2)) == [0]
    assert ids(made.take_rest()) == [1]
    made = spans(2, 10, 10)
    made.take(0, 2)
    made.leave_content()
    assert ids(made.take_rest()) == []


def test_an_engine_that_tells_no_ends_still_has_its_tokens_told() -> None:
    made = TokenSpans()
    made.add(5, (), [logprobs(0), logprobs(1)])
    assert ids(made.take(0, 5)) == [0]
    assert ids(made.take_rest()) == [1]


def prompt(num_tokens: int = 3) -> Prepared:
    return Prepared(request_id="r", prompt_token_ids=tuple(range(num_tokens)))


def test_choices_wait_for_what_is_told_of_their_prompt() -> None:
    out: list[GenerationEvent] = []
    gate = PromptGate(out.append, [prompt(), prompt()], num_choices=2, needs_logprobs=True)
    second, third = ContentText(1, "b"), ContentText(2, "c")
    gate.put(second)
    gate.put(third)
    assert out == []
    told = (logprobs(1), logprobs(2))
    gate.open(0, told)
    shown = PromptShown(1, PromptReport(prompt(), told))
    assert out == [shown, second]
    gate.put(second)
    assert out == [shown, second, second]
    gate.open(3, ())
    assert [type(event) for event in out[3:]] == [PromptShown, ContentText]


def test_nobody_waits_when_only_the_prompt_itself_is_told() -> None:
    out: list[GenerationEvent] = []
    gate = PromptGate(out.append, [prompt()], num_choices=1, needs_logprobs=False)
    gate.put(ContentText(0, "a"))
    assert out == [PromptShown(0, PromptReport(prompt())), ContentText(0, "a")]
