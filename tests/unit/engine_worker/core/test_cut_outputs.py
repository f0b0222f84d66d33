"""Outputs that their gateway cuts, as where a caller's limit ends the lease: nothing is lost."""

import pytest

from engine_worker.core.engine import Engine
from protocol.wire.messages import Abort, Delta, Extend, Finished, Generate, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
PROMPT = (104, 105)


def cut_after(text: str, num_tokens: int, stop: tuple[str, ...]) -> list[Delta]:
    """What is told of an output of so many tokens."""
    output = text.encode()
    runner = DeterministicFakeRunner(lambda token_ids: output[len(token_ids) - len(PROMPT)])
    engine = Engine(runner, TOKENIZER, vocab_size=TOKENIZER.num_tokens, max_model_len=100)
    sampling = SamplingParams(temperature=0.0, stop=stop)
    command = Generate(
        request_id="r",
        choice=0,
        attempt=1,
        prompt_token_ids=PROMPT,
        sampling=sampling,
        lease_tokens=num_tokens,
        deadline_s=60.0,
        want_token_ids=True,
    )
    engine.add("g", command)
    deltas: list[Delta] = []
    while engine.has_work():
        deltas += engine.step()["g"].deltas
    # The lease has grown no more.
    engine.extend("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=num_tokens))
    engine.abort("g", Abort(request_id="r", choice=0, attempt=1))
    told = engine.step()["g"]
    (end,) = told.ends
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.completion_tokens) == ("abort", num_tokens)
    return [*deltas, *told.deltas]


@pytest.mark.parametrize(
    ("text", "num_tokens", "told"),
    [
        ("one EN two", 6, "one EN"),
        ("one END two", 6, "one EN"),
        ("one two", 5, "one t"),
        ("hé", 2, "h\ufffd"),
    ],
)
def test_what_might_have_become_a_stop_string_is_told_at_the_end(
    text: str, num_tokens: int, told: str
) -> None:
    deltas = cut_after(text, num_tokens, ("END",))
    assert "".join(delta.text for delta in deltas) == told
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert token_ids == list(text.encode()[:num_tokens])
