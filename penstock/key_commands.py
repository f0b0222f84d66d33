"""`penstock keys …`: make, list, change and end the API keys of a running server."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote

import typer

from penstock.admin_options import AsJson, DataDir, KeyFile, Url, admin_client
from penstock.api_client import all_pages
from penstock.config import URL
from penstock.errors import UsageError
from penstock.tables import print_fields, print_json, print_table
from penstock.terminal import visible_line

_PATH = "/v1/admin/keys"

keys = typer.Typer(
    help="Make, list, change and end the API keys of a running server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KeyId = Annotated[str, typer.Argument(help="The key's id, from `keys list`.")]
Command = TypeVar("Command", bound=Callable[..., None])


class _Field(NamedTuple):
    """A field of a key that `create` and `update` set."""

    name: str
    flag: str
    kind: Any
    text: str


_FIELDS = (
    _Field("description", "--description", str, "What it is for, at length."),
    _Field("owner", "--owner", str, "Whose key it is, a user id."),
    _Field("user_id", "--user", str, "The user whose key it is, an id from `users list`."),
    _Field("team_id", "--team", str, "The team for whose work it is, an id from `teams list`."),
    _Field("role", "--role", str, "admin, service, user or readonly."),
    _Field("scopes", "--scope", list[str], "Narrow it to this scope of its role; repeat it."),
    _Field(
        "tenant",
        "--tenant",
        str,
        "Keys of one tenant share cached prompts, and one fair share of the server; without a "
        "name, the key is a tenant by itself.",
    ),
    _Field("expires_at", "--expires-at", int, "When it ends, Unix seconds."),
    _Field("tags", "--tag", list[str], "A tag to find it by; repeat it."),
    _Field("metadata", "--metadata", list[str], "NAME=TEXT for your own use; repeat it."),
    _Field("requests_per_minute", "--rpm", int, "Requests a minute."),
    _Field("tokens_per_minute", "--tpm", int, "Tokens a minute, prompt and completion."),
    _Field("max_parallel_requests", "--parallel", int, "Requests that run at a time."),
    _Field("max_tokens_per_request", "--max-tokens", int, "Completion tokens of a request."),
    _Field("allowed_models", "--model", list[str], "Only models like this glob; repeat it."),
    _Field("allowed_endpoints", "--endpoint", list[str], "Only routes like this glob; repeat it."),
    _Field(
        "allowed_ip_addresses",
        "--allow",
        list[str],
        "Only from this address or network; repeat it.",
    ),
    _Field(
        "blocked_ip_addresses", "--block", list[str], "Not from this address or network; repeat it."
    ),
    _Field("enable_streaming", "--streaming/--no-streaming", bool, "Whether it may stream."),
    _Field("enable_function_calling", "--tools/--no-tools", bool, "Whether it may use tools."),
    _Field("priority", "--priority", str, "high, normal or low."),
    _Field(
        "may_name_end_users",
        "--end-users/--no-end-users",
        bool,
        "Whether it may say which end user a request is for.",
    ),
)


def _with_fields(command: Command) -> Command:
    """Gives a command that takes `**given` an option for each field of a key."""
    signature = inspect.signature(command)
    *named, _ = signature.parameters.values()
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                field.kind | None, typer.Option(field.flag, help=field.text, show_default=False)
            ],
        )
        for field in _FIELDS
    ]
    full = signature.replace(parameters=[*named, *options])
    command.__signature__ = full  # type: ignore[attr-defined]  # what typer reads
    return command


def _body(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of a key, as the server takes it."""
    body = {name: value for name, value in given.items() if value not in (None, [])}
    if "metadata" in body:
        pairs = [text.partition("=") for text in body["metadata"]]
        if not all(separator for _, separator, _ in pairs):
            raise UsageError("--metadata takes NAME=TEXT.")
        body["metadata"] = {name: text for name, _, text in pairs}
    return body


@keys.command("create")
@_with_fields
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
    **given: Any,
) -> None:
    """Make a key and print it, once; only its digest is kept."""
    body = {"name": name, **_body(given)}
    with admin_client(url, key_file, data_dir) as client:
        created = client.request("POST", _PATH, body)
        with client.reading():
            _print_secret(created, as_json)


