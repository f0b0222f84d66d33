"""The scripted engine: known words at a known rate, resumes, and trouble on request."""

import json
import math
import struct
from typing import Any

import pytest

from penstock.fake_engine.engine import FakeEngine, FakeEngineSettings
from penstock.fake_engine.script import VOCAB_SIZE, Script, decode, encode, find_fault, word_of
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Cancel,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Extend,
    Failure,
    Finished,
    Generate,
    Message,
    Prepare,
    Prepared,
    Profile,
    SamplingParams,
    StepOutput,
)


class Lab:
    """A scripted engine with a clock that a test turns."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.sent: list[tuple[str, Message]] = []
        self.crashes = 0
        self.num_gateways = 1
        self.engine = FakeEngine(
            FakeEngineSettings(**settings),
            lambda gateway, message: self.sent.append((gateway, message)),
            clock=lambda: self.now,
            num_gateways=lambda: self.num_gateways,
            crash=self._crash,
        )

    def _crash(self) -> None:
        self.crashes += 1

    def generate(self, prompt: str = "Hello", gateway: str = "gw", **fields: Any) -> Generate:
        sampling = SamplingParams(**fields.pop("sampling", {}))
        command = Generate(
            request_id=fields.pop("request_id", "r"),
            choice=fields.pop("choice", 0),
            attempt=fields.pop("attempt", 1),
            prompt_token_ids=encode(prompt),
            sampling=sampling,
            lease_tokens=fields.pop("lease_tokens", 1000),
            deadline_s=60.0,
            **fields,
        )
        self.engine.handle(gateway, command)
        return command

    def run(self, num_steps: int = 200) -> None:
        for _ in range(num_steps):
            self.now += 1.0
            self.engine.step()

    @property
    def outputs(self) -> list[StepOutput]:
        return [message for _, message in self.sent if isinstance(message, StepOutput)]

    @property
    def deltas(self) -> list[Delta]:
        return [delta for output in self.outputs for delta in output.deltas]

    @property
    def ends(self) -> list[Finished | Failure]:
        return [end for output in self.outputs for end in output.ends]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


def test_an_output_is_that_of_the_script_and_ends_by_itself() -> None:
    lab = Lab(num_output_tokens=7)
    command = lab.generate("Hi", sampling={"seed": 3})
    lab.run()
    assert lab.text == Script(command.prompt_token_ids, 3, 0).text(7)
    (end,) = lab.ends
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.completion_tokens) == ("stop", 7)


def test_max_tokens_cuts_and_ignore_eos_goes_on() -> None:
    lab = Lab(num_output_tokens=7)
    lab.generate(sampling={"max_tokens": 3})
    lab.generate(sampling={"max_tokens": 20, "ignore_eos": True}, request_id="s")
    lab.run()
    reasons = {
        end.request_id: (end.finish_reason, end.usage.completion_tokens)
        for end in lab.ends
        if isinstance(end, Finished)
    }
    assert reasons == {"r": ("length", 3), "s": ("length", 20)}


def test_seeds_and_choices_say_different_things() -> None:
    texts = {Script((1, 2), seed, choice).text(20) for seed in (1, 2) for choice in (0, 1)}
    assert len(texts) == 4


def test_a_resumed_stream_sends_only_what_is_new() -> None:
    whole = Lab(num_output_tokens=9)
    command = whole.generate()
    whole.run()
    script = Script(command.prompt_token_ids, 0, 0)
    rest = Lab(num_output_tokens=9)
    sent = len(script.text(4)) + 2
    rest.generate(
        output_token_ids=tuple(script.token(place) for place in range(4)),
        num_sent_characters=sent,
        attempt=2,
    )
    rest.run()
    assert rest.text == whole.text[sent:]
    assert len(rest.deltas) == 5


def test_resumed_tokens_of_another_stream_are_refused() -> None:
    lab = Lab()
    lab.generate(output_token_ids=(300, 300, 300))
    lab.run(1)
    (end,) = lab.ends
    assert isinstance(end, Failure)
    assert "not those of the script" in end.message


def test_the_rate_is_one_token_a_step_and_late_steps_are_not_made_up_for() -> None:
    lab = Lab(tokens_per_s=10.0)
    lab.generate()
    assert lab.engine.wait_s() == 0.0
    lab.engine.step()
    assert lab.engine.wait_s() == pytest.approx(0.1)
    lab.engine.step()
    assert len(lab.deltas) == 1
    lab.now += 5.0
    lab.engine.step()
    lab.engine.step()
    assert len(lab.deltas) == 2


def test_a_prompt_takes_its_time() -> None:
    lab = Lab(prefill_tokens_per_s=10.0)
    lab.generate("x" * 50)
    lab.now += 4.9
    lab.engine.step()
    assert not lab.deltas
    lab.now += 0.2
    lab.engine.step()
    assert len(lab.deltas) == 1


def test_all_streams_of_a_step_share_one_message_and_the_rest_waits() -> None:
    lab = Lab(max_num_seqs=2)
    for name in ("a", "b", "c"):
        lab.generate(request_id=name)
    assert (lab.engine.load().num_running, lab.engine.load().num_waiting) == (2, 1)
    lab.run(1)
    (output,) = lab.outputs
    assert [delta.request_id for delta in output.deltas] == ["a", "b"]


def test_a_stream_pauses_at_its_lease_until_it_grows() -> None:
    lab = Lab(num_output_tokens=6)
    lab.generate(lease_tokens=2)
    lab.run(10)
    assert len(lab.deltas) == 2
    lab.engine.handle("gw", Extend(request_id="r", choice=0, attempt=1, lease_tokens=10))
    lab.run(10)
    assert len(lab.deltas) == 6


def test_an_abort_ends_with_what_was_used() -> None:
    lab = Lab()
    lab.generate()
    lab.run(3)
    lab.engine.handle("gw", Abort(request_id="r", attempt=1))
    (end,) = lab.ends
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.completion_tokens) == ("abort", 3)
    assert lab.engine.num_unfinished == 0


def test_a_lost_gateway_takes_its_streams_along() -> None:
    lab = Lab()
    lab.generate()
    lab.engine.forget_gateway("gw")
    assert lab.engine.num_unfinished == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[[crash]]", ("crash", 0)), ("a [[hang@12]] b", ("hang", 12)), ("[[fail@x]]", None)],
)
def test_a_prompt_asks_for_trouble_in_brackets(text: str, expected: tuple[str, int] | None) -> None:
    fault = find_fault(text)
    assert (fault and (fault.kind, fault.num_tokens)) == expected


def test_trouble_comes_after_as_many_tokens_as_were_asked_for() -> None:
    lab = Lab()
    lab.generate("[[crash@2]]")
    lab.run(3)
    assert (len(lab.deltas), lab.crashes) == (2, 1)

    lab = Lab()
    lab.generate("[[fail@3]]")
    lab.run(10)
    (end,) = lab.ends
    assert isinstance(end, Failure)
    assert end.usage is not None
    assert end.usage.completion_tokens == 3

    lab = Lab()
    lab.generate("[[hang@1]]")
    lab.run(10)
    assert (lab.engine.is_hanging, len(lab.deltas), lab.engine.wait_s()) == (True, 1, None)


@pytest.mark.parametrize("fields", [{"stop": ("x",)}, {"logprobs": 1}, {"prompt_logprobs": 0}])
def test_what_a_script_cannot_honour_is_refused(fields: dict[str, Any]) -> None:
    lab = Lab()
    lab.generate(sampling=fields)
    (end,) = lab.ends
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.UNSUPPORTED_PARAMETER
    assert next(iter(fields)) in end.message


def test_a_chat_is_prepared_as_bytes_and_read_back() -> None:
    lab = Lab()
    messages = [{"role": "user", "content": [{"type": "text", "text": "Grüße"}]}]
    prepare = Prepare(
        request_id="p", kind="chat", deadline_s=9.0, messages_json=json.dumps(messages)
    )
    lab.engine.handle("gw", prepare)
    prepared = lab.sent[-1][1]
    assert isinstance(prepared, Prepared)
    assert decode(prepared.prompt_token_ids) == "user: Grüße\n"
    ids = (*prepared.prompt_token_ids, Script(prepared.prompt_token_ids, 0, 0).token(0))
    lab.engine.handle("gw", Detokenize(request_id="d", token_ids=ids, deadline_s=9.0))
    answer = lab.sent[-1][1]
    assert isinstance(answer, Detokenized)
    assert answer.text.startswith("user: Grüße\n ")


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    lab = Lab(max_model_len=10)
    prepare = Prepare(request_id="p", kind="completion", deadline_s=9.0, prompt="x" * 10)
    lab.engine.handle("gw", prepare)
    failure = lab.sent[-1][1]
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert failure.message.count("10") == 2


def test_what_it_cannot_do_at_all_gets_an_answer() -> None:
    lab = Lab()
    lab.engine.handle("gw", Profile(request_id="p", duration_s=1.0))
    failure = lab.sent[-1][1]
    assert isinstance(failure, Failure)
    assert failure.request_id == "p"


def test_nobody_waits_for_the_answer_to_a_cancelled_question() -> None:
    lab = Lab()
    lab.engine.handle("gw", Cancel(request_id="p"))
    assert not lab.sent


def test_other_weights_say_other_words_and_refuse_what_the_old_ones_began() -> None:
    old, new = Lab(num_output_tokens=9), Lab(num_output_tokens=9, fingerprint="new")
    assert old.engine.offer.fingerprint != new.engine.offer.fingerprint == "new"
    command = old.generate()
    new.generate()
    old.run()
    new.run()
    assert old.text != new.text == Script(command.prompt_token_ids, 0, 0, "new").text(9)
    begun = tuple(token_id for delta in old.deltas[:3] for token_id in delta.token_ids)
    new.generate(request_id="s", output_token_ids=begun, attempt=2)
    assert isinstance(new.ends[-1], Failure)


def test_without_pauses_what_nobody_reads_along_is_one_delta() -> None:
    lab = Lab(tokens_per_s=0.0, num_output_tokens=9)
    command = lab.generate(is_streaming=False)
    lab.engine.step()
    (output,) = lab.outputs
    (delta,) = output.deltas
    script = Script(command.prompt_token_ids, 0, 0)
    assert delta.text == script.text(9)
    assert delta.token_ids == tuple(script.tokens(0, 9))
    assert [delta.text[:end] for end in delta.token_ends] == [script.text(n) for n in range(1, 10)]
    assert len(output.ends) == 1


def test_a_delta_of_many_tokens_keeps_to_lease_trouble_and_what_was_sent() -> None:
    lab = Lab(tokens_per_s=0.0, num_output_tokens=9)
    command = lab.generate(is_streaming=False, lease_tokens=4, num_sent_characters=8)
    script = Script(command.prompt_token_ids, 0, 0)
    lab.engine.step()
    assert lab.text == script.text(4)[8:]
    assert lab.engine.wait_s() is None
    lab.engine.handle("gw", Extend(request_id="r", choice=0, attempt=1, lease_tokens=10))
    assert lab.engine.wait_s() == 0.0
    lab.engine.step()
    assert lab.text == script.text(9)[8:]

    lab = Lab(tokens_per_s=0.0)
    lab.generate("[[fail@3]]", is_streaming=False)
    lab.engine.step()
    assert len(lab.deltas[0].token_ids) == 3
    lab.engine.step()
    assert isinstance(lab.ends[0], Failure)


def test_without_pauses_a_burst_of_streams_shares_every_step() -> None:
    lab = Lab(tokens_per_s=0.0, num_output_tokens=16)
    for name in range(64):
        lab.generate(request_id=f"r{name}")
    while lab.engine.wait_s() is not None:
        lab.engine.step()
    assert [len(output.deltas) for output in lab.outputs] == [64] * 16
    assert all(len(delta.token_ids) == 1 for delta in lab.deltas)
    assert len(lab.outputs[-1].ends) == 64


def test_streams_that_wait_take_the_places_of_those_that_end() -> None:
    lab = Lab(tokens_per_s=0.0, max_num_seqs=2, num_output_tokens=3)
    for name in "abcd":
        lab.generate(request_id=name)
    lab.engine.handle("gw", Abort(request_id="a", attempt=1))
    while lab.engine.wait_s() is not None:
        lab.engine.step()
    assert [end.request_id for end in lab.ends] == ["a", "b", "c", "d"]
    assert lab.engine.num_unfinished == 0


def test_an_engine_whose_streams_all_wait_for_their_lease_or_prompt_does_not_spin() -> None:
    lab = Lab(tokens_per_s=0.0, prefill_tokens_per_s=10.0)
    lab.generate("x" * 20, lease_tokens=1)
    assert lab.engine.wait_s() == pytest.approx(2.0)
    lab.now += 2.0
    lab.engine.step()
    assert len(lab.deltas) == 1
    assert lab.engine.wait_s() is None


def test_an_output_of_no_token_ends_although_its_lease_is_empty() -> None:
    lab = Lab()
    lab.generate(sampling={"max_tokens": 0}, lease_tokens=0)
    lab.run(1)
    (end,) = lab.ends
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.completion_tokens) == ("length", 0)


def test_outputs_carry_the_credit_and_more_than_it_is_refused_once_there_is_no_room() -> None:
    lab = Lab(max_num_seqs=2)
    lab.num_gateways = 2
    for number in range(4):
        lab.generate(request_id=f"r{number}", gateway="first")
    lab.run(1)
    window = lab.outputs[0].credits
    assert window is not None
    assert window.max_requests == 2
    assert not lab.ends
    lab.generate(request_id="over", gateway="first")
    lab.generate(request_id="fine", gateway="second")
    (end,) = lab.ends
    assert isinstance(end, Failure)
    assert (end.request_id, end.code) == ("over", ErrorCode.CREDIT_EXCEEDED)
    lab.engine.forget_gateway("first")
    lab.generate(request_id="again", gateway="first")
    assert len(lab.ends) == 1


def test_it_tells_how_long_a_token_can_be() -> None:
    longest = max(len(word_of(token_id).encode()) for token_id in range(256, VOCAB_SIZE))
    assert Lab().engine.offer.max_token_bytes == longest


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 2**62])
def test_token_ids_that_it_does_not_have_are_refused(token_id: int) -> None:
    lab = Lab()
    ids = (1, token_id)
    lab.engine.handle("gw", Detokenize(request_id="a", token_ids=ids, deadline_s=9.0))
    lab.engine.handle(
        "gw", Prepare(request_id="b", kind="completion", deadline_s=9.0, prompt_token_ids=ids)
    )
    lab.engine.handle("gw", Embed(request_id="e", deadline_s=9.0, token_ids=((1,), ids)))
    refused = [message for _, message in lab.sent if isinstance(message, Failure)]
    command = Generate(
        request_id="c",
        choice=0,
        attempt=1,
        prompt_token_ids=ids,
        sampling=SamplingParams(),
        lease_tokens=9,
        deadline_s=9.0,
    )
    lab.engine.handle("gw", command)
    refused += [end for end in lab.ends if isinstance(end, Failure)]
    assert [failure.request_id for failure in refused] == ["a", "b", "e", "c"]
    assert {failure.code for failure in refused} == {ErrorCode.INVALID_REQUEST}


def test_what_anyone_says_does_not_depend_on_how_many_tokens_are_made_at_a_time() -> None:
    script = Script((1, 2, 3), 4, 5)
    assert script.tokens(0, 200) == [script.token(place) for place in range(200)]
    lab = Lab(num_output_tokens=200)
    command = lab.generate()
    lab.run(200)
    assert lab.text == Script(command.prompt_token_ids, 0, 0).text(200)


def embed(lab: Lab, *texts: str, **fields: Any) -> Message:
    lab.engine.handle("gw", Embed(request_id="e", deadline_s=9.0, texts=texts, **fields))
    return lab.sent[-1][1]


def test_a_text_has_always_the_same_vector_of_length_one() -> None:
    answer = embed(Lab(), "x", "yes")
    assert isinstance(answer, Embedded)
    assert answer == embed(Lab(), "x", "yes")
    assert answer.num_tokens == (1, 3)
    vectors = struct.unpack("<16f", answer.vectors)
    assert vectors[:8] != vectors[8:]
    assert math.isclose(math.hypot(*vectors[:8]), 1.0, rel_tol=1e-6)


def test_dimensions_shorten_a_vector_to_length_one() -> None:
    answer = embed(Lab(), "x", dimensions=3)
    assert isinstance(answer, Embedded)
    assert answer.num_dimensions == 3
    assert math.isclose(math.hypot(*struct.unpack("<3f", answer.vectors)), 1.0, rel_tol=1e-6)


def test_a_text_to_be_embedded_may_ask_for_trouble() -> None:
    lab = Lab()
    failure = embed(lab, "fine", "[[fail]]")
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INTERNAL_ERROR
    assert lab.crashes == 0
    embed(lab, "[[crash]]")
    assert lab.crashes == 1
    num_sent = len(lab.sent)
    lab.engine.handle("gw", Embed(request_id="e", deadline_s=9.0, texts=("[[hang]]",)))
    assert lab.engine.is_hanging
    assert len(lab.sent) == num_sent


def test_token_ids_to_be_embedded_may_ask_for_trouble() -> None:
    lab = Lab()
    ids = encode("[[crash]]")
    lab.engine.handle("gw", Embed(request_id="e", deadline_s=9.0, token_ids=(ids,)))
    assert lab.crashes == 1


def test_a_text_longer_than_the_context_is_embedded_only_if_it_may_be_cut() -> None:
    failure = embed(Lab(max_model_len=10), "x" * 11)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    cut = embed(Lab(max_model_len=10), "x" * 11, truncate_prompt_tokens=-1)
    assert cut == embed(Lab(max_model_len=10), "x" * 10)
    shorter = embed(Lab(max_model_len=10), "x" * 11, truncate_prompt_tokens=4)
    assert shorter == embed(Lab(max_model_len=10), "x" * 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"dimensions": 9},
        {"dimensions": 0},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": 11},
    ],
)
def test_numbers_that_fit_no_vector_and_no_context_are_refused(fields: dict[str, int]) -> None:
    failure = embed(Lab(max_model_len=10), "x", **fields)
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INVALID_REQUEST
