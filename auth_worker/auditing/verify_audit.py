"""Says whether an audit log holds: what `penstock audit verify` runs.

It reads the database of a running or a stopped auth worker, or a file that `penstock audit export`
wrote, and changes nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from auth_worker.auditing.audit_check import CheckedLog, check_log, checked_log
from auth_worker.auditing.money_check import CheckedMoney, check_money
from auth_worker.config import audit_key_path, database_url
from auth_worker.errors import StoreError
from auth_worker.records.audit_chain import ChainCheck, ChainedEntry
from auth_worker.storage.audit_key import NOTES_NAME, CheckpointNotes, load_signer
from auth_worker.storage.audit_table import read_chain
from auth_worker.storage.reading import Reading, reader
from protocol.errors import ConfigurationError

HOLDS, BROKEN, UNREADABLE, INTERRUPTED = 0, 1, 2, 130
MAX_LINE_CHARS = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one log and say so.

    Returns:
        0 when it holds, 1 when it doesn't, 2 when it can't be read, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="auth_worker.auditing.verify_audit", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data-dir", type=Path, help="Folder of the auth database.")
    what.add_argument("--file", type=Path, help="An export, as JSON lines, oldest first.")
    parser.add_argument(
        "--holds",
        metavar="SEQ:HASH",
        help="An entry noted earlier, which must still be there; shows an end that was cut off.",
    )
    options = parser.parse_args(arguments)
    money: CheckedMoney | None = None
    try:
        expected = None if options.holds is None else _noted(options.holds)
        if options.file is not None:
            checked, seen = check_export(options.file, expected)
        else:
            reading = reader(options.data_dir, database_url(os.environ))
            checked = check_log(
                reading,
                signer=load_signer(audit_key_path(os.environ, options.data_dir), may_make=False),
                noted=CheckpointNotes(options.data_dir / NOTES_NAME).read(),
            )
            seen = _is_in(reading, expected)
            money = check_money(reading) if checked.trouble is None else None
    except (OSError, StoreError, ConfigurationError, ValueError) as error:
        sys.stderr.write(f"The audit log can't be read: {error}.\n")
        return UNREADABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    for one in (checked, *(() if money is None or not money.has_any else (money,))):
        sys.stdout.write(f"{str(one)[0].upper()}{str(one)[1:]}.\n")
    if checked.trouble is None and not seen:
        sys.stdout.write(f"Entry {options.holds} is not there any more.\n")
        return BROKEN
    if money is not None and money.trouble is not None:
        return BROKEN
    return HOLDS if checked.trouble is None else BROKEN


def check_export(path: Path, expected: tuple[int, bytes] | None) -> tuple[CheckedLog, bool]:
    """Follow the chain of an export, which may begin in the middle of a log.

    Returns:
        What came of it, and whether the expected entry was seen.

    Raises:
        ValueError: A line is no entry.
        OSError: The file can't be read.
    """
    is_seen = expected is None

    def watched(entries: Iterable[ChainedEntry]) -> Iterator[ChainedEntry]:
        nonlocal is_seen
        for entry in entries:
            is_seen = is_seen or (entry.seq, entry.hash) == expected
            yield entry

    check = ChainCheck(is_whole=False)
    with path.open(encoding="utf-8") as file:
        lines = iter(lambda: file.readline(MAX_LINE_CHARS), "")
        entries = (_entry(line, number) for number, line in enumerate(lines, start=1))
        trouble = check.first_broken(watched(entries))
    return checked_log(check, trouble), is_seen


def _entry(line: str, number: int) -> ChainedEntry:
    try:
        fields: dict[str, Any] = json.loads(line)
        return ChainedEntry(
            seq=int(fields["seq"]),
            at_ms=int(fields["at_ms"]),
            actor_key_id=str(fields["actor"]),
            action=str(fields["action"]),
            subject=str(fields["subject"]),
            detail=json.dumps(
                fields["detail"], sort_keys=True, separators=(",", ":"), ensure_ascii=True
            ),
            previous_hash=bytes.fromhex(fields["previous_hash"]),
            hash=bytes.fromhex(fields["hash"]),
            outcome=str(fields["outcome"]),
            address=str(fields["address"]),
            request_id=str(fields["request_id"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is no entry of an audit log") from error


def _noted(text: str) -> tuple[int, bytes]:
    number, _, digest = text.partition(":")
    try:
        return int(number), bytes.fromhex(digest)
    except ValueError:
        raise ValueError("--holds takes SEQ:HASH, as this command prints them") from None


def _is_in(reading: Reading, expected: tuple[int, bytes] | None) -> bool:
    if expected is None:
        return True
    seq, digest = expected
    with reading() as connection:
        return any(entry.hash == digest for entry in read_chain(connection, seq - 1, 1))


if __name__ == "__main__":
    sys.exit(main())
