"""Each request parameter with the real engine: every test fails when its parameter is ignored."""

import math
from collections.abc import Mapping
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Harness

pytestmark = pytest.mark.process

MODEL = "penstock-demo"
COUNT = [{"role": "user", "content": "Count from 1 to 5."}]
HELLO = [{"role": "user", "content": "Hello!"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def post(harness: Harness, path: str, body: Mapping[str, Any]) -> Any:
    """The JSON answer to a body that must be right."""
    answer = httpx.post(f"{harness.url}{path}", json=body, timeout=120.0, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chat(harness: Harness, **fields: Any) -> Any:
    """The answer to a question that the model answers with "1, 2, 3, 4, 5" and the like."""
    body = {"model": MODEL, "messages": COUNT, "temperature": 0, **fields}
    return post(harness, "/v1/chat/completions", body)


def text(harness: Harness, **fields: Any) -> str:
    content: str = chat(harness, **fields)["choices"][0]["message"]["content"]
    return content


def token_ids(harness: Harness, **fields: Any) -> list[int]:
    """The output tokens of the chat."""
    ids: list[int] = chat(harness, return_token_ids=True, **fields)["choices"][0]["token_ids"]
    return ids


def complete(harness: Harness, **fields: Any) -> Any:
    body = {"model": MODEL, "prompt": "1 2 3", "temperature": 0, "max_tokens": 8, **fields}
    return post(harness, "/v1/completions", body)


def test_logit_bias_forbids_and_forces_tokens(harness: Harness) -> None:
    first, second = token_ids(harness)[:2]
    assert token_ids(harness, logit_bias={str(first): -100}, max_tokens=1) != [first]
    forced = token_ids(harness, logit_bias={str(second): 100}, max_tokens=3)
    assert forced == [second] * 3


def test_only_allowed_tokens_are_drawn(harness: Harness) -> None:
    allowed = sorted(set(token_ids(harness)[:3]))
    drawn = token_ids(
        harness, allowed_token_ids=allowed, temperature=2, seed=5, max_tokens=12, ignore_eos=True
    )
    assert len(drawn) == 12
    assert set(drawn) <= set(allowed)


def test_bad_words_do_not_appear(harness: Harness) -> None:
    assert "3" in text(harness)
    assert "3" not in text(harness, bad_words=["3"], max_tokens=24)


def test_chat_tokens_spell_the_answer_and_greedy_ones_are_the_likeliest(harness: Harness) -> None:
    (choice,) = chat(harness, logprobs=True, top_logprobs=5)["choices"]
    tokens = choice["logprobs"]["content"]
    spelt = b"".join(bytes(token["bytes"]) for token in tokens).decode()
    assert spelt.startswith(choice["message"]["content"])
    for token in tokens:
        assert token["logprob"] <= 0
        top = [one["logprob"] for one in token["top_logprobs"]]
        assert len(top) == 5
        assert top == sorted(top, reverse=True)
        assert token["token"] == token["top_logprobs"][0]["token"]
        assert sum(map(math.exp, top)) <= 1.0001


def test_a_stream_tells_the_same_tokens(harness: Harness, client: Any) -> None:
    fields = {"model": MODEL, "messages": COUNT, "temperature": 0}
    fields |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**fields).choices[0].logprobs.content
    chunks = client.chat.completions.create(**fields, stream=True)
    lists = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    streamed = [token for one in lists if one for token in one.content]
    assert [token.token for token in streamed] == [token.token for token in whole]
    assert streamed[0].logprob == pytest.approx(whole[0].logprob, abs=1e-4)


def test_the_tokens_of_a_tool_call_are_not_told_as_content(harness: Harness) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = chat(harness, messages=messages, tools=[WEATHER], logprobs=True)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    told = "".join(token["token"] for token in choice["logprobs"]["content"])
    assert "get_weather" not in told
    assert told.strip() == (choice["message"]["content"] or "").strip()


def test_a_completion_lists_its_tokens_where_they_stand(harness: Harness) -> None:
    (choice,) = complete(harness, logprobs=2)["choices"]
    listed = choice["logprobs"]
    assert "".join(listed["tokens"]).startswith(choice["text"])
    for token, offset in zip(listed["tokens"], listed["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token) or offset == len(choice["text"])
    for token, own, top in zip(
        listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True
    ):
        assert top[token] == own
        assert len(top) in (2, 3)


def test_an_echo_shows_the_prompt_and_what_the_model_thought_of_it(harness: Harness) -> None:
    plain = complete(harness)["choices"][0]["text"]
    (choice,) = complete(harness, echo=True, logprobs=0)["choices"]
    assert choice["text"] == "1 2 3" + plain
    listed = choice["logprobs"]
    assert "".join(listed["tokens"]).endswith(plain)
    assert listed["token_logprobs"][0] is None
    assert all(one <= 0 for one in listed["token_logprobs"][1:])
    alone = complete(harness, echo=True, logprobs=0, max_tokens=0)
    (only,) = alone["choices"]
    assert only["text"] == "1 2 3"
    num_prompt = alone["usage"]["prompt_tokens"]
    assert len(only["logprobs"]["tokens"]) == num_prompt
    assert only["logprobs"]["token_logprobs"][1:] == pytest.approx(
        listed["token_logprobs"][1:num_prompt], abs=1e-4
    )


def test_prompt_logprobs_are_those_of_the_echo(harness: Harness) -> None:
    (choice,) = complete(harness, prompt_logprobs=3)["choices"]
    (echo,) = complete(harness, echo=True, logprobs=0, max_tokens=0)["choices"]
    told = choice["prompt_logprobs"]
    assert told[0] is None
    own = [next(iter(one.values()))["logprob"] for one in told[1:]]
    assert own == pytest.approx(echo["logprobs"]["token_logprobs"][1:], abs=1e-4)
    assert all(len(one) in (3, 4) for one in told[1:])
    assert all({1, 2, 3} <= {entry["rank"] for entry in one.values()} for one in told[1:])


def test_the_best_of_several_has_the_likeliest_tokens(harness: Harness) -> None:
    fields = {"temperature": 1.5, "seed": 3, "logprobs": 0, "prompt": "Hello"}
    every = complete(harness, n=4, **fields)["choices"]
    means = [
        sum(one["logprobs"]["token_logprobs"]) / len(one["logprobs"]["tokens"]) for one in every
    ]
    best = every[means.index(max(means))]["text"]
    assert len({one["text"] for one in every}) > 1
    answer = complete(harness, best_of=4, **fields)
    assert [one["text"] for one in answer["choices"]] == [best]
    assert answer["usage"]["completion_tokens"] > len(answer["choices"][0]["logprobs"]["tokens"])


def test_min_tokens_put_the_end_off(harness: Harness) -> None:
    usual = chat(harness)["usage"]["completion_tokens"]
    longer = chat(harness, min_tokens=usual + 4, max_tokens=usual + 8)["usage"]
    assert longer["completion_tokens"] >= usual + 4


def test_ignore_eos_goes_on_to_the_limit(harness: Harness) -> None:
    usual = chat(harness)["usage"]["completion_tokens"]
    body = chat(harness, ignore_eos=True, max_tokens=usual + 5)
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == usual + 5


@pytest.mark.parametrize("limit", [{}, {"max_tokens": None}, {"max_completion_tokens": None}])
def test_without_a_limit_the_answer_ends_by_itself(harness: Harness, limit: dict[str, Any]) -> None:
    assert chat(harness, **limit)["choices"][0]["finish_reason"] == "stop"


def test_max_completion_tokens_are_the_limit(harness: Harness) -> None:
    assert chat(harness, max_completion_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_stop_string_stays_when_asked_for(harness: Harness) -> None:
    without = chat(harness, stop=["3"])["choices"][0]
    assert not without["message"]["content"].endswith("3")
    assert without["stop_reason"] == "3"
    assert text(harness, stop=["3"], include_stop_str_in_output=True).endswith("3")


def test_a_stop_token_ends_the_output(harness: Harness) -> None:
    ids = token_ids(harness)
    body = chat(harness, stop_token_ids=[ids[2]], return_token_ids=True)
    (choice,) = body["choices"]
    assert choice["token_ids"] == ids[: ids.index(ids[2]) + 1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[2])


def test_special_tokens_are_shown_when_asked_for(harness: Harness) -> None:
    usual = chat(harness)["usage"]["completion_tokens"]
    # Past its end the model writes the token that would have ended it.
    fields = {"ignore_eos": True, "max_tokens": usual + 1}
    assert "<|" not in text(harness, **fields)
    assert "<|" in text(harness, skip_special_tokens=False, **fields)


def test_a_prompt_is_cut_at_its_beginning(harness: Harness) -> None:
    whole = complete(harness, prompt="one two three 1 2 3", return_token_ids=True)
    cut = complete(
        harness, prompt="one two three 1 2 3", return_token_ids=True, truncate_prompt_tokens=4
    )
    assert cut["usage"]["prompt_tokens"] == 4
    ids = whole["choices"][0]["prompt_token_ids"]
    assert cut["choices"][0]["prompt_token_ids"] == ids[-4:]
    long = "word " * 4000
    assert (
        complete(harness, prompt=long, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] > 1000
    )
    with pytest.raises(AssertionError, match="context_length_exceeded"):
        complete(harness, prompt=long)


@pytest.mark.parametrize("field", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_filter_that_leaves_one_token_is_greedy(harness: Harness, field: dict[str, Any]) -> None:
    greedy = text(harness, max_tokens=12)
    assert text(harness, temperature=2, seed=1, max_tokens=12, **field) == greedy
    assert text(harness, temperature=2, seed=1, max_tokens=12) != greedy


@pytest.mark.parametrize(
    "field", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 3}]
)
def test_a_penalty_changes_what_would_repeat(harness: Harness, field: dict[str, Any]) -> None:
    # Hot enough that the difference of two in a logit shows within a few dozen tokens.
    fields = {"messages": HELLO, "temperature": 2, "seed": 7, "ignore_eos": True, "max_tokens": 48}
    assert token_ids(harness, **fields, **field) != token_ids(harness, **fields)


def test_a_seed_repeats_and_another_differs(harness: Harness) -> None:
    def draw(seed: int) -> list[int]:
        return token_ids(harness, messages=HELLO, temperature=2, seed=seed, max_tokens=12)

    first = draw(1)
    assert draw(1) == first
    assert {tuple(draw(seed)) for seed in range(2, 5)} != {tuple(first)}


def test_tokens_make_the_round_trip(harness: Harness) -> None:
    told = post(harness, "/tokenize", {"prompt": "1 2 3", "return_token_strs": True})
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == 2048
    assert post(harness, "/detokenize", {"tokens": told["tokens"]})["prompt"] == "1 2 3"
    counted = post(harness, "/tokenize", {"model": MODEL, "messages": COUNT})
    assert counted["count"] == chat(harness, max_tokens=1)["usage"]["prompt_tokens"]
    ids = chat(harness, max_tokens=1, return_token_ids=True)["prompt_token_ids"]
    assert counted["tokens"] == ids


def test_a_prompt_that_was_computed_is_found_again(harness: Harness) -> None:
    messages = [{"role": "user", "content": "A long question, once more. " * 20}]
    chat(harness, messages=messages, max_tokens=1)
    usage = chat(harness, messages=messages, max_tokens=1)["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < usage["prompt_tokens"]


def test_every_chunk_tells_the_usage_so_far(client: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=COUNT, temperature=0, stream=True, stream_options=options
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3


def test_a_models_card_tells_what_it_can_do(client: Any) -> None:
    card = client.models.retrieve(MODEL).model_dump()
    assert "chat" in card["capabilities"]
    assert card["limits"]["max_logprobs"] == 20
    assert card["limits"]["max_model_len"] == 2048
    assert card["limits"]["vocab_size"] > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"9999999": 1}),
        ("allowed_token_ids", [9999999]),
        ("stop_token_ids", [9999999]),
        ("prompt_logprobs", 21),
        ("truncate_prompt_tokens", 0),
        ("best_of", 0),
    ],
)
def test_what_the_model_does_not_have_is_a_400(client: Any, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as info:
        client.completions.create(model=MODEL, prompt="x", extra_body={field: value})
    assert info.value.param == field
