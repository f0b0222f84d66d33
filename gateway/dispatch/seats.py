"""Who could do a piece of work and who may: the live engines as routing sees them, and seats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.wire.messages import EngineOffer
from protocol.wire.peers import Peer


@dataclass(slots=True, eq=False)
class EngineHandle:
    """One live engine as routing sees it.

    Attributes:
        peer: Its connection, with its latest load and credit.
        offer: What it serves.
        num_requests: Choices that this gateway has there; `num_tokens` their tokens.
        is_backing_off: It just refused work that seemed to be within its credit.
        is_reserved: It is kept for a request that runs, or is about to run, with no other beside
            it.
    """

    peer: Peer
    offer: EngineOffer
    num_requests: int = 0
    num_tokens: int = 0
    is_backing_off: bool = False
    is_reserved: bool = False

    @property
    def takes_work(self) -> bool:
        """Whether it may be given anything at all at the moment."""
        return self.peer.takes_work and not self.is_backing_off

    def can_take(self, tokens: int) -> bool:
        """Whether one more choice of so many tokens is within the credit."""
        credits_now = self.peer.credits or self.offer.credits
        if not self.takes_work or self.is_reserved:
            return False
        if self.num_requests >= credits_now.max_requests:
            return False
        # One request alone may always go: the engine itself knows best whether it can ever fit.
        return self.num_requests == 0 or self.num_tokens + tokens <= credits_now.max_tokens

    @property
    def num_unfinished(self) -> int:
        """Choices there: as reported, which is up to a second old, or as sent, if that is more."""
        load = self.peer.load
        return max(load.num_running + load.num_waiting, self.num_requests)


@dataclass(frozen=True, slots=True)
class Share:
    """What a seat takes of its tenant's share.

    Attributes:
        bound: Upper bound of the tokens when the seat was asked for.
        cost: What the tenant was charged in the queue; 0 when nobody waited.
    """

    tenant: str
    priority: int
    bound: int
    cost: int


@dataclass(slots=True, eq=False)
class Seat:
    """The right to one choice at one engine, until released.

    Attributes:
        is_alone: Nothing else may run at that engine meanwhile.
        share: Of the queue, that pays for it; None for work that lost its engine.
    """

    engine: EngineHandle
    tokens: int
    is_released: bool = False
    is_alone: bool = False
    share: "Share | None" = None


Accepts = Callable[[EngineHandle], bool]
"""Whether an engine can do a piece of work at all, credit aside."""


def least_loaded(engines: Sequence[EngineHandle], tokens: int, turn: int) -> EngineHandle | None:
    """The engine with the least work among those with credit.

    Args:
        engines: To choose from.
        tokens: Upper bound of prompt and output.
        turn: Grows with each choice, so that ties go round.
    """
    best: EngineHandle | None = None
    best_score = (0, 0)
    for offset in range(len(engines)):
        engine = engines[(turn + offset) % len(engines)]
        if not engine.can_take(tokens):
            continue
        score = (engine.num_unfinished, engine.num_tokens)
        if best is None or score < best_score:
            best, best_score = engine, score
    return best
