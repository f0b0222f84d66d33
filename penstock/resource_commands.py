"""`penstock users|teams|limits|budgets|prices|webhooks …`: all by the same few commands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import quote

import typer

from penstock.admin_options import AsJson, DataDir, KeyFile, Url, admin_client
from penstock.api_client import all_pages
from penstock.config import URL
from penstock.errors import UsageError
from penstock.fields import (
    Clear,
    Field,
    body_of,
    changes_of,
    micros,
    moment,
    money,
    pairs,
    secret_of,
    with_fields,
)
from penstock.tables import print_change, print_json, print_record, print_table
from penstock.terminal import visible_line

_TAGS: Final = Field("tags", "--tag", list[str], "A tag to find it by; repeat it.")
_METADATA: Final = Field(
    "metadata", "--metadata", list[str], "NAME=TEXT for your own use; repeat it.", pairs
)
_NAME: Final = Field("name", "--name", str, "Another name.")

_HOLDERS: Final = (
    Field("key", "--key", str, "Of the key of this id."),
    Field("user", "--user", str, "Of the user of this id."),
    Field("team", "--team", str, "Of the team of this id."),
    Field("house", "--house", bool, "Of everybody together."),
    Field("end_user", "--end-users-of", str, "Of each end user of the key or team of this id."),
)
_WINDOW: Final = (
    Field(
        "window",
        "--window",
        str,
        "What it counts in: minute, hour, day (these slide), calendar_day, calendar_week, "
        "calendar_month, calendar_year, custom or total.",
    ),
    Field("time_zone", "--time-zone", str, "Of calendar windows, such as Europe/Berlin."),
    Field("starts_at", "--starts-at", int, "Of custom windows, Unix seconds."),
    Field("length_s", "--length-s", int, "Of custom windows, seconds."),
    Field("models", "--model", list[str], "Count only models like this glob; repeat it."),
    Field("endpoints", "--endpoint", list[str], "Count only routes like this glob; repeat it."),
    Field("is_hard", "--hard/--soft", bool, "Refuse requests beyond it, or only warn."),
    Field("thresholds", "--warn-at", list[int], "Warn from this percentage on; repeat it."),
    Field("rolls_over", "--roll-over/--no-roll-over", bool, "Add what is left to the next window."),
    Field("auto_renews", "--renew/--once", bool, "Start over when a window ends, or end with it."),
)
_LIMIT_AMOUNT: Final = Field("amount", "--amount", int, "How much; 0 lets nothing through.")
_BUDGET_AMOUNT: Final = Field(
    "amount", "--amount", str, "How much money, such as 20 or 0.50.", micros
)
_PRICE: Final = (
    Field("prompt", "--prompt", str, "A million prompt tokens.", micros),
    Field("completion", "--completion", str, "A million completion tokens.", micros),
    Field("cached_prompt", "--cached-prompt", str, "A million cached ones [as prompt].", micros),
    Field("reasoning", "--reasoning", str, "A million of reasoning [as completion].", micros),
    Field("embedding", "--embedding", str, "A million embedded ones [as prompt].", micros),
    Field("request", "--request", str, "A request, whatever its tokens [0].", micros),
    Field("valid_from", "--valid-from", int, "From when on, Unix seconds [now]."),
)


class Kind(NamedTuple):
    """What the commands on one kind of resource are made of.

    Attributes:
        word: As typed, `users`.
        of_create: Further fields that only `create` has.
        columns: Of the list: titles, and how a record fills them.
        filters: What a list may be asked for besides: name, option, help.
        name_is: What `create` takes as its argument: the field and its help.
        status_help: What `suspend` and `reactivate` do; None where there is no such thing.
    """

    word: str
    path: str
    help_text: str
    fields: Sequence[Field]
    columns: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    filters: Sequence[Field] = ()
    of_create: Sequence[Field] = ()
    name_is: tuple[str, str] = ("name", "What it is called.")
    status_help: tuple[str, str] | None = None

    def of_one(self, resource_id: str, action: str = "") -> str:
        """The path of one of them."""
        return f"{self.path}/{quote(resource_id, safe='')}{action}"

    def print_one(self, record: Mapping[str, Any], as_json: bool) -> None:
        """One of them, with money as money."""
        amounts = {field.name for field in self.fields if field.sent is micros}
        if "amount" in amounts:
            amounts.add("raised_by")
        print_record(record, as_json, amounts=amounts)


def _column(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: record[name]


def _money_column(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: money(record[name])


def _holder_column(record: Mapping[str, Any]) -> str:
    return f"{record['holder']} {record['holder_id']}".strip()


_LIMIT_COLUMNS: Final = {
    "id": _column("id"),
    "name": _column("name"),
    "of": _holder_column,
    "measure": _column("measure"),
    "amount": _column("amount"),
    "window": _column("window"),
    "models": _column("models"),
    "hard": _column("is_hard"),
}
_LIMIT_FILTERS: Final = (
    Field("holder", "--holder", str, "Only of a key, user, team, end_user or house."),
    Field("holder_id", "--of", str, "Only of the key, user or team of this id."),
)
_OF_KEYS: Final = ("End its keys for the time being, at once.", "Let its keys work again.")
_STATUS_FILTERS: Final = (
    Field("status", "--status", str, "Only active or suspended ones."),
    Field("tag", "--tag", str, "Only those with this tag."),
)

USERS: Final = Kind(
    "users",
    "/v1/admin/users",
    "Users and service accounts of a running server.",
    (
        _NAME,
        Field("email", "--email", str, "An address, for your own use."),
        Field("role", "--role", str, "admin, service, user or readonly: its keys do no more."),
        Field("kind", "--kind", str, "person or service_account."),
        _TAGS,
        _METADATA,
    ),
    {name: _column(name) for name in ("id", "name", "email", "role", "kind", "status", "team_ids")},
    (*_STATUS_FILTERS, Field("team_id", "--team", str, "Only members of this team.")),
    status_help=_OF_KEYS,
)
TEAMS: Final = Kind(
    "teams",
    "/v1/admin/teams",
    "Teams of a running server, and who is in them.",
    (
        _NAME,
        Field(
            "tenant_is_shared",
            "--shared-tenant/--separate-tenants",
            bool,
            "Whether its keys share cached prompts and one fair share.",
        ),
        Field("allowed_models", "--model", list[str], "Only models like this glob; repeat it."),
        _TAGS,
        _METADATA,
    ),
    {
        name: _column(name)
        for name in ("id", "name", "status", "tenant_is_shared", "allowed_models", "tags")
    },
    (*_STATUS_FILTERS, Field("user_id", "--user", str, "Only teams of this user.")),
    status_help=_OF_KEYS,
)
LIMITS: Final = Kind(
    "limits",
    "/v1/admin/limits",
    "Limits of requests, tokens and parallel requests.",
    (_NAME, _LIMIT_AMOUNT, *_WINDOW),
    _LIMIT_COLUMNS,
    _LIMIT_FILTERS,
    (
        *_HOLDERS,
        Field(
            "measure",
            "--measure",
            str,
            "requests, tokens, prompt_tokens, completion_tokens or parallel.",
        ),
    ),
)
BUDGETS: Final = Kind(
    "budgets",
    "/v1/admin/budgets",
    "Budgets of money, for a key, a user, a team, end users or everybody.",
    (_NAME, _BUDGET_AMOUNT, *_WINDOW),
    {**_LIMIT_COLUMNS, "amount": _money_column("amount"), "raised by": _money_column("raised_by")},
    _LIMIT_FILTERS,
    _HOLDERS,
)
WEBHOOKS: Final = Kind(
    "webhooks",
    "/v1/admin/webhooks",
    "Whom a running server tells of what its audit log takes up.",
    (
        _NAME,
        Field("url", "--url-to", str, "Where events are sent, https://…", parameter="target_url"),
        Field("events", "--event", list[str], "Actions like this glob (budget_*); repeat it."),
        Field(
            "secret",
            "--secret-file",
            str,
            "A file with a secret of your own (whsec_…), which signs from the next attempt on.",
            secret_of,
            parameter="secret_file",
        ),
    ),
    {
        name: _column(name)
        for name in ("id", "name", "url", "events", "status", "num_failed", "last_error")
    },
    (Field("status", "--status", str, "Only active or suspended ones."),),
    status_help=(
        "Send nothing for the time being; what happens meanwhile is sent later.",
        "Send again, and first what happened meanwhile.",
    ),
)
PRICES: Final = Kind(
    "prices",
    "/v1/admin/prices",
    "What tokens and requests cost, by model.",
    (Field("models", "--models", str, "Another model or glob."), *_PRICE),
    {
        **{name: _column(name) for name in ("id", "models", "version")},
        **{field.name: _money_column(field.name) for field in _PRICE[:-1]},
        "valid_from": lambda record: moment(record["valid_from"]),
        "ended": lambda record: "yes" if record.get("is_ended") else "",
    },
    name_is=("models", "A model's name or a glob; '*' for all that have no price of their own."),
)


def commands_of(kind: Kind) -> typer.Typer:
    """`create`, `list`, `show`, `update` and `delete`, and `suspend` and `reactivate` if it can."""
    app = typer.Typer(help=kind.help_text, no_args_is_help=True, rich_markup_mode=None)
    field_of_name, help_of_name = kind.name_is
    settable = [field for field in kind.fields if field.name != field_of_name]
    resource_id = Annotated[str, typer.Argument(metavar="ID", help=f"From `{kind.word} list`.")]

    @with_fields([*kind.of_create, *settable])
    def create(
        name: Annotated[str, typer.Argument(help=help_of_name)],
        as_json: AsJson = False,
        url: Url = URL.default,
        key_file: KeyFile = None,
        data_dir: DataDir = None,
        **given: Any,
    ) -> None:
        body = {field_of_name: name, **body_of(settable, given), **_once(kind, given)}
        with admin_client(url, key_file, data_dir) as client:
            made = client.request("POST", kind.path, body)
            with client.reading():
                if as_json:
                    print_json(made)
                else:
                    typer.echo(visible_line(str(made["id"])))
                    if "secret" in made:  # shown this once
                        typer.echo(visible_line(str(made["secret"])))

    @with_fields(kind.filters)
    def list_all(
        as_json: AsJson = False,
        url: Url = URL.default,
        key_file: KeyFile = None,
        data_dir: DataDir = None,
        **given: Any,
    ) -> None:
        with admin_client(url, key_file, data_dir) as client:
            found = list(all_pages(client, kind.path, given))
            if as_json:
                print_json(found)
                return
            with client.reading():
                rows = [[fill(record) for fill in kind.columns.values()] for record in found]
        print_table([title.replace("_", " ") for title in kind.columns], rows)

    def show(
        one: resource_id,
        as_json: AsJson = False,
        url: Url = URL.default,
        key_file: KeyFile = None,
        data_dir: DataDir = None,
    ) -> None:
        with admin_client(url, key_file, data_dir) as client:
            kind.print_one(client.request("GET", kind.of_one(one)), as_json)

    @with_fields(kind.fields)
    def update(
        one: resource_id,
        clear: Clear = None,
        as_json: AsJson = False,
        url: Url = URL.default,
        key_file: KeyFile = None,
        data_dir: DataDir = None,
        **given: Any,
    ) -> None:
        body = changes_of(kind.fields, given, clear, f"penstock {kind.word} update --help")
        with admin_client(url, key_file, data_dir) as client:
            kind.print_one(client.request("PATCH", kind.of_one(one), body), as_json)

    def delete(
        one: resource_id,
        as_json: AsJson = False,
        url: Url = URL.default,
        key_file: KeyFile = None,
        data_dir: DataDir = None,
    ) -> None:
        with admin_client(url, key_file, data_dir) as client:
            print_change(client.request("DELETE", kind.of_one(one)), as_json, f"{one} is deleted.")

    app.command("create", help="Make one and print its id.")(create)
    app.command("list", help="List them.")(list_all)
    app.command("show", help="Show everything about one.")(show)
    app.command("update", help="Change what is said about one.")(update)
    app.command("delete", help="Delete one.")(delete)
    if kind.status_help is not None:
        of_suspend, of_reactivate = kind.status_help
        app.command("suspend", help=of_suspend)(_to(kind, "suspend", "suspended"))
        app.command("reactivate", help=of_reactivate)(_to(kind, "reactivate", "active"))
    return app


def _to(kind: Kind, action: str, state: str) -> Callable[..., None]:
    """A command that changes the status of one of a kind."""

    def change_status(
        one: Annotated[str, typer.Argument(metavar="ID", help=f"From `{kind.word} list`.")],
        as_json: AsJson = False,
        url: Url = URL.default,
        key_file: KeyFile = None,
        data_dir: DataDir = None,
    ) -> None:
        with admin_client(url, key_file, data_dir) as client:
            changed = client.request("POST", kind.of_one(one, f"/{action}"))
            print_change(changed, as_json, f"{one} is {state}.")

    return change_status


def _once(kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """What only `create` says: whose a limit is, and what it counts."""
    if not kind.of_create:
        return {}
    named = {
        field.name: given[field.name] for field in _HOLDERS if given.get(field.name) is not None
    }
    if len(named) != 1:
        raise UsageError(
            "Say whose it is, by one of --key, --user, --team, --end-users-of, --house."
        )
    ((holder, holder_id),) = named.items()
    body = {"holder": holder} | ({} if holder == "house" else {"holder_id": holder_id})
    if given.get("measure") is not None:
        body["measure"] = given["measure"]
    return body


users = commands_of(USERS)
teams = commands_of(TEAMS)
limits = commands_of(LIMITS)
budgets = commands_of(BUDGETS)
prices = commands_of(PRICES)
webhooks = commands_of(WEBHOOKS)

TeamId = Annotated[str, typer.Argument(metavar="TEAM", help="From `teams list`.")]
UserId = Annotated[str, typer.Argument(metavar="USER", help="From `users list`.")]


@teams.command("add")
def add_member(
    team: TeamId,
    user: UserId,
    role: Annotated[
        str, typer.Option("--role", help="member, or owner: may read what the team uses.")
    ] = "member",
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Make a user a member of a team."""
    with admin_client(url, key_file, data_dir) as client:
        changed = client.request("PUT", _member(team, user), {"role": role})
        print_change(changed, as_json, f"{user} is {role} of {team}.")


@teams.command("remove")
def remove_member(
    team: TeamId,
    user: UserId,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """End a membership; the user's keys for the team open nothing any more."""
    with admin_client(url, key_file, data_dir) as client:
        changed = client.request("DELETE", _member(team, user))
        print_change(changed, as_json, f"{user} is no member of {team}.")


@budgets.command("raise")
def raise_budget(
    budget: Annotated[str, typer.Argument(metavar="ID", help="From `budgets list`.")],
    by: Annotated[str, typer.Option("--by", help="How much money more; 0 takes a raise back.")],
    until: Annotated[int | None, typer.Option("--until", help="Unix seconds.")] = None,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Give a budget more, for a while or for good."""
    body = {"by": micros(by)} | ({} if until is None else {"until": until})
    with admin_client(url, key_file, data_dir) as client:
        raised = client.request("POST", BUDGETS.of_one(budget, "/raise"), body)
        BUDGETS.print_one(raised, as_json)


def _member(team: str, user: str) -> str:
    return TEAMS.of_one(team, f"/members/{quote(user, safe='')}")
