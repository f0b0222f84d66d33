"""Reasoning is counted token by token and ended by its marker, in every cut of the text."""

import pytest

from engine_worker.errors import InvalidRequestError
from engine_worker.text.thoughts import ThoughtLimit
from protocol.wire.messages import Thought

OPEN = Thought(
    begins="open", starts=("<think>",), ends=("</think>", "<tool_call>"), closing="</think>"
)
MARKED = Thought(begins="marked", starts=("<think>",), ends=("</think>",), closing="</think>")
REOPENING = Thought(begins="marked", starts=("[T]",), ends=("[/T]",), closing="[/T]", reopens=True)


def spelt(text: str) -> list[int]:
    return [ord(character) for character in text]


def limit(thought: Thought, max_tokens: int) -> ThoughtLimit:
    return ThoughtLimit(thought, max_tokens, spelt)


def written(of: ThoughtLimit, drawn: str) -> str:
    """The output when the model draws these characters, one a token."""
    text, draws = "", list(drawn)
    while draws or of.has_forced:
        character = chr(of.next_forced()) if of.has_forced else draws.pop(0)
        free = of.num_free_tokens
        assert free is None or free >= 1
        of.push(ord(character), character, is_whole=True)
        text += character
    return text


def test_an_open_thought_is_closed_after_its_tokens() -> None:
    assert written(limit(OPEN, 5), "abcdefgh") == "abcde</think>fgh"


def test_without_tokens_it_is_closed_at_once() -> None:
    assert written(limit(OPEN, 0), "abc") == "</think>abc"


def test_a_thought_that_ends_in_time_is_left_alone() -> None:
    assert written(limit(OPEN, 11), "ab</think>" + "c" * 30) == "ab</think>" + "c" * 30


def test_a_call_that_ends_it_is_not_broken_into() -> None:
    drawn = "ab<tool_call>" + "c" * 30
    assert written(limit(OPEN, 13), drawn) == drawn


@pytest.mark.parametrize("blanks", ["", "\n\n"])
def test_a_thought_that_the_model_opens_is_counted_from_there(blanks: str) -> None:
    drawn = f"{blanks}<think>abcdefgh"
    assert written(limit(MARKED, 3), drawn) == f"{blanks}<think>abc</think>defgh"


def test_an_answer_that_only_mentions_the_marker_is_not_touched() -> None:
    drawn = "the tag <think> means" + "x" * 50
    assert written(limit(MARKED, 3), drawn) == drawn


def test_several_thoughts_share_their_tokens() -> None:
    drawn = "[T]abc[/T]xy[T]defgh"
    # The marker's own four tokens are tokens of the thought that it ends, until it is whole.
    assert written(limit(REOPENING, 9), drawn) == "[T]abc[/T]xy[T]de[/T]fgh"


def test_within_the_free_tokens_nothing_is_ever_forced() -> None:
    for thought, drawn in ((OPEN, "abcdefghij"), (MARKED, "<think>abcdefghij")):
        of = limit(thought, 4)
        free = of.num_free_tokens
        while not of.has_forced:
            assert free is not None
            assert free > 0
            of.push(ord(drawn[0]), drawn[0], is_whole=True)
            drawn = drawn[1:]
            free = max(free - 1, of.num_free_tokens or 0)


def test_a_character_is_finished_before_the_thought_is_closed() -> None:
    of = limit(OPEN, 2)
    of.push(1, "a", is_whole=True)
    of.push(2, "", is_whole=False)
    assert not of.has_forced
    of.push(3, "é", is_whole=True)
    assert of.has_forced


@pytest.mark.parametrize("num_pieces", [1, 2, 3])
def test_a_thought_that_may_come_again_leaves_a_token_free_after_a_split_character(
    num_pieces: int,
) -> None:
    of = limit(REOPENING, 1)
    for character in "[T]":
        of.push(ord(character), character, is_whole=True)
    for _ in range(num_pieces):
        of.push(1, "", is_whole=False)
    of.push(2, "é", is_whole=True)
    for character in "[/T]":
        assert of.next_forced() == ord(character)
        of.push(ord(character), character, is_whole=True)
    assert not of.is_inside
    assert of.num_free_tokens == 1


def test_broken_bytes_are_not_waited_for_for_ever() -> None:
    of = limit(OPEN, 1)
    for _ in range(20):
        if of.has_forced:
            break
        of.push(1, "", is_whole=False)
    assert of.has_forced


def test_a_marker_that_its_tokens_do_not_spell_is_written_once() -> None:
    of = limit(OPEN, 1)
    of.push(1, "a", is_whole=True)
    while of.has_forced:
        of.push(of.next_forced(), "?", is_whole=True)
    of.push(1, "a", is_whole=True)
    assert not of.has_forced
    assert of.num_free_tokens is None


def test_the_output_of_an_attempt_with_another_limit_goes_on() -> None:
    of = limit(OPEN, 2)
    for character in "abcd</think>ef":
        of.push(ord(character), character, is_whole=True)
    assert not of.has_forced
    assert of.num_free_tokens is None


MESSAGES = Thought(
    begins="marked",
    starts=("<s>t:",),
    ends=("<e>", "<s>"),
    closing="<e><s>",
    reopens=True,
    before="<s>",
    closing_again="<e><s>a:",
)


def test_what_is_written_goes_on_behind_the_marker() -> None:
    answer = Thought(begins="open", ends=("<e>",), closing="<e><s>a:")
    assert written(limit(answer, 2), "abcd") == "ab<e><s>a:cd"


def test_a_header_begins_in_the_prompt_and_reasoning_that_comes_again_ends_otherwise() -> None:
    drawn = "t:abcd"
    assert written(limit(MESSAGES, 3), drawn) == "t:abc<e><s>d"
    assert written(limit(MESSAGES, 3), "t:abct:t:x") == "t:abc<e><s>t:<e><s>a:t:x"
    assert written(limit(MESSAGES, 0), "t:<s>t:a") == "t:<e><s><s>t:<e><s>a:a"


def test_a_marker_that_begins_the_next_message_ends_the_one_before() -> None:
    drawn = "t:ab<s>a:cdefghij"
    assert written(limit(MESSAGES, 6), drawn) == drawn
    assert written(limit(MESSAGES, 6), "t:ab<s>t:cdef") == "t:ab<s>t:c<e><s>def"


def test_an_attempt_goes_on_within_what_is_written() -> None:
    whole = written(limit(MESSAGES, 3), "t:abct:xyz")
    for cut in range(len(whole)):
        of = limit(MESSAGES, 3)
        for character in whole[:cut]:
            of.push(ord(character), character, is_whole=True)
        rest = list(whole[cut:])
        while of.has_forced:
            assert chr(of.next_forced()) == rest.pop(0)
            of.push(of.next_forced(), chr(of.next_forced()), is_whole=True)


@pytest.mark.parametrize(
    "wrong",
    [
        Thought(begins="open", ends=(), closing="x"),
        Thought(begins="open", ends=("",), closing="x"),
        Thought(begins="open", ends=("x",), closing=""),
        Thought(begins="open", ends=("x" * 300,), closing="x"),
        Thought(begins="open", ends=("x",) * 200, closing="x"),
        Thought(begins="open", ends=("x",), closing="x", before="x" * 300),
        Thought(begins="open", ends=("x",), closing="x", closing_again="x" * 300),
    ],
)
def test_wrong_markers_are_refused(wrong: Thought) -> None:
    with pytest.raises(InvalidRequestError):
        limit(wrong, 1)
    with pytest.raises(InvalidRequestError):
        limit(OPEN, -1)
