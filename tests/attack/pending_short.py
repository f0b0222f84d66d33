"""Facts for tests/e2e/test_attack_in_short.py that don't hold yet; not collected until they move.

They take that file's fixtures `attacked` and `key` and its helpers, and the real house of
tests/e2e/conftest.py.
"""

import random
import resource
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import httpx
import pytest

from tests.attack.engines import ENGINE_DEATHS_A_PROMPT, choices_body, echo_body
from tests.attack.house import AttackHouse
from tests.attack.raw_http import ask, connection, head, made_up_key, post
from tests.attack.target import CHAT, COMPLETIONS, EMBEDDINGS, MODEL
from tests.attack.values import DIGITS, in_addresses, in_headers
from tests.e2e.house import House
from tests.e2e.test_attack_in_short import (
    CHAT_BODY,
    FIRST_BYTES,
    PATIENCE_S,
    PROMISED_BYTES,
    answer_of,
    attacked,
    eventually,
    key,
    nothing_is_under_way,
    send_bad_values,
)

__all__ = ["attacked", "key"]
pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

IN_FLIGHT = "penstock_gateway_requests_in_flight"
NUM_IDLE = 1200
"""More than the 1,024 descriptors that the gateway is started with."""


@contextmanager
def engines_stopped(house: AttackHouse) -> Iterator[None]:
    """No engine answers meanwhile."""
    names = house.names("engine_worker")
    for name in names:
        house.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        for name in names:
            house.signal(name, signal.SIGCONT)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
async def test_a_made_up_key_is_refused_when_64_of_9900_kilobytes_have_come(
    attacked: AttackHouse, path: str
) -> None:
    async with connection(attacked.port) as stranger:
        promised = head("POST", path, made_up_key(random.Random(1)), PROMISED_BYTES)
        await stranger.send(promised + FIRST_BYTES)
        assert (await answer_of(stranger)).status == 401


@pytest.mark.parametrize("digits", [DIGITS, f"0{DIGITS}", "0" * len(DIGITS)])
async def test_thousands_of_digits_are_a_4xx_wherever_a_number_is_expected(
    attacked: AttackHouse, digits: str
) -> None:
    sizes = attacked.log_sizes()
    for request in (
        head("POST", CHAT, None, None, {"Content-Length": digits}) + b"{}",
        head("GET", f"/v1/admin/keys?limit={digits}", attacked.admin_key),
    ):
        assert 400 <= (await ask(attacked.port, request)).status < 500
    assert attacked.tracebacks(sizes) == []


async def test_no_bad_value_in_a_header_or_an_address_is_answered_with_a_5xx(
    attacked: AttackHouse, key: str
) -> None:
    sizes = attacked.log_sizes()
    cases = [*in_headers(key), *in_addresses(attacked.admin_key)]
    whole = [case for case in cases if not case[0].startswith("Content-Length")]
    target = await send_bad_values(attacked, key, whole)
    assert target.outcome.faults == []
    assert attacked.tracebacks(sizes) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": MODEL, "prompt": "hi"}),
        ("/detokenize", {"model": MODEL, "tokens": [104]}),
        (EMBEDDINGS, {"model": MODEL, "input": "hi"}),
    ],
)
async def test_a_client_that_leaves_a_question_leaves_no_request_in_flight(
    attacked: AttackHouse, key: str, path: str, body: dict[str, object]
) -> None:
    async def one_is_under_way() -> bool:
        return (await attacked.gauges())[IN_FLIGHT] == 1

    with engines_stopped(attacked):
        async with connection(attacked.port) as leaver:
            await leaver.send(post(path, body, key))
            await eventually(one_is_under_way)
        await eventually(lambda: nothing_is_under_way(attacked))


async def test_an_input_at_which_engines_die_is_convicted_after_three_deaths(
    attacked: AttackHouse, key: str
) -> None:
    request = post(EMBEDDINGS, {"model": MODEL, "input": ["fine", "[[crash]]"]}, key)
    num_deaths = len(attacked.deaths)
    first = await ask(attacked.port, request)
    again = await ask(attacked.port, request)
    assert (first.status, again.status) == (500, 500)
    assert b"poison_request" in first.body
    assert b"poison_request" in again.body
    assert len(attacked.deaths) == num_deaths + ENGINE_DEATHS_A_PROMPT
    await attacked.wait_ready(PATIENCE_S)


async def test_idle_connections_of_one_stranger_leave_room_for_everybody_else(
    attacked: AttackHouse, key: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, soft + 2 * NUM_IDLE), hard))
    try:
        async with AsyncExitStack() as stack:
            for _ in range(NUM_IDLE):
                await stack.enter_async_context(connection(attacked.port, "127.0.7.1"))
            async with connection(attacked.port) as good:
                await good.send(post(CHAT, CHAT_BODY, key))
                assert (await answer_of(good)).status == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, echo_body()), (CHAT, choices_body())])
async def test_a_small_request_for_a_huge_answer_is_a_400(
    house: House, path: str, body: dict[str, object]
) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        reply = await client.post(house.url + path, json=body)
    assert reply.status_code == 400
