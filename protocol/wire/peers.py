"""Who is connected to a gateway and whether they still live; pure, told the time by its caller."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import (
    AuthOffer,
    Credits,
    Drain,
    EngineOffer,
    Failure,
    Goodbye,
    Heartbeat,
    Load,
    ParserOffer,
    Phase,
    Ping,
    Pong,
    Ready,
    Refused,
    Role,
)
from protocol.wire.messages.generation import StepOutput
from protocol.wire.messages.metrics import Metrics, MetricSample

PeerEventKind = Literal["joined", "ready", "updated", "lost"]
LossReason = Literal["goodbye", "failed", "disconnected", "silent", "hung", "overflow", "replaced"]
DEATHS: frozenset[LossReason] = frozenset({"failed", "disconnected", "silent", "hung"})
"""Losses that the work that ran may have caused; the others have no such cause."""
MAX_METRIC_SAMPLES = 4096
"""Series of one peer that a gateway keeps."""
MAX_HOST_CHARS = 255
_ABOUT_THE_CONNECTION = frozenset({Ping, Ready, Heartbeat, Drain, Goodbye, Metrics})
_STARTING: frozenset[Phase] = frozenset({"starting", "downloading", "loading", "compiling"})


@dataclass(frozen=True)
class PeerLimits:
    """When a peer counts as what, seconds.

    Attributes:
        silent_s: No new work for a peer that was not heard for so long.
        dead_s: A peer not heard for so long is lost.
        stall_timeout_s: Running work without progress for so long: hung, treated as lost.
        start_dead_s: As `dead_s`, for a peer that loads or compiles.
        start_stall_timeout_s: A start-up phase without any change for so long: hung.
        max_sweep_gap_s: A longer gap means that the caller itself did not run; it is not silence.
        max_peers: Further ones are refused.
    """

    silent_s: float = 3.0
    dead_s: float = 15.0
    stall_timeout_s: float = 60.0
    start_dead_s: float = 60.0
    start_stall_timeout_s: float = 1800.0
    max_sweep_gap_s: float = 2.0
    max_peers: int = 1024


@dataclass(eq=False)
class Peer:
    """One connected worker, as its last messages describe it.

    Attributes:
        identity: Of the connection; another connection of the same worker is another peer.
        instance_id: Of the worker process.
        last_heard: When any message of it came.
        progress_since: Since when its progress counter stands still, or it has nothing to do.
        phase_since: Since when phase, fraction and detail are what they are.
        is_silent: Not heard for `silent_s`.
        metrics: As it last sent them.
        incarnation: Of its process; empty from workers that don't say it.
        host: The name of its machine or container, as it says; empty from before 1.5.
        address: From where it connected; empty over a Unix socket.
        loss_reason: Why it was lost; None while it is here.
        stuck_at: The progress counter at which its process was found hung and still stands.
    """

    identity: bytes
    role: Role
    instance_id: str
    protocol_version: ProtocolVersion
    build: str
    last_heard: float
    progress_since: float
    phase_since: float
    phase: Phase = "starting"
    fraction: float = -1.0
    detail: str = ""
    engine: EngineOffer | None = None
    auth: AuthOffer | None = None
    parser: ParserOffer | None = None
    load: Load = field(default_factory=Load)
    credits: Credits | None = None
    progress_counter: int = 0
    is_silent: bool = False
    metrics: tuple[MetricSample, ...] = ()
    incarnation: str = ""
    host: str = ""
    address: str = ""
    loss_reason: LossReason | None = None
    stuck_at: int | None = None

    @property
    def has_offer(self) -> bool:
        """Whether it said what it serves."""
        if self.role == "engine":
            return self.engine is not None
        return (self.auth if self.role == "auth" else self.parser) is not None

    @property
    def takes_work(self) -> bool:
        """Whether new work may go there."""
        return self.may_answer and not self.is_silent

    @property
    def may_answer(self) -> bool:
        """Whether it takes work, or only was not heard for a while: it may be slow, not away."""
        return self.phase == "ready" and self.has_offer and self.stuck_at is None


@dataclass(frozen=True)
class PeerEvent:
    """Something about a peer changed.

    Attributes:
        kind: `joined` with its first Ready; `ready` each time it begins to take work; `updated`
            for any other change of phase, progress of a phase, offer, credits or silence; `lost`
            once and forever: what it worked on must go elsewhere.
        reason: For `lost`.
        message: For `lost`, a sentence for logs.
    """

    kind: PeerEventKind
    peer: Peer
    reason: LossReason | None = None
    message: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What a message led to.

    Attributes:
        peer: Who sent it, when it is work: an event of the role, for the caller to handle.
        events: What changed.
        replies: What to send back to the sender, in order.
    """

    peer: Peer | None = None
    events: tuple[PeerEvent, ...] = ()
    replies: tuple[Message, ...] = ()


