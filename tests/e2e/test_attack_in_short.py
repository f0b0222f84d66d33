"""The attacks of `make attack`, in short: what holds whatever the machine's speed."""

import asyncio
import random
import resource
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.attack.connections import ODD_ROUTES, long_stream
from tests.attack.engines import ENGINE_DEATHS_A_PROMPT, choices_body, echo_body
from tests.attack.harness import BUSY_GAUGES, AttackHarness
from tests.attack.raw_http import Answer, Connection, ask, connection, head, made_up_key, post
from tests.attack.target import CHAT, COMPLETIONS, EMBEDDINGS, MODEL, Target
from tests.attack.values import (
    DIGITS,
    Case,
    in_addresses,
    in_bodies,
    in_framing,
    in_headers,
    send_all,
)
from tests.e2e.harness import Harness
from tests.soak.processes import free_port

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

PATIENCE_S = 60.0
CHAT_BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PROMISED_BYTES = 9_900_000
FIRST_BYTES = b'{"model": "' + b"x" * 60_000
IN_FLIGHT = "penstock_gateway_requests_in_flight"
NUM_IDLE = 1200
"""More than the 1,024 descriptors that the gateway is started with."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked(cache_dir: Path) -> AsyncIterator[AttackHarness]:
    """A deployment with two scripted engines, and keys of a good client and of an attacker."""
    with tempfile.TemporaryDirectory(prefix="attack-", ignore_cleanup_errors=True) as directory:
        harness = AttackHarness("scripted", Path(directory), cache_dir, free_port(), num_engines=2)
        try:
            await harness.start(PATIENCE_S)
            yield harness
        finally:
            await harness.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def key(attacked: AttackHarness) -> str:
    return await attacked.make_key("attacker", "attacker")


async def eventually(fact: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a fact of another process, bounded."""
    async with asyncio.timeout(PATIENCE_S):
        while not await fact():  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the state is another process's


async def nothing_is_under_way(harness: AttackHarness) -> bool:
    return await harness.gauges() == dict.fromkeys(BUSY_GAUGES, 0.0)


@contextmanager
def engines_stopped(harness: AttackHarness) -> Iterator[None]:
    """No engine answers meanwhile."""
    names = harness.names("engine_worker")
    for name in names:
        harness.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        for name in names:
            harness.signal(name, signal.SIGCONT)


async def answer_of(one: Connection) -> Answer:
    """An answer, or the end of patience."""
    async with asyncio.timeout(PATIENCE_S):
        return await one.answer()


async def send_bad_values(harness: AttackHarness, key: str, cases: Iterable[Case]) -> Target:
    """Send them; what was wrong about the answers stands in the target's outcome."""
    target = Target(harness.port, key, harness.admin_key, PATIENCE_S, random.Random(1))
    await send_all(target, cases)
    return target


async def test_no_bad_value_in_a_body_is_answered_with_a_5xx_or_logged_with_a_traceback(
    attacked: AttackHarness, key: str
) -> None:
    sizes = attacked.log_sizes()
    some = list(in_bodies(key, attacked.admin_key))[::4]
    target = await send_bad_values(attacked, key, some)
    assert target.outcome.faults == []
    assert attacked.tracebacks(sizes) == []
    assert target.outcome.counts["400"] > len(some) // 2
    await eventually(lambda: nothing_is_under_way(attacked))


async def test_what_is_no_request_is_refused_without_a_traceback(
    attacked: AttackHarness, key: str
) -> None:
    sizes = attacked.log_sizes()
    target = await send_bad_values(attacked, key, in_framing(key))
    assert target.outcome.faults == []
    assert attacked.tracebacks(sizes) == []


async def test_methods_and_paths_that_are_not_there_are_never_a_5xx(
    attacked: AttackHarness,
) -> None:
    for method, path in ODD_ROUTES:
        answer = await ask(attacked.port, head(method, path, length=0))
        assert answer.status < 500, (method, path, answer)


@pytest.mark.parametrize(
    ("path", "presented"),
    [(CHAT, None), (COMPLETIONS, None), ("/tokenize", "psk-made-up"), ("/v1/parse", "psk-made-up")],
)
async def test_a_stranger_is_refused_when_64_of_9900_kilobytes_have_come(
    attacked: AttackHarness, path: str, presented: str | None
) -> None:
    async with connection(attacked.port) as stranger:
        await stranger.send(head("POST", path, presented, PROMISED_BYTES) + FIRST_BYTES)
        assert (await answer_of(stranger)).status == 401


