"""How many lines of batches the engines of a model could take now, beside everybody's requests."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.dispatch.admission import Admission
from gateway.request.jobs.model_names import ModelNames
from gateway.workers.engine_directory import EngineDirectory

DEFAULT_SLOTS: Final = 8
"""Of an engine that doesn't say how many requests it runs at a time."""
_EMBEDDINGS: Final = "/v1/embeddings"


class IdleRoom:
    """What nobody else wants of the engines; a quarter of their room is left for whoever comes.

    Args:
        configured: Models that are served sooner or later.
        directory: The engines.
        admission: Who waits for them.
        names: What stands for a model.
        takes_requests: Whether this gateway does at all.
    """

    def __init__(
        self,
        configured: Sequence[str],
        directory: EngineDirectory,
        admission: Admission,
        names: ModelNames,
        takes_requests: Callable[[], bool],
    ) -> None:
        self._configured = configured
        self._directory = directory
        self._admission = admission
        self._names = names
        self._takes_requests = takes_requests

    def num_free(self, endpoint: str, name: Any) -> int | None:
        """Requests that a model's engines could take beside what they have and what waits.

        What is no model's name is to be answered with that, as soon as anything is.

        Args:
            endpoint: Of the requests.
            name: What their bodies name as the model.

        Returns:
            None while no engine of the model is there.
        """
        models = self._directory.models()
        is_there = self._directory.is_serving
        if not (self._takes_requests() and any(map(is_there, models))):
            return 0
        if any(map(self._admission.num_waiting, models)):
            return 0
        if not isinstance(name, str):
            return 1
        # As the routes choose it: nothing stands in for a model of embeddings.
        names = self._names
        model = names.served(name) if endpoint == _EMBEDDINGS else names.choose(name)
        if not is_there(model):
            return None if model in models or model in self._configured else 1
        room = 0
        for engine in self._directory.engines(model):
            slots = engine.offer.max_num_seqs or DEFAULT_SLOTS
            room += max(1, slots * 3 // 4) - engine.num_unfinished
        return room
