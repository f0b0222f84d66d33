"""`penstock audit …`: read, check and export the audit log."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.admin_options import AsJson, DataDir, KeyFile, Url, admin_client
from penstock.api_client import all_pages
from penstock.config import URL, build_settings
from penstock.fields import moment
from penstock.tables import print_json, print_json_line, print_table

_PATH = "/v1/admin/audit-logs"

audit = typer.Typer(
    help="Read, check and export the audit log.", no_args_is_help=True, rich_markup_mode=None
)

Key = Annotated[
    str, typer.Option("--key", help="What the key of this id did, and what was done to it.")
]
Actor = Annotated[str, typer.Option("--actor", help="Only what the key of this id did.")]
Action = Annotated[str, typer.Option("--action", help="Only this action, such as key_created.")]
Outcome = Annotated[str, typer.Option("--outcome", help="Only done, or refused.")]
Since = Annotated[int | None, typer.Option("--since", help="Unix seconds, inclusive.")]
Until = Annotated[int | None, typer.Option("--until", help="Unix seconds, exclusive.")]


@audit.command("list")
def list_entries(
    key: Key = "",
    actor: Actor = "",
    action: Action = "",
    outcome: Outcome = "",
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many.")] = 50,
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show the newest entries."""
    query = _query(key, actor, action, outcome, since, until) | {"limit": limit}
    with admin_client(url, key_file, data_dir) as client:
        entries: list[dict[str, Any]] = []
        for entry in all_pages(client, _PATH, query, cursor="seq"):
            entries.append(entry)
            if len(entries) == limit:
                break
        if as_json:
            print_json(entries)
            return
        names = ("actor", "action", "subject", "outcome", "address", "detail")
        with client.reading():
            rows = [
                [entry["seq"], moment(entry["at_ms"] / 1000), *(entry[name] for name in names)]
                for entry in entries
            ]
    print_table(("seq", "at", *names), rows)


@audit.command("export")
def export_entries(
    key: Key = "",
    actor: Actor = "",
    action: Action = "",
    outcome: Outcome = "",
    since: Since = None,
    until: Until = None,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Print entries as JSON lines, oldest first; unless filtered, they can be verified."""
    query = _query(key, actor, action, outcome, since, until) | {"order": "asc", "limit": 1000}
    with admin_client(url, key_file, data_dir) as client:
        for entry in all_pages(client, _PATH, query, cursor="seq"):
            print_json_line(entry)


@audit.command("verify")
def verify(
    file: Annotated[
        Path | None, typer.Option("--file", help="What `audit export` printed.")
    ] = None,
    holds: Annotated[
        str | None,
        typer.Option(
            "--holds",
            metavar="SEQ:HASH",
            help="The last entry as an earlier check printed it; shows an end that was cut off.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Check that no entry was changed, taken out or moved, on the machine of the auth database.

    The server may run meanwhile. Exit code 0 when the log holds, 1 when it does not, 2 when it
    can't be read, 3 when it holds and nothing tells of the entry of --holds, because entries from
    before its beginning were let go.
    """
    command = [sys.executable, "-m", "auth_worker.auditing.verify_audit"]
    if file is not None:
        command += ["--file", str(file)]
    else:
        command += ["--data-dir", str(data_dir or build_settings({}).data_dir)]
    command += ["--holds", holds] if holds is not None else []
    done = subprocess.run(command, check=False)  # noqa: S603 - our own module, no shell
    raise typer.Exit(done.returncode)


def _query(
    key: str, actor: str, action: str, outcome: str, since: int | None, until: int | None
) -> dict[str, Any]:
    return {
        "key_id": key,
        "actor": actor,
        "action": action,
        "outcome": outcome,
        "since": since,
        "until": until,
    }
