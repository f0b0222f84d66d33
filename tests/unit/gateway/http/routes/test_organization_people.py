"""A service account in OpenAI's shape is made whole with its key, or not at all."""

import asyncio
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.http.routes.organization import people
from gateway.http.schemas.administration.organization import ServiceAccountRequest
from protocol.wire.messages import KeyDetails, KeySettings, Resource, UserSettings

ACCOUNT = Resource(
    resource_id="user_1", settings=UserSettings(name="bot", kind="service_account"), created_at=1
)
KEY = KeyDetails(
    key_id="key_1",
    hint="h",
    status="active",
    settings=KeySettings(name="bot"),
    tenant_id="",
    created_at=1,
)


class Auth:
    """The auth worker's side: each step can be held, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.at: dict[str, asyncio.Event] = {}
        self.go_on = asyncio.Event()
        self.held = ""
        self.failing = ""
        answers: dict[str, Any] = {"make": ACCOUNT, "make_key": (KEY, "psk-x"), "one": None}
        for name in ("one", "make", "set_member", "make_key", "delete"):
            self.at[name] = asyncio.Event()
            monkeypatch.setattr(people, name, self._step(name, answers.get(name)))

        async def body_of(*_: object) -> ServiceAccountRequest:
            return ServiceAccountRequest(name="bot")

        monkeypatch.setattr(people, "body_of", body_of)
        monkeypatch.setattr(people, "expiry", lambda *_: None)

    def _step(self, name: str, answer: Any) -> Any:
        async def step(*_: object) -> Any:
            self.at[name].set()
            if name == self.held:
                await self.go_on.wait()
            if name == self.failing:
                raise GatewayError("no")
            self.done.append(name)
            return answer

        return step


def creating() -> "asyncio.Task[Any]":
    request: Any = object()
    return asyncio.ensure_future(people.create_service_account(request, "team_1"))


@pytest.mark.parametrize("held", ["make", "set_member", "make_key"])
async def test_a_request_that_is_cancelled_in_between_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    auth = Auth(monkeypatch)
    auth.held = held
    task = creating()
    await auth.at[held].wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "delete" not in auth.done
    auth.go_on.set()
    await auth.at["delete"].wait()
    assert auth.done == ["one", "make", "set_member", "make_key", "delete"]


@pytest.mark.parametrize("failing", ["set_member", "make_key"])
async def test_a_step_that_fails_takes_the_account_back(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    auth = Auth(monkeypatch)
    auth.failing = failing
    with pytest.raises(GatewayError):
        await creating()
    assert auth.done[-1] == "delete"


async def test_one_that_was_not_made_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = Auth(monkeypatch)
    auth.held = auth.failing = "make"
    task = creating()
    await auth.at["make"].wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    auth.go_on.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert auth.done == ["one"]
