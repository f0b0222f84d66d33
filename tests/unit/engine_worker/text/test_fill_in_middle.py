"""Prompts around a middle are spelt as each family's models learnt them."""

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from engine_worker.errors import UnsupportedParameterError
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.fill_in_middle import FillInMiddle
from engine_worker.text.preparation import PromptPreparer
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Prepare
from tests.fakes.tiny_tokenizers import byte_level_tokenizer


def with_tokens(*texts: str) -> Tokenizer:
    """A byte-level tokenizer that also has these."""
    plain = byte_level_tokenizer()
    backend = Backend.from_str(plain.serialized())
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in texts])
    return plain.with_backend(backend)


FAMILIES = {
    "qwen": (
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"),
        "<|fim_prefix|>a = <|fim_suffix|>; b<|fim_middle|>",
        ("<|endoftext|>", "<|fim_pad|>"),
    ),
    "starcoder": (
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>"),
        "<fim_prefix>a = <fim_suffix>; b<fim_middle>",
        ("<|endoftext|>", "<file_sep>"),
    ),
    "codellama": (
        ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
        "▁<PRE>a = ▁<SUF>; b▁<MID>",
        ("▁<EOT>",),
    ),
    "deepseek": (
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        "<｜fim▁begin｜>a = <｜fim▁hole｜>; b<｜fim▁end｜>",
        (),
    ),
    "codestral": (("[PREFIX]", "[SUFFIX]"), "[SUFFIX]; b[PREFIX]a = ", ()),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_spelt_as_it_was_trained(name: str) -> None:
    markers, spelt, ends = FAMILIES[name]
    tokenizer = with_tokens(*markers)
    middle = FillInMiddle(tokenizer)
    assert middle.exists
    token_ids = middle.token_ids("a = ", "; b", add_special_tokens=False)
    assert token_ids == tokenizer.encode(spelt, add_special_tokens=False)
    ids = tokenizer.added_token_ids()
    assert middle.ending_token_ids == tuple(ids[text] for text in ends)
    by_ids = middle.token_ids(
        tokenizer.encode("a = ", add_special_tokens=False), "; b", add_special_tokens=False
    )
    assert by_ids == token_ids


def test_a_model_without_such_tokens_has_none() -> None:
    assert not FillInMiddle(byte_level_tokenizer()).exists
    assert not FillInMiddle(with_tokens("<|fim_prefix|>", "<|fim_suffix|>")).exists


def preparer(tokenizer: Tokenizer) -> PromptPreparer:
    return PromptPreparer(
        tokenizer,
        ChatTemplate(tokenizer, "m"),
        vocab_size=tokenizer.num_tokens,
        max_model_len=100,
        block_size=4,
    )


def prepare(**fields: object) -> Prepare:
    return Prepare("r", "completion", 9.0, **fields)  # type: ignore[arg-type]


def test_a_prompt_with_a_suffix_is_prepared_with_what_ends_it() -> None:
    tokenizer = with_tokens(*FAMILIES["qwen"][0])
    prepared = preparer(tokenizer).prepare(prepare(prompt="a = ", suffix="; b"))
    assert tokenizer.decode(prepared.prompt_token_ids) == FAMILIES["qwen"][1]
    assert tokenizer.added_token_ids()["<|fim_pad|>"] in prepared.stop_token_ids
    assert preparer(tokenizer).prepare(prepare(prompt="a")).stop_token_ids == ()


def test_an_engine_without_such_tokens_refuses() -> None:
    with pytest.raises(UnsupportedParameterError, match="filling in the middle"):
        preparer(byte_level_tokenizer()).prepare(prepare(prompt="a", suffix="b"))


def test_a_salt_names_other_blocks_and_no_tenant_can_be_spelt_by_it() -> None:
    one = preparer(byte_level_tokenizer())

    def hashes(**fields: object) -> tuple[bytes, ...]:
        return one.prepare(prepare(prompt="the same text", **fields)).block_hashes

    named = [
        hashes(tenant="a"),
        hashes(tenant="a", cache_salt="x"),
        hashes(tenant="a", cache_salt="y"),
        hashes(tenant="b", cache_salt="x"),
        hashes(tenant="ax"),
        hashes(tenant="('a', 'x')x"),
    ]
    assert len({each[0] for each in named}) == len(named)
    assert hashes(tenant="a", cache_salt="x") == named[1]
