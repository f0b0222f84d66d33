"""Limits and budgets as clients meet them: statuses, headers, bodies, and nothing overspent."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import Price
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Failure, Settle
from tests.fakes.auth_parts import USER_SECRET, stored_key
from tests.fakes.deciding_auth import DecidingAuth, deciding_auth
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.limit_parts import HOUSE_PRICE, limit
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

AUTHORIZATION = {"Authorization": f"Bearer {USER_SECRET}"}
KEY = stored_key(user_id="user_1", team_id="team_1", may_name_end_users=True)
USERS = (StoredUser("user_1", "Ada"),)
TEAMS = (StoredTeam("team_1", "search", members={"user_1": "member"}),)
TEN_TOKENS = tuple("0123456789")
PRICE = replace(HOUSE_PRICE, prompt=0, cached_prompt=0, completion=10_000_000_000)
"""One cent a completion token."""


class Harness:
    """A gateway with an engine that makes ten tokens, and an auth worker that decides."""

    def __init__(self, gateway: RunningGateway, auth: DecidingAuth) -> None:
        self.gateway = gateway
        self.auth = auth

    async def chat(self, **fields: Any) -> httpx.Response:
        headers = AUTHORIZATION | fields.pop("headers", {})
        body = {"model": "demo", "messages": MESSAGES, "max_tokens": 10, **fields}
        return await self.gateway.client.post("/v1/chat/completions", json=body, headers=headers)

    async def settled(self, number: int) -> None:
        """Wait until so many settlements are booked."""

        def are_booked() -> bool:
            return len(self.auth.of(Settle)) >= number and self.auth.handler.num_leases == 0

        await self.auth.until(are_booked)
        await self.gateway.until(lambda: not self.auth.handler.num_unfinished())


@asynccontextmanager
async def harness(
    tmp_path: Path, *limits: Limit, price: Price = PRICE, **settings: Any
) -> AsyncIterator[Harness]:
    async with running_gateway(tmp_path, require_keys=True, **settings) as gateway:
        auth = DecidingAuth(tmp_path, KEY, limits=limits, prices=(price,), users=USERS, teams=TEAMS)
        await deciding_auth(gateway, auth)
        await gateway.engine(text=TEN_TOKENS, max_requests=256)
        yield Harness(gateway, auth)


async def test_a_rate_limit_is_429_with_its_figures(socket_dir: Path) -> None:
    rate = limit("requests", 2, "hour", "team", "team_1", limit_id="lim_1", name="two an hour")
    async with harness(socket_dir, rate) as here:
        answer = await here.chat()
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"
        await here.chat()
        refused = await here.chat()
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "60"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert error["limit_source"] == "used"
        assert error["limit"]["frees_in_s"] > 3000
        del error["limit"]["frees_in_s"]
        assert error["limit"] == {
            "id": "lim_1",
            "name": "two an hour",
            "scope": "team",
            "measure": "requests",
            "window": "hour",
            "amount": 2,
            "used": 2,
            "reserved": 0,
            "asked": 1,
        }


async def test_a_refusal_tells_the_limit_in_the_words_of_the_api_that_was_asked(
    socket_dir: Path,
) -> None:
    async with harness(socket_dir, limit("requests", 1, "hour", "house")) as here:
        await here.chat()
        body = {"model": "demo", "messages": MESSAGES, "max_tokens": 10}
        refused = {
            path: await here.gateway.client.post(path, json=body, headers=AUTHORIZATION)
            for path in ("/v1/chat/completions", "/v1/messages")
        }
        for path, family in (
            ("/v1/chat/completions", "x-ratelimit-"),
            ("/v1/messages", "anthropic-ratelimit-"),
        ):
            answer = refused[path]
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
            told = {name for name in answer.headers if "ratelimit" in name}
            assert told == {
                name for name in told if name.startswith(family) and "requests" in name
            }, path
            assert len(told) == 3, told


async def test_a_quota_is_429_that_is_not_worth_a_retry(socket_dir: Path) -> None:
    async with harness(socket_dir, limit("requests", 1, "calendar_month", "house")) as here:
        await here.chat()
        refused = await here.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert refused.headers["x-should-retry"] == "false"
        assert "retry-after" not in refused.headers


async def test_a_spent_budget_is_402_that_is_not_worth_a_retry(socket_dir: Path) -> None:
    budget = limit("money", 150_000, "calendar_month", "user", "user_1")
    async with harness(socket_dir, budget) as here:
        assert (await here.chat()).status_code == 200
        await here.settled(1)
        refused = await here.chat()
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (402, "budget_exceeded")
        assert refused.headers["x-should-retry"] == "false"
        assert (error["limit"]["used"], error["limit_source"]) == (100_000, "used")
        small = await here.chat(max_tokens=5)
        assert small.status_code == 200


async def test_refused_requests_spend_nothing_of_a_budget_whatever_a_request_costs(
    socket_dir: Path,
) -> None:
    """$9 a request of $20: three names that nobody serves, a prompt that is too long and a
    grammar that the engine doesn't know leave room for two answers."""
    nine = replace(HOUSE_PRICE, prompt=0, cached_prompt=0, completion=0, request=9_000_000)
    budget = limit("money", 20_000_000, "calendar_month", "team", "team_1")
    requests = limit("requests", 100, "total", "team", "team_1")
    async with harness(socket_dir, budget, requests, price=nine) as here:
        engine = here.gateway.workers[1]
        assert isinstance(engine, FakeEngine)
        for _ in range(3):
            assert (await here.chat(model="nosuch")).status_code == 404
        code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
        engine.prepare_failure = Failure(request_id="", code=code, message="too long")
        assert (await here.chat()).status_code == 400
        engine.prepare_failure = None
        engine.generate_failure = ErrorCode.UNSUPPORTED_GRAMMAR
        assert (await here.chat()).status_code == 400
        engine.generate_failure = None
        await here.settled(5)
        for number in (6, 7):
            assert (await here.chat()).status_code == 200
            await here.settled(number)
        assert (await here.chat()).status_code == 402
        snapshot = here.auth.store.load(recent_since_ms=0)
        used = {row.limit_id: row.used for row in snapshot.counters}
        assert used == {budget.limit_id: 18_000_000, requests.limit_id: 7}


