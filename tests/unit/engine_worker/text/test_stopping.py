from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.core.choice.batch import RowSampling
from engine_worker.core.choice.choice import Choice
from engine_worker.text.stopping import Stop, StopStrings, length_stop, token_stop


def make_choice(output: list[int], **changes: object) -> Choice:
    choice = Choice(
        gateway_id="g",
        request_id="r",
        index=0,
        attempt=0,
        prompt_token_ids=(1,),
        sampling=RowSampling(),
        max_output_tokens=10,
        lease_tokens=10,
        deadline=1.0,
        eos_token_ids=frozenset({7}),
        stop_token_ids=frozenset({8}),
        output_token_ids=output,
    )
    for name, value in changes.items():
        setattr(choice, name, value)
    return choice


def feed_all(stops: StopStrings, parts: list[str]) -> tuple[str, str | None]:
    shown = ""
    for part in parts:
        visible, found = stops.feed(part)
        shown += visible
        if found is not None:
            return shown, found
    return shown + stops.flush(), None


def first_stop(text: str, strings: list[str], include: bool) -> tuple[str, str | None]:
    """The rule, written the slow way: the first end wins, then the longest string."""
    for end in range(1, len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def test_end_of_sequence_stops_without_a_detail() -> None:
    assert token_stop(make_choice([1, 7])) == Stop("stop", None)


def test_a_stop_id_stops_and_is_named() -> None:
    assert token_stop(make_choice([1, 8])) == Stop("stop", 8)


def test_an_ordinary_token_does_not_stop() -> None:
    assert token_stop(make_choice([7, 1])) is None


def test_nothing_stops_within_min_tokens() -> None:
    choice = make_choice([7], min_tokens=2)
    assert token_stop(choice) is None
    choice.output_token_ids.append(7)
    assert token_stop(choice) is None
    choice.output_token_ids.append(7)
    assert token_stop(choice) == Stop("stop")


def test_the_length_stops_at_max_output_tokens() -> None:
    assert length_stop(make_choice([1] * 9)) is None
    assert length_stop(make_choice([1] * 10)) == Stop("length")


def test_a_stop_string_is_found_across_borders_and_cut_off() -> None:
    assert feed_all(StopStrings(["END"]), ["one E", "N", "D two"]) == ("one ", "END")


def test_a_stop_string_stays_when_it_is_to_be_included() -> None:
    stops = StopStrings(["END"], include=True)
    assert feed_all(stops, ["one E", "N", "D two"]) == ("one END", "END")


def test_a_possible_beginning_is_held_back_and_released_when_it_was_none() -> None:
    stops = StopStrings(["END"])
    assert stops.feed("one EN") == ("one ", None)
    assert stops.feed("T") == ("ENT", None)


def test_what_is_held_back_at_the_end_is_shown() -> None:
    stops = StopStrings(["END"])
    assert stops.feed("EN") == ("", None)
    assert stops.flush() == "EN"


def test_text_that_passes_through_is_not_searched() -> None:
    stops = StopStrings(["END"])
    assert stops.feed("E") == ("", None)
    assert stops.pass_through("ND") == "END"
    assert stops.feed("END") == ("", "END")


@settings(deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
)
def test_the_result_is_the_rule_however_the_text_is_cut(
    parts: list[str], strings: list[str], include: bool
) -> None:
    result = feed_all(StopStrings(strings, include=include), parts)
    assert result == first_stop("".join(parts), strings, include)


@settings(deadline=None)
@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_no_character_of_a_stop_string_is_ever_shown(text: str, strings: list[str]) -> None:
    stops = StopStrings(strings)
    shown = ""
    for character in text:
        visible, found = stops.feed(character)
        shown += visible
        if found is not None:
            break
    assert not any(string in shown for string in strings)
