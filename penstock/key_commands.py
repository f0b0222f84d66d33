"""`penstock keys …`: make, list, change and end the API keys of a running server."""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from penstock.admin_options import AsJson, DataDir, KeyFile, Url, admin_client
from penstock.api_client import all_pages
from penstock.config import URL
from penstock.fields import Clear, Field, body_of, changes_of, pairs, with_fields
from penstock.tables import print_change, print_json, print_record, print_table
from penstock.terminal import visible_line

_PATH = "/v1/admin/keys"

keys = typer.Typer(
    help="Make, list, change and end the API keys of a running server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KeyId = Annotated[str, typer.Argument(help="The key's id, from `keys list`.")]
_NAME = Field("name", "--name", str, "What the key is for.")
_FIELDS = (
    Field("description", "--description", str, "What it is for, at length."),
    Field("owner", "--owner", str, "Whose key it is, a user id."),
    Field("user_id", "--user", str, "The user whose key it is, an id from `users list`."),
    Field("team_id", "--team", str, "The team for whose work it is, an id from `teams list`."),
    Field("role", "--role", str, "admin, service, user or readonly."),
    Field("scopes", "--scope", list[str], "Narrow it to this scope of its role; repeat it."),
    Field(
        "tenant",
        "--tenant",
        str,
        "Keys of one tenant share cached prompts, and one fair share of the server; without a "
        "name, the key is a tenant by itself.",
    ),
    Field("expires_at", "--expires-at", int, "When it ends, Unix seconds."),
    Field("tags", "--tag", list[str], "A tag to find it by; repeat it."),
    Field("metadata", "--metadata", list[str], "NAME=TEXT for your own use; repeat it.", pairs),
    Field("requests_per_minute", "--rpm", int, "Requests a minute."),
    Field("tokens_per_minute", "--tpm", int, "Tokens a minute, prompt and completion."),
    Field("max_parallel_requests", "--parallel", int, "Requests that run at a time."),
    Field("max_tokens_per_request", "--max-tokens", int, "Completion tokens of a request."),
    Field("allowed_models", "--model", list[str], "Only models like this glob; repeat it."),
    Field("allowed_endpoints", "--endpoint", list[str], "Only routes like this glob; repeat it."),
    Field(
        "allowed_ip_addresses",
        "--allow",
        list[str],
        "Only from this address or network; repeat it.",
    ),
    Field(
        "blocked_ip_addresses", "--block", list[str], "Not from this address or network; repeat it."
    ),
    Field("enable_streaming", "--streaming/--no-streaming", bool, "Whether it may stream."),
    Field("enable_function_calling", "--tools/--no-tools", bool, "Whether it may use tools."),
    Field("priority", "--priority", str, "high, normal or low."),
    Field(
        "may_name_end_users",
        "--end-users/--no-end-users",
        bool,
        "Whether it may say which end user a request is for.",
    ),
)


@keys.command("create")
@with_fields(_FIELDS)
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
    **given: Any,
) -> None:
    """Make a key and print it, once; only its digest is kept. Its id goes to stderr."""
    body = {"name": name, **body_of(_FIELDS, given)}
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
    user: Annotated[str, typer.Option("--user", help="Only keys of this user's id.")] = "",
    team: Annotated[str, typer.Option("--team", help="Only keys of this team's id.")] = "",
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """List keys and what they used."""
    query = {"role": role, "status": status, "owner": owner, "tag": tag}
    query |= {"user_id": user, "team_id": team}
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
        print_record(client.request("GET", _path(key_id)), as_json)


@keys.command("update")
@with_fields(_FIELDS)
def update_key(
    key_id: KeyId,
    name: Annotated[str | None, typer.Option("--name", help="What the key is for.")] = None,
    clear: Clear = None,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
    **given: Any,
) -> None:
    """Change what is said about a key, which keeps its secret.

    0 of a limit lets nothing through; --clear takes the limit away.
    """
    fields = [_NAME, *_FIELDS]
    body = changes_of(fields, {"name": name, **given}, clear, "penstock keys update --help")
    with admin_client(url, key_file, data_dir) as client:
        print_record(client.request("PATCH", _path(key_id), body), as_json)


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
    """Give a key a new secret and print it, once; the id stays."""
    with admin_client(url, key_file, data_dir) as client:
        rotated = client.request("POST", f"{_path(key_id)}/rotate", {"overlap_s": overlap_s})
        with client.reading():
            _print_secret(rotated, as_json)


@keys.command("suspend")
def suspend_key(
    key_id: KeyId,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """End a key for the time being, at once."""
    with admin_client(url, key_file, data_dir) as client:
        changed = client.request("POST", f"{_path(key_id)}/suspend")
        print_change(changed, as_json, f"{key_id} is suspended.")


@keys.command("reactivate")
def reactivate_key(
    key_id: KeyId,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Let a suspended key work again."""
    with admin_client(url, key_file, data_dir) as client:
        changed = client.request("POST", f"{_path(key_id)}/reactivate")
        print_change(changed, as_json, f"{key_id} is active.")


@keys.command("revoke")
def revoke_key(
    key_id: KeyId,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """End a key at once and for good."""
    with admin_client(url, key_file, data_dir) as client:
        changed = client.request("DELETE", f"{_path(key_id)}/revoke")
        print_change(changed, as_json, f"{key_id} is revoked.")


@keys.command("delete")
def delete_key(
    key_id: KeyId,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Forget a key; what it used stays in the totals under its id."""
    with admin_client(url, key_file, data_dir) as client:
        changed = client.request("DELETE", _path(key_id))
        print_change(changed, as_json, f"{key_id} is deleted.")


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
            if counted.get("num_closed"):
                rows.append(("closed by a user or team", "", counted["num_closed"]))
            rows.append(("all", "", counted["num_keys"]))
    print_table(("by", "", "keys"), rows)


def _path(key_id: str) -> str:
    return f"{_PATH}/{quote(key_id, safe='')}"


def _row(key: Mapping[str, Any]) -> tuple[Any, ...]:
    used = key["total_prompt_tokens"] + key["total_completion_tokens"]
    names = ("id", "name", "role", "owner", "hint", "total_requests")
    # A server of before 1.3 knows neither owners nor what a key's status is.
    known = {"owner": "", "status": "", "closed_by": "", **key}
    status, closed_by = known["status"], known["closed_by"]
    if closed_by and status == "active":
        status = f"active, closed by its {closed_by}"
    return (*(known[name] for name in names), used, status)


def _print_secret(record: Mapping[str, Any], as_json: bool) -> None:
    """The secret alone on stdout, so that `key=$(penstock keys create NAME)` holds just that."""
    if as_json:
        print_json(record)
        return
    typer.echo(visible_line(str(record["key"])))
    typer.echo(
        visible_line(
            f"This key is shown once. Its id is {record['id']}: `keys rotate` and `keys revoke` "
            "take it."
        ),
        err=True,
    )
