"""How much a request reserves, before its prompts are tokenised and after."""

import orjson

from gateway.http.bodies.convert import completion_job
from gateway.http.schemas.inference.completion import parse_completion_body
from gateway.request.jobs.job import GenerationJob
from gateway.request.leases.budget import TokenBudget
from protocol.wire.messages import Credits, EngineOffer, Prepared


def job(**fields: object) -> GenerationJob:
    body = orjson.dumps({"model": "m", "prompt": "x" * 50, **fields})
    return completion_job(parse_completion_body(body)[0])


def offer(max_model_len: int) -> EngineOffer:
    return EngineOffer(
        model="m",
        fingerprint="f",
        resume_version=1,
        max_model_len=max_model_len,
        created=0,
        credits=Credits(max_requests=1, max_tokens=1),
    )


def prepared(num_prompt_tokens: int, max_output_tokens: int) -> Prepared:
    return Prepared(
        request_id="r",
        prompt_token_ids=(0,) * num_prompt_tokens,
        max_output_tokens=max_output_tokens,
    )


def test_before_tokenising_a_byte_counts_as_a_token() -> None:
    budget = TokenBudget(job(max_tokens=8, n=3), slice_tokens=100)
    assert budget.first_reservation(None) == (50, 24)
    assert budget.first_reservation(offer(1000)) == (50, 24)


def test_nobody_reserves_more_than_the_context() -> None:
    budget = TokenBudget(job(max_tokens=10**6, prompt=["x" * 500, "y" * 500]), slice_tokens=100)
    assert budget.first_reservation(offer(200)) == (400, 400)
    assert budget.upper_bound(offer(200)) == 200


def test_after_tokenising_the_real_numbers_count() -> None:
    budget = TokenBudget(job(max_tokens=8, n=2, prompt=["a", "b"]), slice_tokens=4)
    prompts = [prepared(3, 100), prepared(5, 6)]
    limits = budget.output_limits(prompts)
    assert limits == [8, 6]
    assert budget.reservation([3, 5], limits) == (8, 28)
