"""`penstock usage` and `penstock budgets status`: what was used, what it cost and what is left."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from penstock.admin_options import AsJson, DataDir, KeyFile, Url, admin_client
from penstock.api_client import ApiClient
from penstock.config import URL
from penstock.errors import UsageError
from penstock.fields import moment, money
from penstock.tables import print_json, print_table

OfKey = Annotated[str, typer.Option("--key", help="Of the key of this id.")]
OfUser = Annotated[str, typer.Option("--user", help="Of the user of this id.")]
OfTeam = Annotated[str, typer.Option("--team", help="Of the team of this id.")]
OfEndUser = Annotated[str, typer.Option("--end-user", help="Of this end user.")]
Own = Annotated[
    bool, typer.Option("--own", help="Of the key in PENSTOCK_API_KEY, which may read its own.")
]

_GROUP_FIELDS = {"key": "key_id", "user": "user_id", "team": "team_id"}
_COUNTS = {
    "requests": "num_requests",
    "prompt tokens": "prompt_tokens",
    "completion tokens": "completion_tokens",
    "cached tokens": "cached_tokens",
}
_SUMS = frozenset((*_COUNTS.values(), "reasoning_tokens", "cost_micros", "total_tokens"))
_TIME_FORMATS = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:%M"}
_COLUMNS = ("budget", "of", "spent", "left", "amount", "%", "a day", "projected", "days left")


def show_usage(
    key: OfKey = "",
    user: OfUser = "",
    team: OfTeam = "",
    end_user: OfEndUser = "",
    own: Own = False,
    model: Annotated[str, typer.Option("--model", help="Only this model.")] = "",
    by: Annotated[str, typer.Option("--by", help="A row a day, an hour, or total.")] = "day",
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            "--group-by",
            help="A row for each model, key, user, team, end_user or endpoint; repeat it [model].",
        ),
    ] = None,
    since: Annotated[
        int | None, typer.Option("--since", help="Unix seconds, full hours [30 days ago].")
    ] = None,
    until: Annotated[int | None, typer.Option("--until", help="Unix seconds [now].")] = None,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show what was used and what it cost; of everybody, unless somebody is named."""
    groups = group_by or ["model"]
    whom = _whom(key, user, team, end_user, own)
    query = {
        **whom,
        "of": "" if own or any(map(whom.get, ("key_id", "user_id", "team_id"))) else "all",
        "model": model,
        "by": by,
        "group_by": ",".join(groups),
        "since": since,
        "until": until,
    }
    with _client(own, url, key_file, data_dir) as client:
        found = _rows(client, query)
        if as_json:
            print_json(found)
            return
        with client.reading():
            print_table(*_usage_table(found, by, groups))


def show_budgets(
    key: OfKey = "",
    user: OfUser = "",
    team: OfTeam = "",
    end_user: OfEndUser = "",
    own: Own = False,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show how much of each budget is spent, how fast, and where that leads."""
    whom = {name: value for name, value in _whom(key, user, team, end_user, own).items() if value}
    with _client(own, url, key_file, data_dir) as client:
        status = client.request("GET", f"/v1/budget/status?{urlencode(whom)}")
        if as_json:
            print_json(status)
            return
        with client.reading():
            rows = [_budget(one) for one in status["data"]["budgets"]]
    print_table(_COLUMNS, rows)


def _usage_table(
    records: Sequence[Mapping[str, Any]], by: str, groups: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows; days and hours are those of UTC, as the server counts."""
    time_format = _TIME_FORMATS.get(by)
    times = [] if time_format is None else [f"{by} (UTC)"]
    headings = [*times, *(group.replace("_", " ") for group in groups), *_COUNTS, "cost"]
    names = [*(_GROUP_FIELDS.get(group, group) for group in groups), *_COUNTS.values()]
    rows = [
        [
            *([] if time_format is None else [moment(record["start_time"], time_format)]),
            *(record[name] for name in names),
            money(record["cost_micros"]),
        ]
        for record in records
    ]
    return headings, rows


def _whom(key: str, user: str, team: str, end_user: str, own: bool) -> dict[str, str]:
    if own and (key or user or team):
        raise UsageError("--own is about the key in PENSTOCK_API_KEY; name nobody else.")
    return {"key_id": key, "user_id": user, "team_id": team, "end_user": end_user}


def _client(own: bool, url: str, key_file: Any, data_dir: Any) -> ApiClient:
    if not own:
        return admin_client(url, key_file, data_dir)
    key = os.environ.get("PENSTOCK_API_KEY")
    if not key:
        raise UsageError("--own needs a key in PENSTOCK_API_KEY.")
    return ApiClient(url, key)


def _rows(client: ApiClient, query: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """All rows, page by page."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    num_read = 0
    asked = {name: value for name, value in query.items() if value not in (None, "")}
    while True:
        wanted = {**asked, "limit": 1000, "after": num_read}
        page = client.request("GET", f"/v1/usage?{urlencode(wanted)}")
        with client.reading():
            # Whoever is new among them moves those after it on, and the last one comes again.
            for row in page["data"]:
                rows[tuple(value for name, value in row.items() if name not in _SUMS)] = row
            num_read += len(page["data"])
            if not page["has_more"] or not page["data"]:
                return list(rows.values())


def _budget(one: Mapping[str, Any]) -> list[Any]:
    days = one["days_left"]
    return [
        one["budget_name"],
        f"{one['holder']} {one['holder_id']}".strip(),
        money(one["used"]),
        money(one["remaining"]),
        money(one["amount"]),
        one["usage_percentage"],
        money(one["daily_burn_micros"]),
        money(one["projected_micros"]),
        "" if days is None else round(days, 1),
    ]
