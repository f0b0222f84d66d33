"""OpenAI's organization API: what was used and what that cost, in buckets of time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError, RequestTooLargeError
from gateway.http.access.guard import GuardedRoute
from gateway.http.parts import parts_of
from gateway.http.query import check_query, query_number, query_text
from gateway.http.routes.administration.keys import actor_of, admin_json
from gateway.http.routes.organization.parts import BASE
from protocol.wire.messages import UsageBucket, UsageFound, UsageGroup, UsageRow

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

EMBEDDINGS: Final = "/v1/embeddings"
DECISIONS: Final = frozenset({"/v1/decisions", "/v1/systemone"})
MICROS: Final = 1_000_000
_PAGE: Final = 1000
_MAX_ROWS: Final = 50_000


class Width(NamedTuple):
    """A width of buckets, and how many of them a page has."""

    bucket: UsageBucket
    seconds: int
    default: int
    most: int


WIDTHS: Final = {
    "1m": Width("minute", 60, 60, 1440),
    "1h": Width("hour", 3600, 24, 168),
    "1d": Width("day", 86_400, 7, 31),
}
COST_WIDTHS: Final = {"1d": Width("day", 86_400, 7, 180)}
_GROUPS: Final[Mapping[str, UsageGroup]] = {
    "project_id": "team",
    "user_id": "user",
    "api_key_id": "key",
    "model": "model",
    "line_item": "model",
    "workspace_id": "team",
    "account_id": "user",
    "description": "model",
}
"""What they group by, in our words; a line of a bill is a model."""
_FILTERS: Final = {
    "project_ids[]": "project_id",
    "user_ids[]": "user_id",
    "api_key_ids[]": "api_key_id",
    "models[]": "model",
}
_COST_FILTERS: Final = {**_FILTERS, "line_items[]": "line_item"}
_FIELD_OF: Final = {"team": "team_id", "user": "user_id", "key": "key_id", "model": "model"}


class AskedUsage(NamedTuple):
    """What a query asks for.

    Attributes:
        start_s: Of the first bucket, Unix seconds.
        num_buckets: On this page.
        end_s: Where the whole time ends.
        groups: Their names of what results are apart by.
        filters: Their names, and the values that count.
    """

    width: Width
    start_s: int
    num_buckets: int
    end_s: int
    groups: tuple[str, ...]
    filters: Mapping[str, frozenset[str]]

    @property
    def next_s(self) -> int:
        """Where the next page begins."""
        return self.start_s + self.num_buckets * self.width.seconds


@router.get(f"{BASE}/usage/completions")
async def completions_usage(request: Request) -> Response:
    """Tokens and requests of everything that is neither embeddings nor decisions."""
    asked = _asked(request, WIDTHS, ("project_id", "user_id", "api_key_id", "model"))
    return await _page(request, asked, _completions, counts_as_completion)


@router.get(f"{BASE}/usage/embeddings")
async def embeddings_usage(request: Request) -> Response:
    """Tokens and requests of embeddings."""
    asked = _asked(request, WIDTHS, ("project_id", "user_id", "api_key_id", "model"))
    return await _page(request, asked, _embeddings, lambda endpoint: endpoint == EMBEDDINGS)


@router.get(f"{BASE}/usage/decisions")
async def decisions_usage(request: Request) -> Response:
    """Tokens and requests of decisions."""
    asked = _asked(request, WIDTHS, ("project_id", "user_id", "api_key_id", "model"))
    return await _page(request, asked, _decisions, lambda endpoint: endpoint in DECISIONS)


@router.get(f"{BASE}/costs")
async def costs(request: Request) -> Response:
    """What was used, by the prices of its time."""
    groups = ("project_id", "user_id", "api_key_id", "line_item")
    asked = _asked(request, COST_WIDTHS, groups, _COST_FILTERS)
    return await _page(request, asked, _costs, lambda endpoint: True)


def _asked(
    request: Request,
    widths: Mapping[str, Width],
    groups: tuple[str, ...],
    known: Mapping[str, str] = _FILTERS,
) -> AskedUsage:
    check_query(
        request,
        *("start_time", "end_time", "bucket_width", "limit", "page", "group_by[]"),
        *known,
    )
    name = query_text(request, "bucket_width", one_of=tuple(widths)) or "1d"
    width = widths[name]
    start, end = query_number(request, "start_time"), query_number(request, "end_time")
    if start is None:
        raise InvalidRequestError("`start_time` is needed, in Unix seconds.", param="start_time")
    now_s = int(parts_of(request).wall_clock())
    end_s = now_s + 1 if end is None else min(end, now_s + 1)
    limit = buckets_of_page(request, width)
    wanted = groups_of(request, groups)
    begin = query_number(request, "page")
    filters = filters_of(request, known)
    first_s = start if begin is None else max(start, begin)
    return asked_usage(width, first_s, end_s, limit, wanted, filters)


def filters_of(request: Request, known: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The values that count, by what they are of; an alias of a model is its model.

    Args:
        request: Whose query has them.
        known: By the names of the query what they are of.
    """
    served = parts_of(request).names.served
    return {
        of: frozenset(map(served, values) if _GROUPS[of] == "model" else values)
        for query, of in known.items()
        if (values := request.query_params.getlist(query))
    }