async def test_what_only_running_requests_hold_is_402_with_retry_after(socket_dir: Path) -> None:
    async with harness(socket_dir, limit("money", 150_000, "total")) as here:
        engine = here.gateway.workers[1]
        engine.text = None  # type: ignore[attr-defined]
        running = asyncio.create_task(here.chat())
        await here.auth.until(lambda: here.auth.handler.num_leases == 1)
        refused = await here.chat()
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (402, "budget_exceeded")
        assert refused.headers["retry-after"] == "5"
        assert error["limit_source"] == "in_flight"
        running.cancel()


async def test_anthropics_errors_tell_the_limit_in_their_details(socket_dir: Path) -> None:
    async with harness(socket_dir, limit("money", 0, "total", limit_id="bud_1")) as here:
        body = {"model": "demo", "messages": MESSAGES, "max_tokens": 10}
        refused = await here.gateway.client.post("/v1/messages", json=body, headers=AUTHORIZATION)
        assert refused.status_code == 402
        error = refused.json()["error"]
        assert error["type"] == "billing_error"
        assert error["details"]["error_code"] == "budget_exceeded"
        assert error["details"]["limit"]["id"] == "bud_1"


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_warn_in_a_header_and_in_the_body_when_asked(
    socket_dir: Path, stream: bool
) -> None:
    budget = limit(
        "money",
        1_000_000,
        "total",
        "team",
        "team_1",
        limit_id="bud_1",
        name='a "b"',
        thresholds=(10,),
    )
    async with harness(socket_dir, budget) as here:
        first = await here.chat(include_budget_warnings=True)
        assert first.json()["budget_warnings"] == []
        assert "x-penstock-budget-warning" not in first.headers
        await here.settled(1)
        answer = await here.chat(include_budget_warnings=True, stream=stream)
        assert answer.headers["x-penstock-budget-warning"] == (
            '"bud_1";name="a \\"b\\"";scope=team;percent=10;used=0.10;amount=1.00'
        )
        last = answer.json() if not stream else orjson.loads(answer.text.split("data: ")[-2])
        (warning,) = last["budget_warnings"]
        assert warning["message"] == "10 % of 'a \"b\"' are used: 0.10 of 1.00."
        assert (warning["type"], warning["used"]) == ("budget_warning", 100_000)
        assert "budget_warnings" not in (await here.chat()).json()


@pytest.mark.parametrize(
    ("headers", "fields", "name"),
    [
        ({"X-OpenWebUI-User-Id": "ada"}, {"user": "bob"}, "ada"),
        ({}, {"user": "bob"}, "bob"),
        ({}, {"user": "bob", "safety_identifier": "carol"}, "carol"),
        ({}, {"user": 5}, ""),
        ({}, {"user": "x" * 300}, "sha256:"),
        ({"X-Other": "ada"}, {}, ""),
    ],
)
async def test_an_end_user_is_named_by_header_or_body(
    socket_dir: Path, headers: dict[str, str], fields: dict[str, Any], name: str
) -> None:
    async with harness(socket_dir) as here:
        assert (await here.chat(headers=headers, **fields)).status_code == 200
        await here.settled(1)
        asked = here.auth.of(Authorize)[-1].end_user
        assert asked[: len(name)] == name
        assert len(asked) <= 256
        assert (asked == "") == (name == "")
        assert here.auth.of(Settle)[-1].end_user == asked


