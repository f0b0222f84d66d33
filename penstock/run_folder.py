"""The folder beside OUTPUT that `penstock run-batch` keeps until all answers are in OUTPUT.

It holds the id that the batches of this OUTPUT are known by, and what a server of its own has of
them: requests, answers and a key, which are nobody else's business.
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from penstock.durable_files import sync_folder
from penstock.errors import CommandError, UsageError

GATEWAY_LOCK: Final = "gateway-outbox.jsonl.lock"
"""Held by the gateway of a data folder for as long as it runs."""
MAX_WAIT_S: Final = 15.0
"""Processes whose supervisor was killed end within a few seconds."""
_TELL_AFTER_S: Final = 2.0
_POLL_S: Final = 0.1
_ID_FILE: Final = "run-id"
_ID: Final = re.compile(r"[0-9a-f]{32}")


class RunFolder:
    """The folder of one OUTPUT.

    Args:
        output_path: Links followed.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.

    Attributes:
        path: Of the folder.
    """

    def __init__(
        self,
        output_path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = output_path.with_name(f"{output_path.name}.penstock-run")
        self._clock = clock
        self._sleep = sleep

    def make(self) -> None:
        """Make it, or take an earlier run's; afterwards nobody else can look into it.

        Raises:
            UsageError: Something else has its name, which anybody can guess.
            CommandError: It can't be made.
        """
        try:
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            own_uid = self._own_uid()
            self._check(self.path.lstat(), own_uid)
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                self._check(os.fstat(folder), own_uid)
                os.fchmod(folder, 0o700)
            finally:
                os.close(folder)
        except OSError as error:
            raise CommandError(f"{self.path} can't be made: {error.strerror}.") from error

    def run_id(self) -> str:
        """The id of this OUTPUT's batches; made once, and on the disk before a batch has it.

        Raises:
            CommandError: It can't be read or written.
        """
        path = self.path / _ID_FILE
        try:
            with suppress(FileNotFoundError):
                known = path.read_text("ascii", errors="replace").strip()
                if _ID.fullmatch(known):
                    return known
            made = secrets.token_hex(16)
            fresh = path.with_name(f"{_ID_FILE}.new")
            with fresh.open("w", encoding="ascii") as file:
                file.write(f"{made}\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            sync_folder(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise CommandError(f"{path} can't be used: {error.strerror}.") from error
        return made

    def wait_until_free(self, say: Callable[[str], None]) -> None:
        """Wait for the end of the gateway of a run that was killed a moment ago.

        Args:
            say: Called with a line once it takes longer.

        Raises:
            CommandError: It doesn't end.
        """
        try:
            lock = os.open(self.path / GATEWAY_LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CommandError(f"{self.path} can't be used: {error.strerror}.") from error
        began_at, is_told = self._clock(), False
        try:
            while not _is_free(lock):
                waited_s = self._clock() - began_at
                if waited_s >= MAX_WAIT_S:
                    raise CommandError(
                        f"The server of an earlier run still uses {self.path}; run the same "
                        "command again when it has ended."
                    )
                if waited_s >= _TELL_AFTER_S and not is_told:
                    is_told = True
                    say(f"Waiting for the server of an earlier run to leave {self.path}.")
                self._sleep(_POLL_S)
        finally:
            os.close(lock)

    def remove(self) -> None:
        """Remove it with all that it holds; what is not ours stays."""
        with suppress(OSError, UsageError):
            self._check(self.path.lstat(), self._own_uid())
            shutil.rmtree(self.path, ignore_errors=True)

    def _own_uid(self) -> int:
        """Whose files we make are there, which servers of files may decide otherwise than we."""
        with TemporaryFile(dir=self.path.parent) as probe:
            return os.fstat(probe.fileno()).st_uid

    def _check(self, found: os.stat_result, own_uid: int) -> None:
        what = ""
        if stat.S_ISLNK(found.st_mode):
            what = "is a link"
        elif not stat.S_ISDIR(found.st_mode):
            what = "is no folder"
        elif found.st_uid != own_uid:
            what = "belongs to another user"
        if what:
            raise UsageError(
                f"{self.path} {what}; run-batch keeps what it needs to continue in a folder of "
                "its own there. Remove it, or name another OUTPUT."
            )


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks here; the gateway says so itself
    return True
