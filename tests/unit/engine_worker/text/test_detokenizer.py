from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.text.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from engine_worker.text.tokenizer import Tokenizer
from tests.fakes.tiny_tokenizers import (
    byte_level_tokenizer,
    metaspace_tokenizer,
    sentencepiece_tokenizer,
    wordpiece_tokenizer,
)

BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE = sentencepiece_tokenizer()
METASPACE = metaspace_tokenizer()
WORDPIECE = wordpiece_tokenizer()


def pieces(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.finish()]


def text_of(tokenizer: Tokenizer, token_ids: Sequence[int], skip: bool = False) -> str:
    detokenizer = tokenizer.detokenizer((), skip_special_tokens=skip)
    return "".join(pieces(detokenizer, token_ids))


def byte_tokens(text: str) -> list[int]:
    return [1 + byte for byte in text.encode()]


@settings(deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.num_tokens - 1)), st.booleans())
def test_any_byte_level_sequence_gives_the_text_of_the_whole(
    token_ids: list[int], skip: bool
) -> None:
    expected = BYTE_LEVEL.decode(token_ids, skip_special_tokens=skip)
    assert text_of(BYTE_LEVEL, token_ids, skip) == expected


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(257, SENTENCEPIECE.num_tokens - 1).map(lambda token_id: [token_id]),
            st.characters(codec="utf-8").map(byte_tokens),
        )
    ).map(lambda parts: [token_id for part in parts for token_id in part]),
    st.booleans(),
)
def test_any_sentencepiece_sequence_with_whole_characters_gives_the_text_of_the_whole(
    token_ids: list[int], skip: bool
) -> None:
    expected = SENTENCEPIECE.decode(token_ids, skip_special_tokens=skip)
    assert text_of(SENTENCEPIECE, token_ids, skip) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, METASPACE.num_tokens - 1)), st.booleans())
def test_any_metaspace_sequence_gives_the_text_of_the_whole(
    token_ids: list[int], skip: bool
) -> None:
    expected = METASPACE.decode(token_ids, skip_special_tokens=skip)
    assert text_of(METASPACE, token_ids, skip) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, WORDPIECE.num_tokens - 1), max_size=60), st.booleans())
def test_any_sequence_of_an_unknown_decoder_gives_the_text_of_the_whole(
    token_ids: list[int], skip: bool
) -> None:
    expected = WORDPIECE.decode(token_ids, skip_special_tokens=skip)
    assert text_of(WORDPIECE, token_ids, skip) == expected


@settings(deadline=None)
@given(st.sampled_from([BYTE_LEVEL, SENTENCEPIECE, METASPACE]), st.data())
def test_the_text_of_a_token_that_depends_on_no_other_is_what_pushing_it_gives(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    kept = data.draw(st.sampled_from([(), ("<|im_end|>",)]))
    prompt = data.draw(st.sampled_from([(), (0, 65)]))
    skips = data.draw(st.booleans())
    pushed, left_out = (
        tokenizer.detokenizer(prompt, skip_special_tokens=skips, keep_special_tokens=kept)
        for _ in range(2)
    )
    for token_id in data.draw(st.lists(st.integers(0, tokenizer.num_tokens - 1), max_size=40)):
        texts = left_out.texts
        text = pushed.push(token_id)
        if texts is not None and texts[token_id]:
            assert text == texts[token_id]
        else:
            assert left_out.push(token_id) == text
        assert left_out.is_whole == pushed.is_whole
    assert left_out.finish() == pushed.finish()


def test_tokens_whose_text_may_depend_on_others_have_none_of_their_own() -> None:
    detokenizer = BYTE_LEVEL.detokenizer((), skip_special_tokens=False)
    texts = detokenizer.texts
    assert texts is not None
    special = BYTE_LEVEL.encode("<|im_end|>", add_special_tokens=False)[0]
    assert [texts[one] for one in (97, 0xC3, special, 257)] == ["a", "", "", "he"]
    found = []
    for token_id in "é".encode():
        detokenizer.push(token_id)
        found.append(detokenizer.texts)
    assert found == [None, texts]
    assert SENTENCEPIECE.detokenizer(()).texts is None  # a space at the beginning is dropped
    assert WORDPIECE.detokenizer(()).texts is None


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE, METASPACE])
def test_the_usual_decoders_are_decoded_from_a_table(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer.detokenizer(()), ByteDetokenizer)
    assert isinstance(WORDPIECE.detokenizer(()), WindowDetokenizer)


def test_a_half_character_waits_for_its_other_bytes() -> None:
    detokenizer = BYTE_LEVEL.detokenizer(())
    assert pieces(detokenizer, "a€".encode()) == ["a", "", "", "€", ""]


def test_bytes_that_never_become_a_character_end_as_one_replacement_character() -> None:
    detokenizer = BYTE_LEVEL.detokenizer(())
    assert pieces(detokenizer, "a€".encode()[:-1]) == ["a", "", "", "\ufffd"]


def test_a_run_of_broken_sentencepiece_bytes_keeps_the_characters_before_it() -> None:
    broken = [*byte_tokens("€"), 1 + 0xFF, *byte_tokens("!")]
    assert text_of(SENTENCEPIECE, broken) == "€\ufffd!"


def test_kept_special_tokens_stay_while_others_are_skipped() -> None:
    token_ids = BYTE_LEVEL.encode("<|im_start|>a<|im_end|>", add_special_tokens=False)
    detokenizer = BYTE_LEVEL.detokenizer((), keep_special_tokens=["<|im_end|>", "unknown"])
    assert "".join(pieces(detokenizer, token_ids)) == "a<|im_end|>"


def test_plain_added_tokens_are_always_in_the_text() -> None:
    token_ids = BYTE_LEVEL.encode("<tool_call>x", add_special_tokens=False)
    assert len(token_ids) == 2
    assert text_of(BYTE_LEVEL, token_ids, skip=True) == "<tool_call>x"


def test_the_space_before_the_first_word_stays_when_the_output_continues_a_text() -> None:
    hello = SENTENCEPIECE.encode("▁Hello", add_special_tokens=False)
    after_text = SENTENCEPIECE.detokenizer(hello)
    after_special = SENTENCEPIECE.detokenizer(
        SENTENCEPIECE.encode("<|im_start|>", add_special_tokens=False)
    )
    world = [257 + 2]
    assert "".join(pieces(after_text, world)) == " world"
    assert "".join(pieces(after_special, world)) == "world"


def test_a_window_of_broken_bytes_does_not_grow_without_bound() -> None:
    longest = 0

    def decode(token_ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return bytes(token_ids).decode(errors="replace")

    detokenizer = WindowDetokenizer(decode, frozenset(), ())
    text = "".join(pieces(detokenizer, [0x80] * 1000))
    assert longest <= 16
    assert set(text) == {"\ufffd"}
