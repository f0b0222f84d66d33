"""All limits in memory, found by whom they hold for."""

from collections.abc import Callable, Iterable, Iterator

from auth_worker.principals.limit_rules import Holder, Limit


class LimitDirectory:
    """The limits of this deployment; administration changes it once a change is durable.

    Attributes:
        version: Grows with each change, so that whoever derives something from limits sees it.
        on_removed: Told the id of each limit that goes.
    """

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self.version = 0
        self.on_removed: Callable[[str], None] = lambda _: None
        self._by_id: dict[str, Limit] = {}
        self._by_holder: dict[tuple[Holder, str], dict[str, Limit]] = {}
        for limit in limits:
            self.put(limit)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self._by_id.values())

    def get(self, limit_id: str) -> Limit | None:
        """The limit of an id."""
        return self._by_id.get(limit_id)

    def of(self, holder: Holder, holder_id: str) -> tuple[Limit, ...]:
        """What holds for a holder; for `end_user` the templates of a key or team."""
        return tuple(self._by_holder.get((holder, holder_id), {}).values())

    def put(self, limit: Limit) -> None:
        """Add a limit, or replace the one of its id."""
        self._remove(limit.limit_id)
        self._by_id[limit.limit_id] = limit
        holder = (limit.holder, limit.holder_id)
        self._by_holder.setdefault(holder, {})[limit.limit_id] = limit
        self.version += 1

    def remove(self, limit_id: str) -> None:
        """Forget a limit; one that isn't there is no error."""
        self._remove(limit_id)
        self.version += 1
        self.on_removed(limit_id)

    def _remove(self, limit_id: str) -> None:
        limit = self._by_id.pop(limit_id, None)
        if limit is None:
            return
        holder = (limit.holder, limit.holder_id)
        of_holder = self._by_holder[holder]
        del of_holder[limit_id]
        if not of_holder:
            del self._by_holder[holder]