class PeerTable:
    """The peers of one role at one gateway.

    Args:
        role: Of this socket; a Ready of another role is refused.
        heartbeat: Makes the gateway's heartbeat to a peer, the first answer to a Ready.
        limits: When a peer counts as what.
    """

    def __init__(
        self,
        role: Role,
        heartbeat: Callable[[Peer], Heartbeat],
        limits: PeerLimits | None = None,
    ) -> None:
        self.role: Role = role
        self._heartbeat = heartbeat
        self._limits = limits or PeerLimits()
        self._peers: dict[bytes, Peer] = {}
        # Instance id → progress counter of who was hung: a new connection alone doesn't clear it.
        self._stuck: OrderedDict[str, int] = OrderedDict()
        self._last_sweep: float | None = None

    def peers(self) -> tuple[Peer, ...]:
        """Everybody who is here, in order of arrival."""
        return tuple(self._peers.values())

    def get(self, identity: bytes) -> Peer | None:
        """The peer of a connection."""
        return self._peers.get(identity)

    def on_message(self, identity: bytes, message: object, now: float) -> Outcome:
        """Take note of a message; `now` is in monotonic seconds.

        Whoever was not introduced by a Ready is asked, by a Goodbye, to begin again: a worker that
        was declared dead meanwhile drops what it had and announces itself.
        """
        if type(message) not in _ABOUT_THE_CONNECTION:
            return self._on_work(identity, message, now)
        if isinstance(message, Ping):
            return Outcome(replies=(Pong(nonce=message.nonce, protocol_version=PROTOCOL_VERSION),))
        if isinstance(message, Ready):
            return self._on_ready(identity, message, now)
        peer = self._peers.get(identity)
        if peer is None:
            if isinstance(message, Heartbeat):
                return Outcome(replies=(Goodbye(reason="announce yourself with Ready"),))
            return Outcome()
        before = _visible_state(peer)
        was_taking_work = peer.takes_work
        peer.last_heard = now
        peer.is_silent = False
        if isinstance(message, Goodbye):
            reason: LossReason = "failed" if message.has_failed else "goodbye"
            return Outcome(events=(self._lose(peer, reason, message.reason or "goodbye"),))
        if isinstance(message, Drain):
            _set_phase(peer, "draining", -1.0, "", now)
        elif isinstance(message, Heartbeat):
            _set_phase(peer, message.phase, message.fraction, message.detail, now)
            _note_progress(peer, message.progress_counter, message.load, now)
            self._note_recovery(peer)
            peer.credits = message.credits
        elif isinstance(message, Metrics):
            peer.metrics = message.samples[:MAX_METRIC_SAMPLES]
        return Outcome(events=_changes(peer, before, was_taking_work=was_taking_work))

    def _on_work(self, identity: bytes, message: object, now: float) -> Outcome:
        """A message about requests, of which there are thousands a second."""
        peer = self._peers.get(identity)
        if peer is None:
            return Outcome()
        peer.last_heard = now
        credits_before, was_silent = peer.credits, peer.is_silent
        if isinstance(message, StepOutput):
            _note_progress(peer, message.progress_counter, message.load, now)
            if message.credits is not None:
                peer.credits = message.credits
        elif isinstance(message, Failure) and not message.request_id:
            peer = None  # it could not read a frame of ours, and has logged it
        if not was_silent and (peer is None or peer.credits == credits_before):
            return Outcome(peer=peer)
        heard = self._peers[identity]
        heard.is_silent = False
        kind: PeerEventKind = "ready" if was_silent and heard.takes_work else "updated"
        return Outcome(peer=peer, events=(PeerEvent(kind, heard),))

    def on_gone(self, identity: bytes) -> tuple[PeerEvent, ...]:
        """The connection ended: the peer is lost at once."""
        return self.lose(identity, "disconnected", "the connection ended")

    def lose(self, identity: bytes, reason: LossReason, message: str) -> tuple[PeerEvent, ...]:
        """Give a peer up; nothing happens if it is not here."""
        peer = self._peers.get(identity)
        return () if peer is None else (self._lose(peer, reason, message),)

    def sweep(self, now: float) -> tuple[PeerEvent, ...]:
        """Find who became silent, dead or hung; called about every second.

        After `lost` the caller sends the peer a Goodbye, in case it lives on.
        """
        gap = 0.0 if self._last_sweep is None else now - self._last_sweep
        self._last_sweep = now
        if gap > self._limits.max_sweep_gap_s:
            for peer in self._peers.values():
                peer.last_heard = min(now, peer.last_heard + gap)
                peer.progress_since = min(now, peer.progress_since + gap)
                peer.phase_since = min(now, peer.phase_since + gap)
        events: list[PeerEvent] = []
        for peer in list(self._peers.values()):
            event = self._examine(peer, now)
            if event is not None:
                events.append(event)
        return tuple(events)

    def _on_ready(self, identity: bytes, ready: Ready, now: float) -> Outcome:
        refusal = self._refusal(identity, ready, now)
        if refusal is not None:
            return Outcome(replies=(refusal,))
        events: list[PeerEvent] = []
        peer = self._peers.get(identity)
        if peer is None or peer.instance_id != ready.instance_id:
            events.extend(
                self._lose(other, "replaced", "it connected again")
                for other in list(self._peers.values())
                if other.instance_id == ready.instance_id or other.identity == identity
            )
            peer = Peer(
                identity=identity,
                role=ready.role,
                instance_id=ready.instance_id,
                protocol_version=ready.protocol_version,
                build=ready.build,
                last_heard=now,
                progress_since=now,
                phase_since=now,
                incarnation=ready.incarnation,
                host=ready.host[:MAX_HOST_CHARS],
                stuck_at=self._stuck.get(ready.instance_id),
            )
            self._peers[identity] = peer
            events.append(PeerEvent("joined", peer))
        before, was_taking_work = _visible_state(peer), peer.takes_work
        peer.last_heard = now
        peer.is_silent = False
        peer.engine, peer.auth, peer.parser = ready.engine, ready.auth, ready.parser
        if peer.phase != ready.phase:
            _set_phase(peer, ready.phase, -1.0, "", now)
        events.extend(_changes(peer, before, was_taking_work=was_taking_work))
        return Outcome(events=tuple(events), replies=(self._heartbeat(peer),))

    def _refusal(self, identity: bytes, ready: Ready, now: float) -> Refused | None:
        if not ready.protocol_version.speaks_with(PROTOCOL_VERSION):
            return Refused(
                code=ErrorCode.VERSION_MISMATCH,
                message=f"This gateway speaks protocol {PROTOCOL_VERSION}, the worker "
                f"{ready.protocol_version}; run the same release on both sides.",
            )
        if ready.role != self.role:
            return Refused(
                code=ErrorCode.INVALID_REQUEST,
                message=f"This socket is for workers of role {self.role}, not {ready.role}.",
            )
        if identity not in self._peers and len(self._peers) >= self._limits.max_peers:
            return Refused(
                code=ErrorCode.OVERLOADED,
                message=f"This gateway has {self._limits.max_peers} workers already.",
            )
        twin = self._twin(identity, ready)
        if twin is not None and now - twin.last_heard < self._limits.silent_s:
            return Refused(
                code=ErrorCode.INVALID_REQUEST,
                message=f"Another worker is here as `{ready.instance_id}`; give each an instance "
                "id of its own.",
            )
        return None

    def _twin(self, identity: bytes, ready: Ready) -> Peer | None:
        """Another process that has the same instance id."""
        for peer in self._peers.values():
            if (
                peer.identity != identity
                and peer.instance_id == ready.instance_id
                and peer.incarnation
                and ready.incarnation
                and peer.incarnation != ready.incarnation
            ):
                return peer
        return None

    def _examine(self, peer: Peer, now: float) -> PeerEvent | None:
        limits = self._limits
        is_starting = peer.phase in _STARTING
        silence_s = now - peer.last_heard
        if silence_s >= (limits.start_dead_s if is_starting else limits.dead_s):
            return self._lose(peer, "silent", f"silent for {silence_s:.1f} s")
        if is_starting and now - peer.phase_since >= limits.start_stall_timeout_s:
            return self._lose(peer, "hung", f"stuck in phase {peer.phase}")
        stalled_s = now - peer.progress_since
        if not is_starting and peer.load.num_running > 0 and stalled_s >= limits.stall_timeout_s:
            peer.stuck_at = self._stuck[peer.instance_id] = peer.progress_counter
            if len(self._stuck) > limits.max_peers:
                self._stuck.popitem(last=False)
            return self._lose(peer, "hung", f"no progress for {stalled_s:.1f} s with work running")
        if silence_s >= limits.silent_s and not peer.is_silent:
            peer.is_silent = True
            return PeerEvent("updated", peer)
        return None

    def _note_recovery(self, peer: Peer) -> None:
        """A hung peer takes work again once its counter moves, or it has nothing left to do."""
        if peer.stuck_at is not None and (
            peer.progress_counter != peer.stuck_at or peer.load.num_running == 0
        ):
            peer.stuck_at = None
            self._stuck.pop(peer.instance_id, None)

    def _lose(self, peer: Peer, reason: LossReason, message: str) -> PeerEvent:
        self._peers.pop(peer.identity, None)
        peer.loss_reason = reason
        return PeerEvent("lost", peer, reason, message)


def _visible_state(peer: Peer) -> tuple[object, ...]:
    return (
        peer.phase,
        peer.fraction,
        peer.detail,
        peer.credits,
        peer.is_silent,
        peer.engine,
        peer.auth,
        peer.parser,
    )


def _changes(
    peer: Peer, before: tuple[object, ...], *, was_taking_work: bool
) -> tuple[PeerEvent, ...]:
    if peer.takes_work and not was_taking_work:
        return (PeerEvent("ready", peer),)
    if _visible_state(peer) != before:
        return (PeerEvent("updated", peer),)
    return ()


def _set_phase(peer: Peer, phase: Phase, fraction: float, detail: str, now: float) -> None:
    if (peer.phase, peer.fraction, peer.detail) != (phase, fraction, detail):
        peer.phase, peer.fraction, peer.detail = phase, fraction, detail
        peer.phase_since = now


def _note_progress(peer: Peer, progress_counter: int, load: Load, now: float) -> None:
    if progress_counter != peer.progress_counter or peer.load.num_running == 0:
        peer.progress_since = now
    peer.progress_counter = progress_counter
    peer.load = load
