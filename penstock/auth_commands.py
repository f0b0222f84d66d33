"""`penstock auth …`: back up, restore, check and downgrade the database of keys and usage."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from penstock.admin_options import DataDir
from penstock.config import build_settings

auth = typer.Typer(
    help="Back up, restore and check the database of keys, limits and usage.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


@auth.command("backup")
def back_up(file: BackupFile, data_dir: DataDir = None) -> None:
    """Copy everything into a new file, as of one moment; the server may run meanwhile.

    The file opens no doors (it holds digests of keys, never keys), and what it says of people is
    theirs: keep it as you keep the database.
    """
    _run(data_dir, "backup", str(file))


@auth.command("restore")
def restore(file: BackupFile, data_dir: DataDir = None) -> None:
    """Fill an empty database from a backup, on SQLite or PostgreSQL; stop the server first."""
    _run(data_dir, "restore", str(file))


@auth.command("check")
def check(data_dir: DataDir = None) -> None:
    """Look through pages, keys, totals and the audit log; the server may run meanwhile.

    Exit code 0 when all holds, 1 when something does not, 2 when it can't be read.
    """
    _run(data_dir, "check")


@auth.command("downgrade")
def downgrade(
    version: Annotated[int, typer.Argument(help="Of the schema, as the older release names it.")],
    data_dir: DataDir = None,
) -> None:
    """Bring the tables back to those of an older release; stop the server and back up first.

    What the older release would not heed closes: keys that are bounded by it are revoked.
    """
    _run(data_dir, "downgrade", str(version))


def _run(data_dir: Path | None, *arguments: str) -> None:
    folder = data_dir or build_settings({}).data_dir
    command = [sys.executable, "-m", "auth_worker.maintenance", "--data-dir", str(folder)]
    done = subprocess.run([*command, *arguments], check=False)  # noqa: S603 - our own module
    raise typer.Exit(done.returncode)
