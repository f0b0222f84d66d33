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
from auth_worker.auditing.noted_entry import Finding, NotedEntry, find_noted
from auth_worker.config import audit_key_path, database_url
from auth_worker.errors import StoreError
from auth_worker.records.audit_chain import ChainCheck, ChainedEntry
from auth_worker.storage.audit_key import NOTES_NAME, CheckpointNotes, load_signer
from auth_worker.storage.reading import reader
from protocol.errors import ConfigurationError

HOLDS, BROKEN, UNREADABLE, LET_GO, INTERRUPTED = 0, 1, 2, 3, 130
MAX_LINE_CHARS = 1024 * 1024

_TOLD = {
    Finding.PROVED: (HOLDS, "was let go by the retention; what is signed shows that it was there"),
    Finding.LET_GO: (
        LET_GO,
        "lies before the first entry that is left here, and nothing that is signed tells whether it"
        " was there",
    ),
    Finding.MISSING: (BROKEN, "is not there any more"),
}
"""What is said of a noted entry that isn't there, and the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one log and say so.

    Returns:
        0 when it holds, 1 when it doesn't, 2 when it can't be read, 3 when it holds and the noted
        entry lies before its beginning, 130 after Ctrl-C.
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
    finding = Finding.THERE
    try:
        expected = None if options.holds is None else NotedEntry.parse(options.holds)
        if options.file is not None:
            checked, finding = check_export(options.file, expected)
        else:
            reading = reader(options.data_dir, database_url(os.environ))
            signer = load_signer(audit_key_path(os.environ, options.data_dir), may_make=False)
            noted = CheckpointNotes(options.data_dir / NOTES_NAME).read()
            checked = check_log(reading, signer=signer, noted=noted)
            if checked.trouble is None:
                if expected is not None:
                    finding = find_noted(reading, expected, signer=signer, noted=noted)
                money = check_money(reading)
    except (OSError, StoreError, ConfigurationError, ValueError) as error:
        sys.stderr.write(f"The audit log can't be read: {error}.\n")
        return UNREADABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    for one in (checked, *(() if money is None or not money.has_any else (money,))):
        sys.stdout.write(f"{str(one)[0].upper()}{str(one)[1:]}.\n")
    if checked.trouble is not None or (money is not None and money.trouble is not None):
        return BROKEN
    code, told = _TOLD.get(finding, (HOLDS, ""))
    if told:
        sys.stdout.write(f"Entry {expected} {told}.\n")
    return code


def check_export(path: Path, expected: NotedEntry | None) -> tuple[CheckedLog, Finding]:
    """Follow the chain of an export, which may begin in the middle of a log.

    Returns:
        What came of it, and what became of the expected entry.

    Raises:
        ValueError: A line is no entry.
        OSError: The file can't be read.
    """
    is_seen, first_seq = expected is None, 0

    def watched(entries: Iterable[ChainedEntry]) -> Iterator[ChainedEntry]:
        nonlocal is_seen, first_seq
        for entry in entries:
            first_seq = first_seq or entry.seq
            is_seen = is_seen or (entry.seq, entry.hash) == expected
            yield entry

    check = ChainCheck(is_whole=False)
    with path.open(encoding="utf-8") as file:
        lines = iter(lambda: file.readline(MAX_LINE_CHARS), "")
        entries = (_entry(line, number) for number, line in enumerate(lines, start=1))
        trouble = check.first_broken(watched(entries))
    finding = Finding.THERE if is_seen else Finding.MISSING
    if not is_seen and expected is not None and expected.seq < first_seq:
        finding = Finding.LET_GO
    return checked_log(check, trouble), finding


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


if __name__ == "__main__":
    sys.exit(main())
