"""Which scores of a prompt are asked for and told, also when its work was lost in between."""

from engine_worker.core.choice.batch import RowSampling, TokenScores
from engine_worker.core.choice.choice import Choice
from engine_worker.core.decoding.token_logprobs import (
    describe,
    prompt_tokens_to_score,
    take_prompt_scores,
)
from tests.fakes.tiny_tokenizers import (
    byte_level_tokenizer,
    sentencepiece_tokenizer,
    wordpiece_tokenizer,
)

PROMPT = tuple(range(10, 20))


def make_choice(num_prompt_logprobs: int | None = 0) -> Choice:
    return Choice(
        gateway_id="g",
        request_id="r",
        index=0,
        attempt=0,
        prompt_token_ids=PROMPT,
        sampling=RowSampling(num_prompt_logprobs=num_prompt_logprobs),
        max_output_tokens=5,
        lease_tokens=5,
        deadline=1.0,
    )


def compute(choice: Choice, num_tokens: int) -> list[int]:
    """A chunk of the prompt is computed and scored; the tokens whose scores are then told."""
    start = choice.num_computed_tokens
    wanted = prompt_tokens_to_score(choice, num_tokens)
    scores = [TokenScores(token_id, -1.0, 1, ()) for token_id in wanted]
    choice.num_computed_tokens += num_tokens
    return [each.token_id for each in take_prompt_scores(choice, start, scores)] if scores else []


def test_a_chunk_asks_for_the_tokens_that_follow_its_own() -> None:
    choice = make_choice()
    assert compute(choice, 4) == [11, 12, 13, 14]
    assert compute(choice, 6) == [15, 16, 17, 18, 19]
    assert prompt_tokens_to_score(choice, 1) == ()


def test_nothing_is_asked_for_unless_it_is_wanted() -> None:
    assert prompt_tokens_to_score(make_choice(None), 4) == ()


def test_what_was_told_before_a_preemption_is_not_told_again() -> None:
    choice = make_choice()
    assert compute(choice, 5) == [11, 12, 13, 14, 15]
    choice.num_computed_tokens = 0
    assert compute(choice, 3) == []
    assert compute(choice, 4) == [16, 17]
    assert compute(choice, 3) == [18, 19]
    choice.num_computed_tokens = 0
    assert compute(choice, 10) == []


def test_a_token_is_described_by_its_own_bytes_and_text() -> None:
    tokenizer = byte_level_tokenizer()
    special = tokenizer.encode("<|im_end|>", add_special_tokens=False)[0]
    scores = TokenScores(0xC3, -2.5, 7, ((256, -0.5), (special, -0.75)))
    described = describe(scores, tokenizer)
    assert (described.chosen.text, described.chosen.data) == ("\ufffd", b"\xc3")
    assert (described.chosen.logprob, described.chosen.rank) == (-2.5, 7)
    assert [(one.text, one.data, one.rank) for one in described.top] == [
        (" t", b" t", 1),
        ("<|im_end|>", b"<|im_end|>", 2),
    ]


def test_a_token_of_an_unknown_kind_of_tokenizer_is_what_it_decodes_to() -> None:
    tokenizer = wordpiece_tokenizer()
    token_id = tokenizer.encode("hello", add_special_tokens=False)[0]
    assert tokenizer.token_text(token_id) == tokenizer.decode([token_id]) != ""
    assert tokenizer.token_bytes(token_id).decode() == tokenizer.token_text(token_id)


def test_a_sentencepiece_token_keeps_its_space_and_a_byte_token_its_byte() -> None:
    tokenizer = sentencepiece_tokenizer()
    found = {
        text: (tokenizer.token_bytes(token_id), tokenizer.token_text(token_id))
        for text, token_id in tokenizer._backend.get_vocab().items()
    }
    assert found["▁world"] == (b" world", " world")
    assert found["<0x0A>"] == (b"\n", "\n")
    assert found["<0xE2>"] == (b"\xe2", "\ufffd")
    assert found["é"] == ("é".encode(), "é")