def buckets_of_page(request: Request, width: Width) -> int | None:
    """`limit`; None where it isn't there.

    Raises:
        InvalidRequestError: There may not be so many.
    """
    limit = query_number(request, "limit")
    if limit is not None and not 1 <= limit <= width.most:
        raise InvalidRequestError(f"`limit` must be from 1 to {width.most}.", param="limit")
    return limit


def groups_of(request: Request, known: Sequence[str]) -> tuple[str, ...]:
    """`group_by[]`.

    Raises:
        InvalidRequestError: One of them isn't known.
    """
    wanted = tuple(dict.fromkeys(request.query_params.getlist("group_by[]")))
    for group in wanted:
        if group not in known:
            raise InvalidRequestError(f"`group_by` takes {', '.join(known)}.", param="group_by")
    return wanted


def asked_usage(
    width: Width,
    first_s: int,
    end_s: int,
    limit: int | None,
    groups: tuple[str, ...],
    filters: Mapping[str, frozenset[str]],
) -> AskedUsage:
    """A page of buckets, from the one that a moment is in.

    Args:
        width: Of the buckets.
        first_s: In the first of them, Unix seconds.
        end_s: Where the whole time ends.
        limit: Buckets at most; None where the client says nothing.
        groups: See `AskedUsage`.
        filters: Likewise.
    """
    start_s = first_s // width.seconds * width.seconds
    num_left = max(0, -(-(end_s - start_s) // width.seconds))
    num_buckets = min(num_left, width.default if limit is None else limit)
    return AskedUsage(width, start_s, num_buckets, end_s, groups, filters)


async def _page(request: Request, asked: AskedUsage, render: Any, counts: Any) -> Response:
    rows = await usage_rows(request, asked)
    data = [
        {
            "object": "bucket",
            "start_time": begins_at,
            "end_time": begins_at + asked.width.seconds,
            "results": [
                render(found) | groups_told(asked.groups, names) for names, found in groups.items()
            ],
        }
        for begins_at, groups in buckets_of(asked, rows, counts).items()
    ]
    has_more = asked.next_s < asked.end_s
    next_page = str(asked.next_s) if has_more else None
    return admin_json(
        {"object": "page", "data": data, "has_more": has_more, "next_page": next_page}
    )


def groups_told(groups: Sequence[str], names: Sequence[str]) -> dict[str, str | None]:
    """What a result is of; null where nothing of the kind was, such as a key of no team."""
    return {group: name or None for group, name in zip(groups, names, strict=True)}


async def usage_rows(request: Request, asked: AskedUsage) -> list[UsageRow]:
    """Everything of the time of a page, of all endpoints.

    Raises:
        RequestTooLargeError: That would be too much.
    """
    ours = {_GROUPS[name] for name in (*asked.groups, *asked.filters)}
    rows: dict[tuple[int | str, ...], UsageRow] = {}
    num_read = 0
    while asked.num_buckets:
        question = bridge.read_usage(
            request.state.request_id,
            actor_of(request),
            is_of_all=True,
            since_s=asked.start_s,
            until_s=asked.next_s,
            bucket=asked.width.bucket,
            group_by=cast("tuple[UsageGroup, ...]", (*sorted(ours), "endpoint")),
            skip=num_read,
            limit=_PAGE,
        )
        found = await parts_of(request).auth.administer(question, UsageFound)
        # Whoever is new among them moves those after it on, and the last one comes again.
        rows.update((_place(row), row) for row in found.rows)
        num_read += len(found.rows)
        if not found.has_more:
            break
        if num_read >= _MAX_ROWS:
            raise RequestTooLargeError(
                f"Over {_MAX_ROWS} rows would have to be read; ask for less time, or fewer groups."
            )
    return list(rows.values())


def _place(row: UsageRow) -> tuple[int | str, ...]:
    """Of what a row is, which no other one is."""
    return (row.begins_at, row.endpoint, *(getattr(row, name) for name in _FIELD_OF.values()))


def buckets_of(
    asked: AskedUsage, rows: Iterable[UsageRow], counts: Callable[[str], bool]
) -> dict[int, dict[tuple[str, ...], list[UsageRow]]]:
    """The rows that count, by the begin of their bucket and by their groups.

    Args:
        asked: What is wanted; each of its buckets is there.
        rows: From `usage_rows`.
        counts: Whether an endpoint does.
    """
    buckets: dict[int, list[UsageRow]] = {
        asked.start_s + number * asked.width.seconds: [] for number in range(asked.num_buckets)
    }
    for row in rows:
        bucket = buckets.get(row.begins_at)
        if bucket is not None and counts(row.endpoint) and fits(row, asked.filters):
            bucket.append(row)
    return {at: grouped(found, asked.groups) for at, found in buckets.items()}


def fits(row: UsageRow, filters: Mapping[str, frozenset[str]]) -> bool:
    """Whether a row is of what is wanted."""
    return all(_value(row, name) in values for name, values in filters.items())


def _value(row: UsageRow, name: str) -> str:
    """Of a row, what they call by a name."""
    text: str = getattr(row, _FIELD_OF[_GROUPS[name]])
    return text


def grouped(
    rows: Iterable[UsageRow], groups: tuple[str, ...]
) -> dict[tuple[str, ...], list[UsageRow]]:
    """The rows by what they say of each group."""
    found: dict[tuple[str, ...], list[UsageRow]] = {}
    for row in rows:
        found.setdefault(tuple(_value(row, name) for name in groups), []).append(row)
    return found


def _completions(rows: list[UsageRow]) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": sum(row.prompt_tokens for row in rows),
        "output_tokens": sum(row.completion_tokens for row in rows),
        "input_cached_tokens": sum(row.cached_tokens for row in rows),
        "num_model_requests": sum(row.num_requests for row in rows),
    }


def counts_as_completion(endpoint: str) -> bool:
    """Whether what an endpoint uses is told as that of completions, or messages."""
    return endpoint != EMBEDDINGS and endpoint not in DECISIONS


def _decisions(rows: list[UsageRow]) -> dict[str, Any]:
    return _completions(rows) | {"object": "organization.usage.decisions.result"}


def _embeddings(rows: list[UsageRow]) -> dict[str, Any]:
    return {
        "object": "organization.usage.embeddings.result",
        "input_tokens": sum(row.prompt_tokens for row in rows),
        "num_model_requests": sum(row.num_requests for row in rows),
    }


def _costs(rows: list[UsageRow]) -> dict[str, Any]:
    micros = sum(row.cost_micros for row in rows)
    return {
        "object": "organization.costs.result",
        "amount": {"value": micros / MICROS, "currency": "usd"},
    }
