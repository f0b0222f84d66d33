"""The stages of a request's start: each of these brings one to where it waits for somebody."""

from protocol.wire.messages import Adjust, OpenParse
from tests.fakes.request_parts import Generation, Parts, generation_job


async def waits_for_its_grant(parts: Parts) -> Generation:
    parts.engine()
    return await parts.generation()


async def waits_for_its_grant_with_prompts_ahead(parts: Parts) -> Generation:
    parts.engine()
    parts.know_caller()
    return await parts.generation()


async def waits_for_a_slot(parts: Parts) -> Generation:
    one = parts.engine(max_requests=1)
    parts.handle(one).num_requests = 1
    started = await parts.generation()
    await parts.grant()
    return started


async def waits_for_its_prompt(parts: Parts) -> Generation:
    parts.engine()
    return await parts.prepared_generation()


async def waits_for_its_lease(parts: Parts) -> Generation:
    parts.engine()
    started = await parts.prepared_generation()
    await parts.prepare_next(num_tokens=50)  # more than its five bytes
    assert len(parts.auth_wire.of(Adjust)) == 1
    return started


async def waits_for_its_parser(parts: Parts) -> Generation:
    parts.engine(reasoning_format="think")
    parts.parser()
    started = await parts.prepared_generation(generation_job(parse_reasoning=True))
    await parts.prepare_next()
    assert len(parts.parser_wire.of(OpenParse)) == 1
    return started
