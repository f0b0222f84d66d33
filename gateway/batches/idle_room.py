"""How many lines of batches the engines of a model could take now, beside everybody's requests."""

from collections.abc import Callable, Sequence
from typing import Final

from gateway.batches.line_room import OnTheirWay
from gateway.batches.lines import Wanted
from gateway.dispatch.admission import Admission
from gateway.request.jobs.model_names import ModelNames
from gateway.workers.engine_directory import EngineDirectory

DEFAULT_SLOTS: Final = 8
"""Of an engine that doesn't say how many requests it runs at a time."""
_EMBEDDINGS: Final = "/v1/embeddings"


class IdleRoom:
    """What nobody else wants of the engines; a part of their room is left for whoever comes.

    Args:
        configured: Models that are served sooner or later.
        directory: The engines.
        admission: Who waits for them.
        names: What stands for a model.
        takes_requests: Whether this gateway does at all.
        knows_all: Whether a name that no engine has announced is no model's.
        share: Of an engine's room, what lines may fill.
    """

    def __init__(
        self,
        configured: Sequence[str],
        directory: EngineDirectory,
        admission: Admission,
        names: ModelNames,
        takes_requests: Callable[[], bool],
        knows_all: Callable[[], bool],
        share: float,
    ) -> None:
        self._configured = configured
        self._directory = directory
        self._admission = admission
        self._names = names
        self._takes_requests = takes_requests
        self._knows_all = knows_all
        self._share = share

    def num_free(self, endpoint: str, wanted: Wanted, on_their_way: OnTheirWay) -> int | None:
        """Requests that the engines wanted could take beside what they have and what waits.

        What is no model's name is to be answered with that, as soon as anything is and every engine
        has said what it serves: right after a gateway's start some haven't.

        Args:
            endpoint: Of the lines.
            wanted: Which engines.
            on_their_way: Lines that have begun, of which no engine knows yet.

        Returns:
            None while no such engine is there, whatever else there is to do.
        """
        models = self._directory.models()
        is_there = self._directory.is_serving
        model = self._choose(endpoint, wanted)
        is_known = model in models or model in self._configured
        if model is not None and not is_there(model) and (is_known or not self._knows_all()):
            return None
        if not (self._takes_requests() and any(map(is_there, models))):
            return 0
        if any(map(self._admission.num_waiting, models)):
            return 0
        if model is None or not is_known:
            return 1
        num_free = 0
        for engine in self._directory.engines(model):
            slots = engine.offer.max_num_seqs or DEFAULT_SLOTS
            num_free += max(1, int(slots * self._share)) - engine.num_there_now
        # By whatever name they have the model; they are not among what its engines know of.
        return num_free - sum(
            number for lines, number in on_their_way.items() if self._choose(*lines) == model
        )

    def _choose(self, endpoint: str, wanted: Wanted) -> str | None:
        """As the routes do: nothing stands in for a model of embeddings."""
        if wanted.model is None:
            return None
        if endpoint == _EMBEDDINGS:
            return self._names.served(wanted.model)
        return self._names.choose(wanted.model, names_token_ids=wanted.names_token_ids)
