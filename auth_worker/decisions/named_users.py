"""How many end users are counted, and whose place a new one takes; pure.

Clients of a trusted key choose the names, so their number is bounded: each costs about a kilobyte
for each template that it is counted in.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from auth_worker.decisions.limit_refusals import Refusal
from auth_worker.principals.limit_rules import Limit
from protocol.errors import ErrorCode

MAX_NAMES_A_TEMPLATE: Final = 10_000
MAX_NAMES_A_HOLDER: Final = 20_000
"""Of one key or team, in all its templates together."""
MAX_NAMES: Final = 100_000
LOOKED_AT: Final = 32
"""Names that one new name looks at for one that is idle."""
RETRY_AFTER_S: Final = 60.0


class NamedUsers:
    """The end users that each template counts, those that came first in front.

    Args:
        let_go: Forgets what a limit counts for an end user, if that changes nothing; says whether.
        max_a_template: Names that one template counts.
        max_a_holder: Names that all templates of one key or team count.
        max_names: Names that all templates count.
    """

    def __init__(
        self,
        let_go: Callable[[str, str], bool],
        *,
        max_a_template: int = MAX_NAMES_A_TEMPLATE,
        max_a_holder: int = MAX_NAMES_A_HOLDER,
        max_names: int = MAX_NAMES,
    ) -> None:
        self._let_go = let_go
        self._max_a_template = max_a_template
        self._max_a_holder = max_a_holder
        self._max_names = max_names
        # The names of each template with the holder that they count for.
        self._names: OrderedDict[str, OrderedDict[str, str]] = OrderedDict()
        self._turn: tuple[str, int] = ("", 0)  # a template, and how many of its names are to come
        self._of_holder: dict[str, int] = {}
        self._num_names = 0

    def __len__(self) -> int:
        return self._num_names

    def take_turn(self, at_most: int) -> list[tuple[str, str]]:
        """The next ids of templates and names that they count, of all of them in turn.

        What is called again and again comes to each of them, and never looks at more than it gives.
        """
        some: list[tuple[str, str]] = []
        limit_id, num_left = self._turn
        while len(some) < min(at_most, self._num_names):
            names = self._names.get(limit_id)
            if not num_left or names is None:
                limit_id, names = next(iter(self._names.items()))
                self._names.move_to_end(limit_id)
                num_left = len(names)
            end_user = next(iter(names))
            names.move_to_end(end_user)
            some.append((limit_id, end_user))
            num_left -= 1
        self._turn = limit_id, num_left
        return some

    def admit(self, limit: Limit, end_user: str) -> Refusal | None:
        """Whether a name may be counted by a template; why not, when it may not.

        A few names that came first are looked at; those for which nothing counts make room.
        """
        names = self._names.get(limit.limit_id)
        if names is not None and end_user in names:
            return None
        if self._has_room(limit, names):
            return None
        for _ in range(min(LOOKED_AT, 0 if names is None else len(names))):
            assert names is not None  # noqa: S101 - it is not empty
            oldest = next(iter(names))
            if self._let_go(limit.limit_id, oldest):
                if self._has_room(limit, names):
                    return None
            else:
                names.move_to_end(oldest)
        return _refusal(limit, self._bound_of(limit, names))

    def add(self, limit: Limit, end_user: str) -> None:
        """A name is counted by a template from now on; once more changes nothing."""
        if not end_user:
            return
        names = self._names.setdefault(limit.limit_id, OrderedDict())
        if end_user not in names:
            names[end_user] = limit.holder_id
            self._num_names += 1
            self._of_holder[limit.holder_id] = self._of_holder.get(limit.holder_id, 0) + 1

    def remove(self, limit_id: str, end_user: str) -> None:
        """A name isn't counted by a template any more; one that wasn't is no error."""
        names = self._names.get(limit_id)
        holder_id = None if names is None else names.pop(end_user, None)
        if names is None or holder_id is None:
            return
        if not names:
            del self._names[limit_id]
        self._num_names -= 1
        left = self._of_holder.pop(holder_id) - 1
        if left:
            self._of_holder[holder_id] = left

    def _has_room(self, limit: Limit, names: OrderedDict[str, str] | None) -> bool:
        return self._bound_of(limit, names) is None

    def _bound_of(self, limit: Limit, names: OrderedDict[str, str] | None) -> int | None:
        """The bound that is reached; None when none is."""
        if names is not None and len(names) >= self._max_a_template:
            return self._max_a_template
        if self._of_holder.get(limit.holder_id, 0) >= self._max_a_holder:
            return self._max_a_holder
        return self._max_names if self._num_names >= self._max_names else None


def _refusal(limit: Limit, bound: int | None) -> Refusal:
    return Refusal(
        ErrorCode.RATE_LIMIT_EXCEEDED,
        f"The limit '{limit.name}' counts each end user, and {bound} of them have used something"
        " that still counts, which is as many as are kept apart. Name no new ones for now, or ask"
        " an administrator to split the key or to shorten the limit's window.",
        retry_after_s=RETRY_AFTER_S,
    )
