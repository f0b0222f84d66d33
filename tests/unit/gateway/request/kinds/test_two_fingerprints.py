"""While two sets of weights serve one name, a generation goes by the one that read its prompt."""

import pytest

from gateway.errors import UnsupportedFieldError
from protocol.wire.messages import Generate, OpenParse
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Parts, generation_job
from tests.fakes.virtual_time import idle


def full(parts: Parts, one: Peer) -> None:
    """Let an engine take no new work."""
    parts.handle(one).back_off(1e9)


async def test_the_weights_that_are_told_are_those_that_read_the_prompt() -> None:
    parts = Parts()
    parts.engine("old", fingerprint="1", max_model_len=500)
    full(parts, parts.engine("new", fingerprint="2", max_model_len=900))
    started = await parts.running()
    assert started.work.offer is not None
    assert (started.work.offer.fingerprint, started.work.offer.max_model_len) == ("1", 500)
    # Before a prompt is read, the newest stands for the model.
    waiting = await parts.generation(request_id="s")
    await parts.grant()
    assert waiting.work.offer is not None
    assert waiting.work.offer.fingerprint == "2"
    for one in (started, waiting):
        one.request.end("aborted")


async def test_a_prompt_that_was_read_goes_on_at_its_engine_although_that_begins_to_drain() -> None:
    parts = Parts()
    old = parts.engine("old", fingerprint="1")
    started = await parts.prepared_generation()
    parts.engine("new", fingerprint="2")
    old.phase = "draining"
    parts.link.on_peer_updated(old)
    await parts.prepare_next()
    await started.task
    assert [one for one, sent in parts.engine_wire.sent if isinstance(sent, Generate)] == [old]
    await parts.finish(old)
    assert [settle.outcome for settle in parts.outbox.settles] == ["finished"]
    again = await parts.generation(request_id="again")
    await parts.grant()
    assert parts.engine_wire.sent[-1][0].instance_id == "new"
    again.request.end("aborted")


async def test_text_is_read_in_the_format_of_the_weights_that_said_it() -> None:
    parts = Parts()
    parts.parser()
    parts.engine("old", fingerprint="1", reasoning_format="think")
    full(parts, parts.engine("new", fingerprint="2", reasoning_format=None))
    started = await parts.generation(generation_job(parse_reasoning=True))
    await parts.grant()
    await parts.prepare_next()
    (opened,) = parts.parser_wire.of(OpenParse)
    assert opened.reasoning_format == "think"
    started.request.end("aborted")


async def test_what_only_the_newer_weights_can_do_is_refused_by_the_older() -> None:
    parts = Parts()
    parts.engine("old", fingerprint="1", tool_format=None)
    full(parts, parts.engine("new", fingerprint="2", tool_format="hermes"))
    started = await parts.generation(generation_job(tools_json="[]"))
    await parts.grant()
    await parts.prepare_next()
    with pytest.raises(UnsupportedFieldError, match="No tool-call format"):
        await started.task
    await idle()
    assert parts.num_slots == 0
    (settle,) = parts.outbox.settles
    assert (settle.completion_tokens, settle.outcome) == (0, "failed")
