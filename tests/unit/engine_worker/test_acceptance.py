"""What a Generate becomes before it may share a step with others."""

import pytest

from engine_worker.acceptance import AcceptanceLimits, accept
from engine_worker.errors import InvalidRequestError
from engine_worker.request import Request
from protocol.messages import Generate, SamplingParams

LIMITS = AcceptanceLimits(vocab_size=100, max_model_len=50, eos_token_ids=frozenset({1}))
LARGEST_ON_THE_WIRE = 2**64 - 1


def accepted(choice: int = 0, top_k: int = 0) -> Request:
    command = Generate(
        request_id="r",
        choice=choice,
        attempt=0,
        prompt_token_ids=(2, 3),
        sampling=SamplingParams(top_k=top_k),
        lease_tokens=10,
        deadline_s=1.0,
    )
    return accept("g", command, LIMITS, received_at=0.0, arrival=0)


def test_a_top_k_beyond_any_vocabulary_is_cut_to_what_the_device_holds() -> None:
    assert accepted(top_k=7).sampling.top_k == 7
    assert accepted(top_k=LARGEST_ON_THE_WIRE).sampling.top_k == 2**31 - 1


def test_a_choice_that_the_device_cannot_hold_is_refused() -> None:
    assert accepted(choice=2**31 - 1).choice == 2**31 - 1
    with pytest.raises(InvalidRequestError, match="'choice' must be 0 to"):
        accepted(choice=2**31)
