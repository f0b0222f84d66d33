"""The server's certificate for TLS, read again when its files have changed."""

import logging
import ssl
from pathlib import Path

_logger = logging.getLogger("penstock.gateway")

_Mark = tuple[int, int, int, int]


class ServerCertificate:
    """A certificate chain and its key; renewed files count from the next connection on.

    Two files change one after the other, so new ones count only once they fit each other, and the
    former chain is shown until then. Who connects waits for that: some microseconds to look, and
    less than a handshake to read.

    Args:
        chain: PEM, the server's own certificate first.
        key: PEM, without a passphrase.

    Raises:
        OSError: A file can't be read, or they don't fit each other (`ssl.SSLError`).
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self._marks = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """With what the files hold now, or with what they held when they were last right."""
        marks = self._look()
        if marks != self._marks:
            self._marks = marks
            try:
                self._context = self._load()
            except OSError as error:
                _logger.error(
                    "the certificate in %s and the key in %s have changed and can't be used; the "
                    "former ones are shown until they can: %s",
                    *(self._chain, self._key, error),
                )
            else:
                _logger.info("the certificate in %s was read again", self._chain)
        return self._context

    def _load(self) -> ssl.SSLContext:
        # A context of its own: one that has taken a chain without its key would be of no use.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._chain, self._key, lambda: "")  # asks nobody for a passphrase
        return context

    def _look(self) -> tuple[_Mark | None, _Mark | None]:
        return _mark(self._chain), _mark(self._key)


def _mark(path: Path) -> _Mark | None:
    """What tells a file from the one that it was, behind links as well; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
