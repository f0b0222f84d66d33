"""Who could do a piece of work and who may: the live engines as routing sees them, and slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from protocol.wire.messages import EngineOffer, Load
from protocol.wire.peers import Peer

SlotKind = Literal["work", "question"]
"""`work` runs in an engine's steps and takes of its credit: a choice, a batch of embeddings.
A `question` is answered by the threads beside them (tokenise, detokenise) and takes no credit;
`MAX_QUESTIONS` bounds how many one engine has of this gateway."""
MAX_QUESTIONS = 16
"""An engine lets 256 wait for its threads: those of several gateways, and every prompt."""


@dataclass(slots=True, eq=False)
class EngineHandle:
    """One live engine as routing sees it.

    Attributes:
        peer: Its connection, with its latest load and credit.
        offer: What it serves.
        is_live: Until its connection is lost; another one is another handle.
        num_requests: Slots for work that this gateway has there; `num_tokens` their tokens.
        num_questions: Slots for questions.
        is_backing_off: It just refused work that seemed to be within its credit.
        backing_off_until: When that ends, in monotonic seconds.
        is_reserved: It is kept for a request that runs, or is about to run, with no other beside
            it.
    """

    peer: Peer
    offer: EngineOffer
    is_live: bool = True
    num_requests: int = 0
    num_tokens: int = 0
    num_questions: int = 0
    is_backing_off: bool = False
    backing_off_until: float = 0.0
    is_reserved: bool = False
    _seen: Load | None = None
    _num_then: int = 0

    @property
    def takes_work(self) -> bool:
        """Whether it may be given anything at all at the moment."""
        return self.peer.takes_work and not self.is_backing_off

    def can_take(self, tokens: int, kind: SlotKind = "work") -> bool:
        """Whether one more slot is within the credit, or the bound of questions.

        Args:
            tokens: Upper bound of prompt and output; a question takes none.
            kind: Of the slot.
        """
        if not self.takes_work or self.is_reserved:
            return False
        if kind == "question":
            return self.num_questions < MAX_QUESTIONS
        credits_now = self.peer.credits or self.offer.credits
        if self.num_requests >= credits_now.max_requests:
            return False
        # One request alone may always go: the engine itself knows best whether it can ever fit.
        return self.num_requests == 0 or self.num_tokens + tokens <= credits_now.max_tokens

    def back_off(self, until: float) -> None:
        """It answered that it is overloaded: leave it alone.

        Args:
            until: Monotonic seconds; an earlier time than was asked for before changes nothing.
        """
        self.backing_off_until = max(self.backing_off_until, until)
        self.is_backing_off = True

    def end_back_off(self, until: float) -> bool:
        """The time given to `back_off` has come; whether it may be given work again.

        Args:
            until: As given to `back_off`; it may have asked for longer since.
        """
        if until < self.backing_off_until:
            return False
        self.is_backing_off = False
        return True

    @property
    def num_unfinished(self) -> int:
        """Work there: as reported, which is up to a second old, or as sent, if that is more."""
        load = self.peer.load
        return max(load.num_running + load.num_waiting, self.num_requests)

    @property
    def num_there_now(self) -> int:
        """Work there: what others had at the last report, and what this gateway has now.

        Of short requests most have ended since a report that is up to a second old.
        """
        load = self.peer.load
        if load is not self._seen:
            self._seen, self._num_then = load, self.num_requests
        of_others = load.num_running + load.num_waiting - self._num_then
        return self.num_requests + max(0, of_others)


class Share(Struct, frozen=True):
    """What a slot takes of its tenant's share.

    Attributes:
        bound: Upper bound of the tokens when the slot was asked for.
        cost: What the tenant was charged in the queue; 0 when nobody waited.
        owed_part: What part of it the priority owes to more important ones.
    """

    tenant: str
    priority: int
    bound: int
    cost: int
    owed_part: float = 0.0


class Slot(Struct, eq=False):
    """The right to one piece of work, or one question, at one engine, until released.

    Attributes:
        tokens: Upper bound of prompt and output, which the engine's credit is reduced by.
        is_alone: Nothing else may run at that engine meanwhile.
        share: Of the queue, that pays for it, at each engine in turn.
        kind: Of the slot.
    """

    engine: EngineHandle
    tokens: int
    is_released: bool = False
    is_alone: bool = False
    share: Share | None = None
    kind: SlotKind = "work"

    def occupy(self) -> None:
        """Count it at its engine."""
        self._count(1)

    def vacate(self) -> None:
        """Count it no more."""
        self._count(-1)

    def resize(self, tokens: int) -> None:
        """Count so many tokens at its engine instead."""
        if self.kind != "question":
            self.engine.num_tokens += tokens - self.tokens
        self.tokens = tokens

    def _count(self, sign: int) -> None:
        if self.kind == "question":
            self.engine.num_questions += sign
        else:
            self.engine.num_requests += sign
            self.engine.num_tokens += sign * self.tokens


Accepts = Callable[[EngineHandle], bool]
"""Whether an engine can do a piece of work at all, whatever its credit: while weights are replaced,
engines of two fingerprints serve one model, and a prompt stays with the one that tokenised it."""


def any_engine(_engine: EngineHandle) -> bool:
    """For work that nothing binds to an engine."""
    return True


def least_loaded(
    engines: Sequence[EngineHandle], tokens: int, turn: int, kind: SlotKind = "work"
) -> EngineHandle | None:
    """The engine with the least to do among those that can take one more.

    Args:
        engines: To choose from.
        tokens: Upper bound of prompt and output.
        turn: Grows with each choice, so that ties go round.
        kind: Of the slot.
    """
    best: EngineHandle | None = None
    best_score = (0, 0, 0)
    for offset in range(len(engines)):
        engine = engines[(turn + offset) % len(engines)]
        if not engine.can_take(tokens, kind):
            continue
        questions = engine.num_questions if kind == "question" else 0
        score = (questions, engine.num_unfinished, engine.num_tokens)
        if best is None or score < best_score:
            best, best_score = engine, score
    return best
