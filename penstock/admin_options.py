"""Options that several commands have, and the client of those that administer a running server."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.api_client import ApiClient, read_admin_key
from penstock.config import URL, build_settings, expanded
from protocol.runtime.setting_kinds import Choice
from protocol.runtime.settings import NO_DEFAULT, Setting
from protocol.runtime.shared_settings import DATA_DIR


def _in_home(name: str) -> Callable[[Path | None], Path | None]:
    """A `~` in the path of an option: no shell replaces it in a variable, or after a `=`."""

    def replaced(path: Path | None) -> Path | None:
        return None if path is None else expanded(path, name)

    return replaced


def option_of(
    declared: Setting[Any],
    name: str = "",
    text: str = "",
    callback: Callable[[Any], Any] | None = None,
) -> Any:
    """The option of a setting, which its variables fill as well; None when neither is given.

    Args:
        declared: The setting.
        name: As typed, where another command calls the option differently than `serve`.
        text: For `--help`, where another command means something else than `serve`.
        callback: Makes the value from what was given.
    """
    choices = f": {declared.kind.describe()}" if isinstance(declared.kind, Choice) else ""
    meaning = text or f"{declared.meaning[0].upper()}{declared.meaning[1:]}{choices}."
    default = declared.default_text().replace("`", "")
    return typer.Option(
        name or declared.option,
        envvar=[declared.name, *declared.aliases],
        callback=callback,
        help=meaning.replace("`", ""),
        show_default=False if default == NO_DEFAULT else default,
    )


Url = Annotated[str, option_of(URL)]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", help="File that holds the admin key.", callback=_in_home("--key-file")
    ),
]
DataDir = Annotated[Path | None, option_of(DATA_DIR, callback=_in_home(DATA_DIR.option))]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def admin_client(url: str, key_file: Path | None, data_dir: Path | None) -> ApiClient:
    """A client with the admin key.

    Raises:
        UsageError: There is none, or the URL is malformed.
    """
    directory = data_dir or build_settings({}).data_dir
    client = ApiClient(url, read_admin_key(key_file, directory))
    client.key_names = "PENSTOCK_ADMIN_KEY or --key-file"
    return client