@keys.command("list")
def list_keys(
    role: Annotated[str, typer.Option("--role", help="Only keys of this role.")] = "",
    status: Annotated[
        str, typer.Option("--status", help="Only active, suspended, expired or revoked ones.")
    ] = "",
    owner: Annotated[str, typer.Option("--owner", help="Only keys of this owner.")] = "",
    tag: Annotated[str, typer.Option("--tag", help="Only keys with this tag.")] = "",
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """List keys and what they used."""
    query = {"role": role, "status": status, "owner": owner, "tag": tag}
    with admin_client(url, key_file, data_dir) as client:
        found = list(all_pages(client, _PATH, query))
        if as_json:
            print_json(found)
            return
        with client.reading():
            rows = [_row(key) for key in found]
    columns = ("id", "name", "role", "owner", "key", "requests", "tokens", "status")
    print_table(columns, rows)


@keys.command("show")
def show_key(
    key_id: KeyId,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show everything about a key but the key."""
    with admin_client(url, key_file, data_dir) as client:
        _print(client.request("GET", _path(key_id)), as_json)


@keys.command("update")
@_with_fields
def update_key(
    key_id: KeyId,
    name: Annotated[str | None, typer.Option("--name", help="What the key is for.")] = None,
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar="FIELD", help="Back to its default; repeat it."),
    ] = None,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
    **given: Any,
) -> None:
    """Change what is said about a key, which keeps its secret.

    0 of a limit lets nothing through; --clear takes the limit away.
    """
    body = _body({"name": name, **given}) | dict.fromkeys(clear or ())
    if not body:
        raise UsageError("Say what is to change; see `penstock keys update --help`.")
    with admin_client(url, key_file, data_dir) as client:
        _print(client.request("PATCH", _path(key_id), body), as_json)


@keys.command("rotate")
def rotate_key(
    key_id: KeyId,
    overlap_s: Annotated[
        int, typer.Option("--overlap-s", min=0, help="Seconds for which the old secret works.")
    ] = 0,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Give a key a new secret and print it, once."""
    with admin_client(url, key_file, data_dir) as client:
        rotated = client.request("POST", f"{_path(key_id)}/rotate", {"overlap_s": overlap_s})
        with client.reading():
            _print_secret(rotated, as_json)


@keys.command("suspend")
def suspend_key(
    key_id: KeyId, url: Url = URL.default, key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """End a key for the time being, at once."""
    with admin_client(url, key_file, data_dir) as client:
        client.request("POST", f"{_path(key_id)}/suspend")
    _say(key_id, "suspended")


@keys.command("reactivate")
def reactivate_key(
    key_id: KeyId, url: Url = URL.default, key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """Let a suspended key work again."""
    with admin_client(url, key_file, data_dir) as client:
        client.request("POST", f"{_path(key_id)}/reactivate")
    _say(key_id, "active")


@keys.command("revoke")
def revoke_key(
    key_id: KeyId, url: Url = URL.default, key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """End a key at once and for good."""
    with admin_client(url, key_file, data_dir) as client:
        client.request("DELETE", f"{_path(key_id)}/revoke")
    _say(key_id, "revoked")


@keys.command("delete")
def delete_key(
    key_id: KeyId, url: Url = URL.default, key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """Forget a key; what it used stays in the totals under its id."""
    with admin_client(url, key_file, data_dir) as client:
        client.request("DELETE", _path(key_id))
    _say(key_id, "deleted")


@keys.command("stats")
def count_keys(
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Count keys by role, status, age and use."""
    with admin_client(url, key_file, data_dir) as client:
        counted = client.request("GET", f"{_PATH}/stats")
        if as_json:
            print_json(counted)
            return
        with client.reading():
            groups = {"role": counted["by_role"], "status": counted["by_status"]}
            rows = [
                (name, bucket, number)
                for name, buckets in {**groups, **counted["histograms"]}.items()
                for bucket, number in buckets.items()
                if number
            ]
            rows.append(("all", "", counted["num_keys"]))
    print_table(("by", "", "keys"), rows)


def _path(key_id: str) -> str:
    return f"{_PATH}/{quote(key_id, safe='')}"


def _row(key: Mapping[str, Any]) -> tuple[Any, ...]:
    used = key["total_prompt_tokens"] + key["total_completion_tokens"]
    names = ("id", "name", "role", "owner", "hint", "total_requests")
    # A server of before 1.3 knows neither owners nor what a key's status is.
    known = {"owner": "", "status": "", **key}
    return (*(known[name] for name in names), used, known["status"])


def _print(record: Any, as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        print_fields(record)


def _print_secret(record: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        typer.echo(visible_line(str(record["key"])))


def _say(key_id: str, state: Literal["suspended", "active", "revoked", "deleted"]) -> None:
    typer.echo(visible_line(f"{key_id} is {state}."))
