"""Settings of how HTTP is spoken: names, headers, certificates, where it is listened to."""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from protocol.errors import ConfigurationError
from protocol.runtime import shared_settings as shared
from protocol.runtime.setting_kinds import UnfitValueError
from protocol.runtime.settings import number, setting, switch, text, words

ANY_ORIGIN: Final = "*"
_ROOT_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_HEADER_TEXT: Final = re.compile(r"[\x20-\x7e]{1,128}")


def _origin(word: str) -> str:
    if word == ANY_ORIGIN:
        return word
    good = "origins such as https://chat.example.org, or *"
    if not word.isascii():
        # Browsers send such names in their ASCII form.
        raise UnfitValueError(word, f"{good}; write names beyond ASCII as browsers do (xn--…)")
    try:
        parts = urlsplit(word)
    except ValueError:  # brackets that hold no address
        raise UnfitValueError(word, good) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or word.count("/") != 2:
        raise UnfitValueError(word, good)
    return word.lower()


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    """What of HTTP can be set beside address and bounds."""

    uds: Path | None = setting(shared.UDS)
    share_port: bool = setting(
        switch(
            "PENSTOCK_SHARE_PORT",
            False,
            meaning=(
                "other gateways of this machine listen on the same address and port (Linux spreads "
                "connections over them); this one does so once it can serve, after 5 s at the "
                "latest"
            ),
        )
    )
    tls_cert_file: Path | None = setting(shared.TLS_CERT_FILE)
    tls_key_file: Path | None = setting(shared.TLS_KEY_FILE)
    root_path: str = setting(
        text(
            "PENSTOCK_ROOT_PATH",
            "",
            meaning=(
                "path below which the API is reached through a proxy, such as `/llm`; requests are "
                "served with and without it, and `/openapi.json` names it"
            ),
        )
    )
    cors_origins: tuple[str, ...] = setting(
        words(
            "PENSTOCK_CORS_ORIGINS",
            each=_origin,
            meaning=(
                "origins whose web pages may call the API and read its answers, such as "
                "`https://chat.example.org`; `*` is every one, where keys are required"
            ),
        )
    )
    keep_alive_s: float = setting(
        number(
            "PENSTOCK_KEEP_ALIVE_S",
            75.0,
            minimum=1.0,
            maximum=3600.0,
            meaning="how long a connection without a request stays open",
        )
    )
    server_header: str = setting(
        text("PENSTOCK_SERVER_HEADER", "", meaning="`Server` header of answers; none when empty")
    )
    api_title: str = setting(
        text("PENSTOCK_API_TITLE", "Penstock", meaning="title of `/docs` and `/openapi.json`")
    )
    overload_message: str = setting(
        text(
            "PENSTOCK_OVERLOAD_MESSAGE",
            "",
            meaning="what a 503 says whose queue is full, instead of how many wait in it",
        )
    )

    def check_edge(self, *, requires_keys: bool) -> None:
        """What no setting can say alone.

        Args:
            requires_keys: Whether callers need a key.

        Raises:
            ConfigurationError: Naming the setting.
        """
        if self.share_port and self.uds is not None:
            raise ConfigurationError(
                "PENSTOCK_SHARE_PORT: a Unix socket (PENSTOCK_UDS) can't be shared; leave one out."
            )
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise ConfigurationError(
                f"PENSTOCK_ROOT_PATH {self.root_path!r} is no path such as /llm, which begins with "
                "a slash and doesn't end with one."
            )
        if self.server_header and not _HEADER_TEXT.fullmatch(self.server_header):
            raise ConfigurationError(
                "PENSTOCK_SERVER_HEADER must be 1 to 128 printable ASCII characters."
            )
        if ANY_ORIGIN in self.cors_origins and not requires_keys:
            raise ConfigurationError(
                "PENSTOCK_CORS_ORIGINS is *, but no keys are required: every web page that is open "
                "on this machine could use the server. Name the origins, or set "
                "PENSTOCK_REQUIRE_KEYS=true."
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ConfigurationError(
                "PENSTOCK_TLS_CERT_FILE and PENSTOCK_TLS_KEY_FILE go together: set both or neither."
            )
        if self.tls_cert_file is not None and self.tls_key_file is not None:
            self._check_tls(self.tls_cert_file, self.tls_key_file)

    @property
    def cors_hosts(self) -> tuple[str, ...]:
        """Names of the hosts whose pages may call the API."""
        hosts = (urlsplit(origin).hostname for origin in self.cors_origins if origin != ANY_ORIGIN)
        return tuple(host for host in hosts if host)

    @staticmethod
    def _check_tls(cert_file: Path, key_file: Path) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"PENSTOCK_TLS_CERT_FILE {cert_file} and PENSTOCK_TLS_KEY_FILE {key_file} can't be "
                f"used: {error.strerror or error}."
            ) from error
