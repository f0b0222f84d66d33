"""`penstock workers`: what runs where, and how it does."""

from collections.abc import Mapping
from typing import Any

from penstock.admin_options import AsJson, DataDir, KeyFile, Url, admin_client
from penstock.config import URL
from penstock.tables import print_json, print_table

_COLUMNS = (
    *("name", "role", "model", "host", "address", "status", "phase"),
    *("running", "done", "failed"),
)


def show_workers(
    as_json: AsJson = False,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """List the workers that are connected to a gateway: where they run and how they do."""
    with admin_client(url, key_file, data_dir) as client:
        listed = client.request("GET", "/v1/admin/workers")
        with client.reading():
            workers = listed["data"]
            rows = [_row(one) for one in workers]
    if as_json:
        print_json(workers)
        return
    print_table(_COLUMNS, rows)


def _row(one: Mapping[str, Any]) -> list[Any]:
    # Gateways of before don't say where a worker runs.
    return [
        one["name"],
        one["role"],
        one["model"] or "",
        one.get("host") or "",
        one.get("address") or "",
        one["status"],
        one["phase"],
        one["load"]["num_running"],
        one["num_answered"],
        one["num_failed"],
    ]
