"""Items that a compaction carries, for clients that send nothing any more of what was before it.

OpenAI's guide lets them drop all items before the last compaction. What it doesn't sum up, as the
question that is answered, would be lost then.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.errors import InvalidRequestError
from gateway.http.openresponses.compaction import SYSTEM
from gateway.http.openresponses.sealing import not_ours, summary_of, unsealed
from gateway.http.openresponses.stored_items import kind_of
from gateway.http.schemas.base.body import has_too_many_parts
from gateway.http.schemas.base.ranges import MAX_MESSAGES
from gateway.json_numbers import loads

Item = dict[str, Any]


def with_carried(items: list[Item], num_before: int) -> tuple[list[Item], list[int]]:
    """Items with those that compactions carry and that aren't sent any more.

    The messages of the system and the developer are those that stand nowhere else, and come first.
    All other items are taken where no message of the user is before the compaction.

    Args:
        items: Whole.
        num_before: Of them, so many come from the store.

    Returns:
        The items, and of each the place among the request's own, negative for one of the store; one
        that is carried has the place of its compaction.

    Raises:
        InvalidRequestError: Naming a compaction that wasn't made here, or an item is nested too
            deep.
    """
    if not any(kind_of(item) == "compaction" for item in items):
        return items, [index - num_before for index in range(len(items))]
    known = {_gist(item) for item in items if _is_said(item, SYSTEM)}
    first: list[tuple[Item, int]] = []
    found: list[tuple[Item, int]] = []
    has_question = False
    for index, item in enumerate(items):
        group, own = [item], index - num_before
        if kind_of(item) == "compaction":
            for one in _carried(item, index, own):
                if _is_said(one, SYSTEM) and _gist(one) not in known:
                    known.add(_gist(one))
                    first.append((one, own))
                elif not has_question and _gist(one) not in known:
                    group.append(one)
        for one in group:
            if not has_question:
                known.add(_gist(one))
                has_question = _is_said(one, ("user",))
            found.append((one, own))
    whole = [*first, *found]
    return [one for one, _ in whole], [own for _, own in whole]


def _carried(item: Item, index: int, own: int) -> Iterator[Item]:
    path = f"input[{own}]" if own >= 0 else f"context[{index}]"
    path = f"{path}.encrypted_content"
    _, text = summary_of(unsealed(item.get("encrypted_content"), path))
    if has_too_many_parts(text.encode()):
        raise not_ours(path)
    try:
        carried = loads(text)
    except ValueError:
        raise not_ours(path) from None
    if not isinstance(carried, list) or len(carried) > MAX_MESSAGES:
        raise not_ours(path)
    for one in carried:
        if not isinstance(one, dict) or kind_of(one) == "compaction":
            raise not_ours(path)
        yield one


def _is_said(item: Item, roles: tuple[str, ...]) -> bool:
    return kind_of(item) == "message" and item.get("role") in roles


def _gist(item: Item) -> bytes:
    """What is the same of an item however it came here.

    Raises:
        InvalidRequestError: It is nested too deep.
    """
    told = {name: value for name, value in item.items() if name not in ("id", "status")}
    try:
        return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise InvalidRequestError("`input` is nested too deep.", param="input") from error