async def test_end_users_of_the_other_apis_count_as_well(socket_dir: Path) -> None:
    async with harness(socket_dir, end_user_headers=("x-forwarded-user",)) as here:
        client = here.gateway.client
        message = {"model": "demo", "messages": MESSAGES, "max_tokens": 10}
        await client.post(
            "/v1/messages", json=message | {"metadata": {"user_id": "ada"}}, headers=AUTHORIZATION
        )
        response = {"model": "demo", "input": "hi", "max_output_tokens": 16}
        await client.post(
            "/v1/responses", json=response | {"safety_identifier": "bob"}, headers=AUTHORIZATION
        )
        headers = AUTHORIZATION | {"X-Forwarded-User": "carol"}
        await client.post("/v1/messages", json=message, headers=headers)
        named = [asked.end_user for asked in here.auth.of(Authorize) if asked.prompt_tokens]
        assert named == ["ada", "bob", "carol"]


async def test_a_header_that_names_two_end_users_is_refused(socket_dir: Path) -> None:
    async with harness(socket_dir) as here:
        headers = [*AUTHORIZATION.items(), *(("X-OpenWebUI-User-Id", name) for name in "ab")]
        answer = await here.gateway.client.post(
            "/v1/chat/completions",
            json={"model": "demo", "messages": MESSAGES},
            headers=headers,
        )
        assert answer.status_code == 400


async def test_each_end_user_has_its_own_budget(socket_dir: Path) -> None:
    async with harness(socket_dir, limit("money", 100_000, "total", "end_user", "team_1")) as here:
        assert (await here.chat(user="ada")).status_code == 200
        await here.settled(1)
        assert (await here.chat(user="ada")).status_code == 402
        assert (await here.chat(user="bob")).status_code == 200


async def test_a_thousand_at_once_of_ten_cents_against_five_dollars_admit_exactly_fifty(
    socket_dir: Path,
) -> None:
    async with harness(
        socket_dir, limit("money", 5_000_000, "calendar_month", "team", "team_1")
    ) as here:
        clients = asyncio.Semaphore(64)

        async def one() -> int:
            async with clients:
                return (await here.chat()).status_code

        statuses = await asyncio.gather(*(one() for _ in range(1000)))
        assert (statuses.count(200), statuses.count(402)) == (50, 950)
        await here.settled(50)
        (row,) = here.auth.store.load(recent_since_ms=0).counters
        assert row.used == 5_000_000


async def test_sixty_four_clients_that_leave_as_they_like_overspend_nothing(
    socket_dir: Path,
) -> None:
    """Every sum agrees in the end: the gateway's settlements, the ledger and all counters."""
    limits = (
        limit("money", 6_000_000, "calendar_month", "team", "team_1"),
        limit("money", 9_000_000, "total", "house"),
        limit("tokens", 9_000, "calendar_day", "user", "user_1"),
        limit("completion_tokens", 700, "day"),
        limit("parallel", 32, "total", "house"),
    )
    dice = random.Random(7)
    async with harness(socket_dir, *limits) as here:
        clients = asyncio.Semaphore(64)

        async def one(leaves_after_s: float | None, stream: bool, max_tokens: int) -> int:
            async with clients:
                asking = here.chat(max_tokens=max_tokens, stream=stream)
                try:
                    async with asyncio.timeout(leaves_after_s):
                        return (await asking).status_code
                except TimeoutError:
                    return 0

        plans = [
            (
                dice.random() * 0.02 if dice.random() < 0.3 else None,
                dice.random() < 0.5,
                dice.choice((10, 20, 30)),
            )
            for _ in range(400)
        ]
        statuses = await asyncio.gather(*(one(*plan) for plan in plans))
        assert statuses.count(200) > 0
        assert {402, 429} & set(statuses)
        assert set(statuses) <= {0, 200, 402, 429}
        await here.gateway.until(lambda: here.auth.handler.num_leases == 0)
        await here.gateway.until(lambda: not here.auth.handler.num_unfinished())
        settles = {one.lease_id: one for one in here.auth.of(Settle) if not one.is_unused}
        completion = sum(one.completion_tokens for one in settles.values())
        prompt = sum(one.prompt_tokens for one in settles.values())
        snapshot = here.auth.store.load(recent_since_ms=0)
        used: dict[str, int] = {}
        for row in snapshot.counters:
            used[row.limit_id] = used.get(row.limit_id, 0) + row.used
        team, house_budget, daily, sliding, _ = (one.limit_id for one in limits)
        assert used[team] == used[house_budget] == completion * 10_000 <= 6_000_000
        assert used[daily] == prompt + completion <= 9_000
        assert used[sliding] == completion <= 700
        assert sum(use.cost_micros for use in snapshot.recent) == used[team]
        assert sum(use.num_tokens for use in snapshot.recent) == used[daily]
