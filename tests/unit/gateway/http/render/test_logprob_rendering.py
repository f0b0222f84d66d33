"""Log probabilities, echoes, token ids and the best choices, as clients get them."""

import json
import math
from typing import Any

import orjson
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.http.render.answer import ChatCollector, CompletionCollector
from gateway.http.render.common import AnswerHead
from gateway.http.render.logprobs import token_offsets
from gateway.http.render.stream import ChatStreamRenderer, CompletionStreamRenderer
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    PromptReport,
    PromptShown,
    UsageTold,
)
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.wire.messages import Prepared, TokenLogprob, TokenLogprobs, Usage
from tests.fakes.running_gateway import events_of

HEAD = AnswerHead(id="x-1", created=5, model="m", system_fingerprint="fp_1")
USAGE = Usage(prompt_tokens=3, completion_tokens=4)


def token(token_id: int, data: bytes, logprob: float = -1.5, rank: int = 1) -> TokenLogprob:
    text = data.decode(errors="replace")
    return TokenLogprob(token_id=token_id, text=text, data=data, logprob=logprob, rank=rank)


def logprobs(token_id: int, data: bytes, logprob: float = -1.5) -> TokenLogprobs:
    """A token with two likelier ones, the second of which is half a character."""
    top = (token(8, b" yes", -0.5), token(9, b"\xf0\x9f", -math.inf, 2))
    return TokenLogprobs(chosen=token(token_id, data, logprob, 3), top=top)


HI = ContentText(0, "hi", (logprobs(1, b"h"), logprobs(2, b"i")), (1, 2), (1, 2))
END = ChoiceFinished(0, "stop", USAGE, "###")
PROMPT = PromptShown(
    0,
    PromptReport(
        Prepared(
            request_id="r", prompt_token_ids=(4, 5, 6), tokens=("<s>", "a", "bc"), prompt_text="abc"
        ),
        (logprobs(5, b"a"), logprobs(6, b"bc")),
    ),
)


def chat(events: list[GenerationEvent], **options: Any) -> Any:
    collector = ChatCollector(HEAD, 1, AnswerOptions(**options))
    collector.add(events)
    return json.loads(collector.body(USAGE))


def completion(events: list[GenerationEvent], num_streams: int = 1, **options: Any) -> Any:
    collector = CompletionCollector(HEAD, num_streams, AnswerOptions(**options))
    collector.add(events)
    return json.loads(collector.body(USAGE))


def chunks(renderer: Any, events: list[GenerationEvent]) -> list[Any]:
    return events_of((renderer.render(events) + renderer.finish(USAGE)).decode())


