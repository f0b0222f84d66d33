"""Which model is served for a name that a client asks for: aliases, and fallbacks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from gateway.errors import ModelNotFoundError
from gateway.workers.engine_directory import EngineDirectory
from protocol.wire.messages import EngineOffer

_NOT_OF_TOKENS: Final = ("model_max_length", "chat_template")
"""What models with one tokenizer may tell of it otherwise."""


class ModelNames:
    """The names beside those of the models themselves.

    An alias always stands for its model, whoever else serves that name. A fallback is taken for a
    generation only, because vectors and scores of another model can't be compared: when no engine
    takes work for the model, or when a prompt is beyond its context. Fallbacks of a fallback don't
    count. A request that holds token ids goes to models with the same tokenizer only.

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

    @property
    def configured(self) -> frozenset[str]:
        """The models that aliases stand for, and those that have fallbacks of their own."""
        return frozenset(self.aliases.values()) | (self._fallbacks.keys() - {"*"})

    def served(self, name: str) -> str:
        """The model that a name stands for; itself, where it is no alias."""
        return self.aliases.get(name, name)

    def served_globs(self, globs: Iterable[str]) -> tuple[str, ...]:
        """Names and globs of models, with the model in place of each alias; each of them once."""
        return tuple(dict.fromkeys(map(self.served, globs)))

    def offered(self, name: str) -> EngineOffer:
        """What the engines of the model serve that a name stands for, or served last.

        Raises:
            ModelNotFoundError: No engine has served it since the start.
        """
        offer = self._directory.offer(self.served(name))
        if offer is None:
            raise ModelNotFoundError(name, tuple(sorted(self._directory.models())))
        return offer

    def choose(self, name: str, *, names_token_ids: bool = False) -> str:
        """The model that generates: the one that is meant, or its first fallback that is there.

        Without one that is there it is the one that is meant, so that errors speak of it.

        Args:
            name: As the client asked.
            names_token_ids: Whether the request holds token ids.
        """
        model = self.served(name)
        if self._directory.is_serving(model):
            return model
        stand_ins = self._stand_ins(model, names_token_ids=names_token_ids)
        return next(filter(self._directory.is_serving, stand_ins), model)

    def longer(self, name: str, tried: str, *, names_token_ids: bool = False) -> str | None:
        """The first fallback with a longer context than the model that a prompt was too long for.

        Args:
            name: As the client asked.
            tried: The model that refused it.
            names_token_ids: Whether the request holds token ids.
        """
        known = self._directory.offer(tried)
        least = 0 if known is None else known.max_model_len
        return next(
            (
                model
                for model in self._stand_ins(self.served(name), names_token_ids=names_token_ids)
                if (offer := self._directory.offer(model)) is not None
                and offer.max_model_len > least
                and self._directory.is_serving(model)
            ),
            None,
        )

    def _stand_ins(self, model: str, *, names_token_ids: bool) -> Sequence[str]:
        found = self._fallbacks.get(model) or self._fallbacks.get("*", ())
        return [
            served
            for name in found
            if (served := self.served(name)) != model
            and not (names_token_ids and self._tokenizer_of(served) != self._tokenizer_of(model))
        ]

    def _tokenizer_of(self, model: str) -> Any:
        """What tells the tokenizer of a model that is or was served from others."""
        offer: EngineOffer | None = self._directory.models().get(model)
        if offer is None:
            return model
        try:
            told: Any = orjson.loads(offer.tokenizer_info_json or "{}")
        except orjson.JSONDecodeError:
            return model
        if isinstance(told, dict):
            told = {name: value for name, value in told.items() if name not in _NOT_OF_TOKENS}
        return offer.vocab_size, told
