"""Every model of a request body, or of a part of one, wherever it is declared."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Final

import gateway.http
from gateway.http.schemas.base.body import RequestModel


def _models() -> Iterator[type[RequestModel]]:
    for module in pkgutil.walk_packages(gateway.http.__path__, "gateway.http."):
        importlib.import_module(module.name)
    rest = [RequestModel]
    while rest:
        subclasses = rest.pop().__subclasses__()
        yield from subclasses
        rest += subclasses


MODELS: Final = sorted(set(_models()), key=lambda model: f"{model.__module__}.{model.__name__}")
