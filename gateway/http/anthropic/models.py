"""The list of models as Anthropic's clients read it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from gateway.errors import InvalidRequestError
from protocol.wire.messages import EngineOffer

VERSION_HEADER: Final = "anthropic-version"
"""Sent by Anthropic's clients with every request; any version is taken."""
STAGES: Final = ("active", "deprecated", "retired")
_DEFAULT_PAGE: Final = 20
_MAX_PAGE: Final = 1000
_MAX_DIGITS: Final = 4


def model_info(name: str, offer: EngineOffer) -> dict[str, Any]:
    """One model."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(offer.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": offer.max_model_len,
        "max_tokens": offer.max_model_len,
    }


def model_page(
    offers: Mapping[str, EngineOffer], query: Mapping[str, str], stages: Sequence[str] = ()
) -> dict[str, Any]:
    """A page of models, by name.

    Args:
        offers: All of them.
        query: `limit`, and `after_id` or `before_id`.
        stages: Of their life, which are wanted; every model here is active. None for all.

    Raises:
        InvalidRequestError: The page can't be made.
    """
    if not set(stages) <= set(STAGES):
        raise InvalidRequestError(f"`lifecycle` must be of {', '.join(STAGES)}.", param="lifecycle")
    names = sorted(offers) if "active" in (stages or STAGES) else []
    limit = _limit(query.get("limit"))
    after, before = query.get("after_id"), query.get("before_id")
    if after and before:
        raise InvalidRequestError("`after_id` contradicts `before_id`.", param="after_id")
    if before:
        earlier = names[: _place(names, before, "before_id")]
        shown = earlier[-limit:]
        has_more = len(earlier) > limit
    else:
        later = names[_place(names, after, "after_id") + 1 :] if after else names
        shown = later[:limit]
        has_more = len(later) > limit
    return {
        "data": [model_info(name, offers[name]) for name in shown],
        "has_more": has_more,
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_PAGE
    # No int() of a client's text of any length.
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    if not is_number or not 1 <= int(text) <= _MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {_MAX_PAGE}.", param="limit")
    return int(text)


def _place(names: Sequence[str], name: str, param: str) -> int:
    if name not in names:
        raise InvalidRequestError(f"`{param}`: there is no model `{name[:100]}`.", param=param)
    return names.index(name)
