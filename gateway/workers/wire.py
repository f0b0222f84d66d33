"""The seam between the gateway's logic and its sockets: a way to reach a peer, and its news."""

from typing import Protocol, TypeVar

from protocol.wire.messages import Message
from protocol.wire.peers import Peer


class Wire(Protocol):
    """Sends messages to the workers of one role; `protocol.wire.role_server.RoleServer` is one."""

    def send(self, peer: Peer, message: Message) -> None:
        """Send, or queue while the peer is slow; one that takes nothing is reported as lost."""
        ...

    def cancel(self, peer: Peer, request_id: str) -> bool:
        """Nobody waits for an answer: take the question back, or tell the peer; whether back."""
        ...


EventT_contra = TypeVar("EventT_contra", contravariant=True)


class LinkHandler(Protocol[EventT_contra]):
    """What a role does with the news of its socket; every method returns at once."""

    def on_peer_ready(self, peer: Peer) -> None:
        """A worker takes work: for the first time, or again after a silence."""
        ...

    def on_peer_updated(self, peer: Peer) -> None:
        """Phase, credit, offer or silence of a worker changed."""
        ...

    def on_peer_lost(self, peer: Peer) -> None:
        """A worker is gone, dead or hung."""
        ...

    def on_event(self, peer: Peer, event: EventT_contra) -> None:
        """A message that is not about the connection."""
        ...
