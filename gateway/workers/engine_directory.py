"""Which engines there are and what they serve, also while old and new weights are served."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from gateway.dispatch.slots import Accepts, EngineHandle
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import EngineOffer
from protocol.wire.peers import Peer

_logger = logging.getLogger("penstock.gateway.engines")

_MAX_GONE: Final = 8
"""Kinds of engines of a model that are remembered after the last of each is gone."""


class EngineDirectory:
    """The live engines by model.

    It is long because each question about a model or an engine is a method of a few lines.

    Engines of one name may differ in their fingerprint: new weights are rolled out by starting
    engines with them before the old ones stop. A prompt, and what was generated from it, stays with
    engines of its fingerprint; new requests go to either until the old ones drain.

    Args:
        on_change: Called with a model's name when its engines, credits or loads changed.
    """

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._handles: dict[Peer, EngineHandle] = {}
        self._by_model: dict[str, list[EngineHandle]] = {}
        self._known: dict[str, EngineOffer] = {}
        # By model, the one of each kind that went last, in that order.
        self._gone: dict[str, list[EngineHandle]] = {}

    def engines(self, model: str) -> Sequence[EngineHandle]:
        """The live engines of a model."""
        return self._by_model.get(model, ())

    def handle(self, peer: Peer) -> EngineHandle | None:
        """The engine of a connection, while it lives."""
        return self._handles.get(peer)

    def peers(self) -> Sequence[Peer]:
        """The connections of all live engines."""
        return tuple(self._handles)

    def offer(self, model: str) -> EngineOffer | None:
        """What the engines of a model serve, or served last; None for an unknown model.

        While two fingerprints serve, it is the one that came last; of engines that hold contexts of
        different lengths, one with the longest: what is too long for that is too long for all.
        """
        return self._known.get(model)

    def models(self) -> Mapping[str, EngineOffer]:
        """Every model that was offered since the start, by name."""
        return self._known

    def fingerprints(self, model: str) -> tuple[str, ...]:
        """Of the live engines of a model, without repetition, in order of arrival."""
        return tuple(dict.fromkeys(engine.offer.fingerprint for engine in self.engines(model)))

    def is_serving(self, model: str) -> bool:
        """Whether an engine takes new requests for a model."""
        # Asked for each request, of one or two engines: a generator takes longer.
        for engine in self.engines(model):  # noqa: SIM110
            if engine.peer.takes_work:
                return True
        return False

    def version(self, model: str) -> ProtocolVersion:
        """The oldest wire that an engine of a model speaks."""
        engines = self.engines(model)
        if len(engines) == 1:
            return engines[0].peer.protocol_version
        spoken = (engine.peer.protocol_version for engine in engines)
        return min(spoken, default=PROTOCOL_VERSION)

    def update(self, peer: Peer) -> None:
        """An engine's offer, credit or phase changed; the first offer lets it in."""
        offer = peer.engine
        handle = self._handles.get(peer)
        if handle is None and offer is not None and peer.takes_work:
            handle = self._join(peer, offer)
        if handle is None:
            return
        if offer is not None and offer.model != handle.offer.model:
            _logger.error(
                "engine %s renames its model %s to %s; that takes a new connection",
                peer.instance_id,
                handle.offer.model,
                offer.model,
            )
        elif offer is not None:
            handle.offer = offer
            if self._speaks_for_model(offer):
                self._known[offer.model] = self._longest(offer)
        self._on_change(handle.offer.model)

    def forget_absent(self, models: Iterable[str]) -> tuple[str, ...]:
        """Forget those models that no engine is there for; which those were."""
        absent = tuple(model for model in models if not self.engines(model))
        for model in absent:
            self._known.pop(model, None)
            self._by_model.pop(model, None)
            self._gone.pop(model, None)
        return absent

    def remove(self, peer: Peer) -> EngineHandle | None:
        """An engine is dead; who it was."""
        handle = self._handles.pop(peer, None)
        if handle is not None:
            handle.is_live = False
            model = handle.offer.model
            self._by_model[model].remove(handle)
            self._note_gone(handle)
            left = self._by_model[model]
            if left:
                known = self._known[model]
                goes_on = self._speaks_for_model(known, among=left)
                self._known[model] = self._longest(known if goes_on else left[-1].offer)
        return handle

    def may_return(self, model: str, accepts: Accepts) -> bool:
        """Whether an engine that isn't there is worth waiting for.

        One that crashed is started again; where the last that could do the work has left cleanly,
        other weights have taken its place.

        Args:
            model: Whose engines.
            accepts: Which of them can do the work.
        """
        last = next(filter(accepts, reversed(self._gone.get(model, []))), None)
        return last is None or last.peer.loss_reason != "goodbye"

    def _note_gone(self, handle: EngineHandle) -> None:
        def kind(one: EngineHandle) -> tuple[str, int]:
            return one.offer.fingerprint, one.offer.resume_version

        model = handle.offer.model
        others = [one for one in self._gone.get(model, []) if kind(one) != kind(handle)]
        self._gone[model] = [*others, handle][-_MAX_GONE:]

    def changed(self, handle: EngineHandle) -> None:
        """Something about an engine that `update` doesn't see: a request of it ended."""
        self._on_change(handle.offer.model)

    def back_off(self, peer: Peer, for_s: float) -> None:
        """An engine refused work that seemed within its credit: leave it alone for a while."""
        handle = self._handles.get(peer)
        if handle is not None:
            loop = asyncio.get_running_loop()
            until = loop.time() + for_s
            handle.back_off(until)
            loop.call_at(until, self._end_back_off, handle, until)

    def _end_back_off(self, handle: EngineHandle, until: float) -> None:
        if handle.end_back_off(until):
            self._on_change(handle.offer.model)

    def _join(self, peer: Peer, offer: EngineOffer) -> EngineHandle:
        others = self.fingerprints(offer.model)
        if others and offer.fingerprint not in others:
            _logger.warning(
                "engine %s serves other weights or settings under the name %s than those that are"
                " there; new requests go to both until the old engines drain",
                peer.instance_id,
                offer.model,
            )
        handle = EngineHandle(peer, offer)
        self._handles[peer] = handle
        self._by_model.setdefault(offer.model, []).append(handle)
        self._known[offer.model] = self._longest(offer)
        return handle

    def _longest(self, offer: EngineOffer) -> EngineOffer:
        """Of the live engines of an offer's fingerprint the one with the longest context."""
        alike = (
            engine.offer
            for engine in reversed(self.engines(offer.model))
            if engine.offer.fingerprint == offer.fingerprint
        )
        return max(alike, key=lambda one: one.max_model_len, default=offer)

    def _speaks_for_model(
        self, offer: EngineOffer, among: Sequence[EngineHandle] | None = None
    ) -> bool:
        """Whether an offer is of the fingerprint that new requests are checked against."""
        if among is not None:
            return any(engine.offer.fingerprint == offer.fingerprint for engine in among)
        known = self._known.get(offer.model)
        return known is None or known.fingerprint == offer.fingerprint
