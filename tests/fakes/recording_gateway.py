"""A gateway's socket that records who comes and what they say, for tests of workers."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.wire.codec import Decoder
from protocol.wire.endpoints import Endpoint, parse_endpoint
from protocol.wire.keys import ServerSecurity
from protocol.wire.messages import Role
from protocol.wire.peers import Peer, PeerEvent, PeerLimits
from protocol.wire.role_server import RoleServer
from protocol.wire.transport import TransportLimits

EventT = TypeVar("EventT")


class RecordingGateway(Generic[EventT]):
    """Notes peers and events; `until` waits for a fact about them."""

    def __init__(
        self,
        role: Role,
        endpoint: str,
        decoder: Decoder[EventT],
        *,
        instance_id: str = "gateway-1",
        security: ServerSecurity | None = None,
        limits: TransportLimits | None = None,
        peer_limits: PeerLimits | None = None,
        heartbeat_interval_s: float = 0.05,
    ) -> None:
        self.events: list[EventT] = []
        self.peer_events: list[PeerEvent] = []
        self._changed = asyncio.Event()
        self.server = RoleServer(
            role,
            endpoint,
            decoder,
            instance_id=instance_id,
            security=security,
            limits=limits,
            peer_limits=peer_limits,
            heartbeat_interval_s=heartbeat_interval_s,
        )

    def start(self) -> Endpoint:
        """Bind in the running loop; what a worker shall dial."""
        bound = self.server.start(
            asyncio.get_running_loop(), on_event=self._on_event, on_peer=self._on_peer
        )
        return parse_endpoint(bound, setting="test", secured=True)

    async def until(self, fact: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until something that happens here makes the fact true."""
        async with asyncio.timeout(timeout_s):
            while not fact():
                self._changed.clear()
                await self._changed.wait()

    async def a_ready_peer(self) -> Peer:
        """The first worker that takes work."""
        await self.until(lambda: any(peer.takes_work for peer in self.server.peers()))
        return next(peer for peer in self.server.peers() if peer.takes_work)

    def kinds(self) -> list[str]:
        """What happened to peers so far."""
        return [event.kind for event in self.peer_events]

    def losses(self) -> list[str | None]:
        """Why peers were lost so far."""
        return [event.reason for event in self.peer_events if event.kind == "lost"]

    def _on_event(self, _peer: Peer, event: EventT) -> None:
        self.events.append(event)
        self._changed.set()

    def _on_peer(self, event: PeerEvent) -> None:
        self.peer_events.append(event)
        self._changed.set()
