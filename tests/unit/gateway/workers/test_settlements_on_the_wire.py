"""When settlements leave for the auth worker."""

import asyncio

from gateway.workers.auth import AuthLink, AuthNews
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import AuthOffer, Message, Settle
from protocol.wire.peers import Peer


class Wire:
    """Notes what is sent, among what else happens."""

    def __init__(self, happened: list[str]) -> None:
        self._happened = happened

    def send(self, peer: Peer, message: Message) -> None:
        assert isinstance(message, Settle)
        self._happened.append(f"{message.lease_id} to {peer.instance_id}")

    def cancel(self, peer: Peer, request_id: str) -> bool:
        raise AssertionError(f"{request_id} at {peer.instance_id} was no question")


def auth_link(happened: list[str]) -> AuthLink:
    news = AuthNews(
        on_settled=lambda _: None,
        on_settle_refused=lambda _: None,
        on_ready=lambda: None,
        on_orphans_noted=lambda _: None,
    )
    return AuthLink(Wire(happened), timeout_s=5.0, require_keys=False, news=news)


async def test_an_answer_is_written_before_its_settlement_wakes_the_auth_worker() -> None:
    happened: list[str] = []
    link = auth_link(happened)
    one = Peer(b"a", "auth", "auth-1", PROTOCOL_VERSION, "", 0.0, 0.0, 0.0, phase="ready")
    one.auth = AuthOffer(epoch=1)
    link.on_peer_ready(one)
    # Whoever waits for the last output is woken before the request is settled.
    asyncio.get_running_loop().call_soon(happened.append, "the answer")
    assert link.settle(
        Settle(lease_id="lease", request_id="r", prompt_tokens=1, completion_tokens=1)
    )
    assert happened == []
    await asyncio.sleep(0)
    assert happened == ["the answer", "lease to auth-1"]


async def test_without_an_auth_worker_a_settlement_is_kept() -> None:
    happened: list[str] = []
    assert not auth_link(happened).settle(
        Settle(lease_id="lease", request_id="r", prompt_tokens=1, completion_tokens=1)
    )
    await asyncio.sleep(0)
    assert happened == []