def test_chat_tokens_have_text_bytes_and_as_many_likely_ones_as_asked() -> None:
    body = chat([HI, END], num_top_logprobs=1)
    ChatCompletion.model_validate(body)
    content = body["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["h", "i"]
    assert content[0] == {
        "token": "h",
        "logprob": -1.5,
        "bytes": [104],
        "top_logprobs": [{"token": " yes", "logprob": -0.5, "bytes": list(b" yes")}],
    }


def test_what_is_impossible_is_still_a_number() -> None:
    content = chat([HI, END], num_top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert content[0]["top_logprobs"][1] == {
        "token": "\ufffd",
        "logprob": -9999.0,
        "bytes": [0xF0, 0x9F],
    }


def test_tokens_can_be_named_by_their_ids() -> None:
    options = {"num_top_logprobs": 1, "names_token_ids": True}
    content = chat([HI], **options)["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "token_id:1"
    assert content[0]["top_logprobs"][0]["token"] == "token_id:8"
    listed = completion([PROMPT, HI], echoes=True, **options)["choices"][0]["logprobs"]
    assert listed["tokens"] == [
        "token_id:4",
        "token_id:5",
        "token_id:6",
        "token_id:1",
        "token_id:2",
    ]


def test_tokens_that_only_rank_choices_are_not_shown() -> None:
    assert completion([HI, END])["choices"][0]["logprobs"] is None
    assert chat([HI, END])["choices"][0]["logprobs"] is None
    renderer = ChatStreamRenderer(HEAD)
    assert chunks(renderer, [HI])[1]["choices"][0]["logprobs"] is None


def test_a_completion_lists_tokens_with_offsets_and_the_chosen_among_the_likely() -> None:
    body = completion([HI, END], num_top_logprobs=2)
    Completion.model_validate(body)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["h", "i"],
        "token_logprobs": [-1.5, -1.5],
        "top_logprobs": [
            {"h": -1.5, " yes": -0.5, "bytes:\\xf0\\x9f": -9999.0},
            {"i": -1.5, " yes": -0.5, "bytes:\\xf0\\x9f": -9999.0},
        ],
        "text_offset": [0, 1],
    }


def test_an_echo_begins_with_the_prompt_of_whose_first_token_nothing_is_known() -> None:
    (choice,) = completion([PROMPT, HI, END], echoes=True, num_top_logprobs=0)["choices"]
    assert choice["text"] == "abchi"
    assert choice["logprobs"] == {
        "tokens": ["<s>", "a", "bc", "h", "i"],
        "token_logprobs": [None, -1.5, -1.5, -1.5, -1.5],
        "top_logprobs": [None, {"a": -1.5}, {"bc": -1.5}, {"h": -1.5}, {"i": -1.5}],
        "text_offset": [0, 0, 1, 3, 4],
    }


def test_a_streamed_echo_joins_to_the_same_text_and_lists() -> None:
    options = AnswerOptions(echoes=True, num_top_logprobs=0)
    renderer = CompletionStreamRenderer(HEAD, options)
    more = ContentText(0, "!", (logprobs(3, b"!"),), (3,))
    pieces = [chunk["choices"][0] for chunk in chunks(renderer, [PROMPT, HI, more, END])[:-1]]
    assert "".join(piece["text"] for piece in pieces) == "abchi!"
    offsets = [one for piece in pieces[:-1] for one in piece["logprobs"]["text_offset"]]
    assert offsets == [0, 0, 1, 3, 4, 5]
    assert pieces[-1]["finish_reason"] == "stop"


def test_a_chat_stream_carries_the_tokens_of_each_chunk() -> None:
    renderer = ChatStreamRenderer(HEAD, AnswerOptions(num_top_logprobs=0, shows_token_ids=True))
    role, text, end, done = chunks(renderer, [PROMPT, HI, END])
    assert done == "[DONE]"
    for chunk in (role, text, end):
        ChatCompletionChunk.model_validate(chunk)
    assert role["prompt_token_ids"] == [4, 5, 6]
    assert "prompt_token_ids" not in text
    choice = text["choices"][0]
    assert choice["delta"] == {"content": "hi"}
    assert choice["token_ids"] == [1, 2]
    assert [one["token"] for one in choice["logprobs"]["content"]] == ["h", "i"]
    assert end["choices"][0]["stop_reason"] == "###"


def test_tokens_without_text_are_told_without_a_content_delta() -> None:
    renderer = ChatStreamRenderer(HEAD, AnswerOptions(shows_token_ids=True))
    choice = chunks(renderer, [ContentText(0, "", token_ids=(7,))])[1]["choices"][0]
    assert (choice["delta"], choice["token_ids"]) == ({}, [7])


def test_whole_answers_tell_token_ids_and_the_stop_reason() -> None:
    body = chat([PROMPT, HI, END], shows_token_ids=True)
    assert body["prompt_token_ids"] == [4, 5, 6]
    assert body["choices"][0]["token_ids"] == [1, 2]
    assert body["choices"][0]["stop_reason"] == "###"
    (choice,) = completion([PROMPT, HI, END], shows_token_ids=True)["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([4, 5, 6], [1, 2])
    assert choice["text"] == "hi"


def test_prompt_logprobs_are_listed_by_token_id_with_rank_and_text() -> None:
    body = chat([PROMPT, HI, END], num_prompt_logprobs=1)
    assert body["prompt_logprobs"] == [
        None,
        {
            "5": {"logprob": -1.5, "rank": 3, "decoded_token": "a"},
            "8": {"logprob": -0.5, "rank": 1, "decoded_token": " yes"},
        },
        {
            "6": {"logprob": -1.5, "rank": 3, "decoded_token": "bc"},
            "8": {"logprob": -0.5, "rank": 1, "decoded_token": " yes"},
        },
    ]
    (choice,) = completion([PROMPT, HI, END], num_prompt_logprobs=0)["choices"]
    assert list(choice["prompt_logprobs"][1]) == ["5"]


def test_the_best_choices_of_each_prompt_are_shown_best_first() -> None:
    events: list[GenerationEvent] = []
    # By the mean: of choice 1 the sum is the greatest, but it has the worst tokens.
    for index, values in enumerate([(-1.0, -1.2), (-1.5,), (-0.1,), (-3.0,), (-2.0,), (-4.0,)]):
        tokens = tuple(logprobs(number, b"x", value) for number, value in enumerate(values))
        events += [ContentText(index, str(index), tokens), ChoiceFinished(index, "stop", USAGE)]
    choices = completion(events, 6, num_choices=3, num_answers=2)["choices"]
    assert [choice["text"] for choice in choices] == ["2", "0", "4", "3"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]


def test_every_chunk_tells_the_usage_so_far_when_asked() -> None:
    events: list[GenerationEvent] = []
    said: tuple[GenerationEvent, ...] = (ContentText(0, "a"), ContentText(0, "b"), END)
    for number, event in enumerate(said, start=1):
        events += [UsageTold(0, Usage(prompt_tokens=3, completion_tokens=number)), event]
    options = AnswerOptions(include_usage=True, continuous_usage=True)
    for renderer, counts in (
        (ChatStreamRenderer(HEAD, options), [1, 1, 2, 3, 4]),  # the role opens the choice
        (CompletionStreamRenderer(HEAD, options), [1, 2, 3, 4]),
    ):
        told = [chunk["usage"] for chunk in chunks(renderer, events)[:-1]]
        assert [one["completion_tokens"] for one in told] == counts
        assert {one["prompt_tokens"] for one in told} == {3}


def test_offsets_skip_what_the_text_does_not_show() -> None:
    assert token_offsets("héllo wörld", ["<s>", "hé", "llo", " wö", "rld"]) == [0, 0, 2, 5, 8]
    # An emoji in two tokens: neither shows by itself, and what follows is still found.
    assert token_offsets("a😀b c", ["a", "\ufffd", "\ufffd", "b", " c"]) == [0, 1, 1, 2, 3]
    assert token_offsets("", ["<s>"]) == [0]


@pytest.mark.parametrize("num_tokens", [0, 3, 4, 9])
def test_long_lists_are_the_same_when_they_are_written_in_pieces(
    monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    """One call of the JSON library for all of an answer of 15 MB held the loop for 90 ms."""
    tokens = tuple(logprobs(number, b"x") for number in range(num_tokens))
    ends = tuple(range(1, num_tokens + 1))
    report = PromptReport(Prepared(request_id="r", prompt_token_ids=(1,)), tokens)
    events: list[GenerationEvent] = [
        PromptShown(0, report),
        ContentText(0, "x" * num_tokens, tokens, ends, ends),
        END,
    ]

    def answers() -> list[Any]:
        return [
            make(events, num_top_logprobs=2, num_prompt_logprobs=2) for make in (chat, completion)
        ]

    whole = answers()
    monkeypatch.setattr("gateway.http.render.answer.PIECE_TOKENS", 3)
    written: list[int] = []
    dumps = orjson.dumps

    def noting(value: Any) -> bytes:
        if isinstance(value, list):
            written.append(len(value))
        return dumps(value)

    monkeypatch.setattr("gateway.http.render.answer.orjson.dumps", noting)
    assert answers() == whole
    assert max(written) <= 3
    assert len(whole[0]["choices"][0]["logprobs"]["content"]) == num_tokens
