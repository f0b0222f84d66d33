"""Slices of hard budgets and quotas: committed before anything is granted from them.

They are replenished in the background while there is room left, so that decisions wait for no disk;
only the first request of a window, or a sudden burst, waits for one commit.
"""

from collections.abc import Callable, Iterable

from auth_worker.decisions.sliced_meters import SlicedMeter, next_slice, on_granted
from auth_worker.errors import AuthError
from auth_worker.records.limit_usage import SaveCounter
from auth_worker.records.operations import Operation, Result

Commit = Callable[[Operation, Callable[[Result], None]], None]
"""Makes an operation durable and calls back with its result, in the I/O thread."""


class Postponed:
    """A decision that can be made once a slice is durable."""

    __slots__ = ("_callbacks", "_is_done", "_is_durable")

    def __init__(self) -> None:
        self._callbacks: list[Callable[[bool], None]] = []
        self._is_done = False
        self._is_durable = False

    def then(self, callback: Callable[[bool], None]) -> None:
        """Call somebody when it can be decided again; with False when it can't be, ever."""
        if self._is_done:
            callback(self._is_durable)
        else:
            self._callbacks.append(callback)

    def done(self, *, is_durable: bool) -> None:
        """The commit is over."""
        self._is_done, self._is_durable = True, is_durable
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(is_durable)


class Slices:
    """Asks for slices, each meter one at a time.

    Args:
        commit: See `Commit`.
    """

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._pending: dict[SlicedMeter, Postponed] = {}

    def ask(self, meter: SlicedMeter, need: int) -> Postponed | None:
        """Make room for a request of that need, and for others like it.

        Returns:
            None when it is there already.
        """
        pending = self._pending.get(meter)
        if pending is not None:
            return pending
        granted = next_slice(meter, need)
        if granted <= meter.granted:
            return None
        if meter.is_gone:
            # Only leases of before go on in it: its row was dropped and must not come back.
            on_granted(meter, granted, need)
            return None
        pending = self._pending[meter] = Postponed()
        meter.asked = granted
        row = meter.row._replace(granted=granted)
        self._commit(SaveCounter(row), lambda result: self._on_done(meter, granted, need, result))
        return self._pending.get(meter)

    def replenish(self, meters: Iterable[SlicedMeter], need: int) -> None:
        """Ask for what will be needed soon; nobody waits for it."""
        for meter in meters:
            self.ask(meter, need)

    def _on_done(self, meter: SlicedMeter, granted: int, need: int, result: Result) -> None:
        pending = self._pending.pop(meter)
        if isinstance(result, AuthError):
            meter.asked = 0
            pending.done(is_durable=False)
        else:
            on_granted(meter, granted, need)
            pending.done(is_durable=True)
