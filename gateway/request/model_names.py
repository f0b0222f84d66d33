"""Which model is served for a name that a client asks for: aliases, and fallbacks."""

from collections.abc import Mapping, Sequence

from gateway.workers.engine_directory import EngineDirectory


class ModelNames:
    """The names beside those of the models themselves.

    An alias always stands for its model, whoever else serves that name. A fallback is taken for a
    generation only, because vectors and scores of another model can't be compared: when no engine
    takes work for the model, or when a prompt is beyond its context. Fallbacks of a fallback don't
    count.

    Args:
        aliases: From a name to the model that it stands for.
        fallbacks: From a model to those that stand in for it, in order; `*` is every other model.
        directory: The engines.
    """

    def __init__(
        self,
        aliases: Mapping[str, str],
        fallbacks: Mapping[str, Sequence[str]],
        directory: EngineDirectory,
    ) -> None:
        self.aliases = aliases
        self._fallbacks = fallbacks
        self._directory = directory

    def served(self, name: str) -> str:
        """The model that a name stands for; itself, where it is no alias."""
        return self.aliases.get(name, name)

    def choose(self, name: str) -> str:
        """The model that generates: the one that is meant, or its first fallback that is there.

        Without one that is there it is the one that is meant, so that errors speak of it.
        """
        model = self.served(name)
        if self._directory.is_serving(model):
            return model
        return next(filter(self._directory.is_serving, self._stand_ins(model)), model)

    def longer(self, name: str, tried: str) -> str | None:
        """The first fallback with a longer context than the model that a prompt was too long for.

        Args:
            name: As the client asked.
            tried: The model that refused it.
        """
        known = self._directory.offer(tried)
        least = 0 if known is None else known.max_model_len
        return next(
            (
                model
                for model in self._stand_ins(self.served(name))
                if (offer := self._directory.offer(model)) is not None
                and offer.max_model_len > least
                and self._directory.is_serving(model)
            ),
            None,
        )

    def _stand_ins(self, model: str) -> Sequence[str]:
        found = self._fallbacks.get(model) or self._fallbacks.get("*", ())
        return [served for name in found if (served := self.served(name)) != model]