async def test_a_hundred_requests_in_one_write_get_a_hundred_answers_in_order(
    attacked: AttackHarness, key: str
) -> None:
    pair = (head("GET", "/v1/models", key), head("GET", "/v1/models", "psk-made-up"))
    async with connection(attacked.port) as one:
        await one.send(b"".join(pair) * 50)
        statuses = [(await answer_of(one)).status for _ in range(100)]
    assert statuses == [200, 401] * 50


async def test_closed_connections_give_their_descriptors_back(attacked: AttackHarness) -> None:
    # An idle gateway has about fifty; what other tests had open may be closing still.
    async with AsyncExitStack() as stack:
        for number in range(200):
            one = await stack.enter_async_context(connection(attacked.port))
            if number % 2:
                await one.send(b"POST / HT")

        async def all_have_arrived() -> bool:
            return attacked.num_descriptors() >= 200

        await eventually(all_have_arrived)

    async def all_have_gone() -> bool:
        return attacked.num_descriptors() < 100

    await eventually(all_have_gone)


async def test_streams_that_nobody_reads_leave_no_request_and_no_lease_when_their_client_goes(
    attacked: AttackHarness, key: str
) -> None:
    streams = [await Connection.open(attacked.port, receive_buffer_bytes=4096) for _ in range(8)]
    try:
        for stream in streams:
            await stream.send(post(CHAT, long_stream(), key))

        async def all_run() -> bool:
            return (await attacked.gauges())[IN_FLIGHT] == 8

        await eventually(all_run)
        good = await ask(attacked.port, post(CHAT, CHAT_BODY, key))
        assert good.status == 200
    finally:
        for stream in streams:
            stream.reset()
    await eventually(lambda: nothing_is_under_way(attacked))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
async def test_a_made_up_key_is_refused_when_64_of_9900_kilobytes_have_come(
    attacked: AttackHarness, path: str
) -> None:
    async with connection(attacked.port) as stranger:
        promised = head("POST", path, made_up_key(random.Random(1)), PROMISED_BYTES)
        await stranger.send(promised + FIRST_BYTES)
        assert (await answer_of(stranger)).status == 401


@pytest.mark.parametrize("digits", [DIGITS, f"0{DIGITS}", "0" * len(DIGITS)])
async def test_thousands_of_digits_are_a_4xx_wherever_a_number_is_expected(
    attacked: AttackHarness, digits: str
) -> None:
    sizes = attacked.log_sizes()
    for request in (
        head("POST", CHAT, None, None, {"Content-Length": digits}) + b"{}",
        head("GET", f"/v1/admin/keys?limit={digits}", attacked.admin_key),
    ):
        assert 400 <= (await ask(attacked.port, request)).status < 500
    assert attacked.tracebacks(sizes) == []


async def test_no_bad_value_in_a_header_or_an_address_is_answered_with_a_5xx(
    attacked: AttackHarness, key: str
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
    attacked: AttackHarness, key: str, path: str, body: dict[str, object]
) -> None:
    async def one_is_under_way() -> bool:
        return (await attacked.gauges())[IN_FLIGHT] == 1

    with engines_stopped(attacked):
        async with connection(attacked.port) as leaver:
            await leaver.send(post(path, body, key))
            await eventually(one_is_under_way)
        await eventually(lambda: nothing_is_under_way(attacked))


async def test_an_input_at_which_engines_die_is_convicted_after_three_deaths(
    attacked: AttackHarness, key: str
) -> None:
    request = post(EMBEDDINGS, {"model": MODEL, "input": ["fine", "[[crash]]"]}, key)
    num_deaths = len(attacked.deaths)

    async def three_have_died() -> bool:
        return len(attacked.deaths) >= num_deaths + ENGINE_DEATHS_A_PROMPT

    first = await ask(attacked.port, request)
    again = await ask(attacked.port, request)
    assert (first.status, again.status) == (500, 500)
    assert b"poison_request" in first.body
    assert b"poison_request" in again.body
    await eventually(three_have_died)  # the deployment looks after its processes now and then
    await attacked.wait_ready(PATIENCE_S)
    assert len(attacked.deaths) == num_deaths + ENGINE_DEATHS_A_PROMPT


async def test_idle_connections_of_one_stranger_leave_room_for_everybody_else(
    attacked: AttackHarness, key: str
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
    harness: Harness, path: str, body: dict[str, object]
) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        reply = await client.post(harness.url + path, json=body)
    assert reply.status_code == 400
