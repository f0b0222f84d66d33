"""Tells the models that have answered something from names that callers make up; pure."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from auth_worker.principals.prices import Price

MAX_SERVED: Final = 4096
"""Far more than a deployment serves at a time; beyond it the one that answered longest ago goes."""


class ServedModels:
    """The names of models that worked since the start, or used tokens shortly before it.

    Any text is a model's name until an engine is looked for, which comes after the grant. So what
    is kept by a model's name (totals by the hour, plans of limits) is kept by these names alone:
    callers could fill the disk otherwise, a row with each request.

    Args:
        names: Of models that have answered lately.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        for name in names:
            self.note(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def note(self, name: str) -> None:
        """There is an engine of it: it has used tokens, or a gateway says that one was asked."""
        if name in self._names:
            self._names.move_to_end(name)
            return
        self._names[name] = None
        if len(self._names) > MAX_SERVED:
            self._names.popitem(last=False)

    def booked(self, name: str, num_tokens: int, price: Price | None = None) -> str:
        """The name to book a request on: empty where nothing says that there is such a model.

        A price that is for this name alone says so: there are no more of them than administrators
        made.
        """
        if num_tokens > 0 or (price is not None and price.models == name):
            self.note(name)
            return name
        return name if name in self._names else ""
