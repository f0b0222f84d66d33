"""The gateway's settings, read once from the environment and frozen."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gateway.edge_settings import EdgeSettings
from protocol.errors import ConfigurationError
from protocol.runtime import shared_settings as shared
from protocol.runtime.setting_kinds import UnfitValueError
from protocol.runtime.settings import (
    choice,
    file_path,
    number,
    read_settings,
    setting,
    size,
    switch,
    text,
    whole_number,
    words,
)
from protocol.wire.codec import MAX_MESSAGE_BYTES
from protocol.wire.endpoints import Endpoint, bind_endpoint, is_loopback

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
OWN_TOOLS_LABEL = "penstock"
"""The `server_label` of the tools that packages register on this server."""
CLIENT_TRACES = ("link", "parent", "ignore")
STORE_SCHEMES = ("sqlite:///", "postgresql://", "postgres://")
_MAX_BODY_BYTES = MAX_MESSAGE_BYTES // 2
"""A body travels on in one message of the wire, where escapes and the tools add to it."""
MAX_BODY_BYTES = size(
    "PENSTOCK_MAX_BODY_BYTES",
    10 * 1024 * 1024,
    minimum=1024,
    maximum=_MAX_BODY_BYTES,
    meaning="longer bodies are a 413",
)
_REQUIRE_KEYS = switch(
    "PENSTOCK_REQUIRE_KEYS",
    True,
    shown_default="unless on loopback",
    meaning="whether keys are required; false is refused on addresses that others reach",
)


def _network(word: str) -> str:
    try:
        return str(ipaddress.ip_network(word))
    except ValueError:
        raise UnfitValueError(word, "addresses and networks such as 10.0.0.0/8") from None


def _alias(word: str) -> str:
    name, is_pair, model = (part.strip() for part in word.partition("="))
    if not (name and is_pair and model) or name == model:
        raise UnfitValueError(word, "pairs such as gpt-4o=demo, of a name and another model's")
    return f"{name}={model}"


def _fallbacks(word: str) -> str:
    name, _, models = (part.strip() for part in word.partition("="))
    stand_ins = [one.strip() for one in models.split("+")]
    if not (name and all(stand_ins)) or name in stand_ins or "*" in stand_ins:
        raise UnfitValueError(word, "pairs such as large=medium+small, or *=small for every model")
    return f"{name}={'+'.join(stand_ins)}"


def _budget(word: str) -> str:
    effort, _, number = (part.strip() for part in word.partition("="))
    if effort not in EFFORTS or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise UnfitValueError(
            word, f"pairs such as low=1024, of {', '.join(EFFORTS)} and a number of tokens"
        )
    return f"{effort}={int(number)}"


def _mcp_server(word: str) -> str:
    label, is_pair, url = (part.strip() for part in word.partition("="))
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_good = is_good and parts.username is None and "#" not in url
    except ValueError:
        is_good = False
    is_label = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", label) and label != OWN_TOOLS_LABEL
    if not (is_pair and is_label and is_good and re.fullmatch(r"[!-~]{1,2048}", url)):
        raise UnfitValueError(
            word,
            "pairs such as tools=https://tools.example/mcp: a label of at most 64 letters, digits, "
            f"_ and - other than {OWN_TOOLS_LABEL}, and a URL without user name and fragment",
        )
    return f"{label}={url}"


@dataclass(frozen=True)
class GatewaySettings(EdgeSettings):
    """Everything that can be set about a gateway; `meaning` says what each field is.

    Attributes:
        engine_endpoint: Where engines dial in; `auth_endpoint`, `toolparser_endpoint` likewise.
    """

    engine_endpoint: Endpoint
    auth_endpoint: Endpoint
    toolparser_endpoint: Endpoint
    host: str = setting(shared.HOST)
    port: int = setting(shared.PORT)
    metrics_port: int = setting(shared.METRICS_PORT)
    port_file: Path | None = setting(
        file_path(
            "PENSTOCK_PORT_FILE",
            None,
            meaning="file to which the bound port is written, for use with port 0",
        )
    )
    require_keys: bool = setting(_REQUIRE_KEYS)
    allowed_hosts: tuple[str, ...] = setting(
        words(
            "PENSTOCK_ALLOWED_HOSTS",
            each=str.lower,
            meaning=(
                "names beside the loopback ones that `Host` and `Origin` may hold when no key is "
                "needed"
            ),
        )
    )
    trusted_proxies: tuple[str, ...] = setting(
        words(
            "PENSTOCK_TRUSTED_PROXIES",
            each=_network,
            meaning=(
                "addresses and networks (such as `10.0.0.0/8`) whose `X-Forwarded-For` is trusted"
            ),
        )
    )
    end_user_headers: tuple[str, ...] = setting(
        words(
            "PENSTOCK_END_USER_HEADERS",
            ("x-openwebui-user-id",),
            each=str.lower,
            meaning=(
                "headers in which a key that may name its end users does so; the first one that a "
                "request has counts, before `safety_identifier` and `user` of its body"
            ),
        )
    )
    models: tuple[str, ...] = setting(
        words(
            "PENSTOCK_MODELS",
            meaning=(
                "models that `/health` expects to be served; engines of others may connect, too"
            ),
        )
    )
    model_aliases: tuple[str, ...] = setting(
        words(
            "PENSTOCK_MODEL_ALIASES",
            each=_alias,
            meaning=(
                "further names of models, such as "
                "`gpt-4o=penstock-demo,gpt-4o-mini=penstock-demo`; permissions, limits and prices "
                "are those of the model"
            ),
        )
    )
    model_fallbacks: tuple[str, ...] = setting(
        words(
            "PENSTOCK_MODEL_FALLBACKS",
            each=_fallbacks,
            meaning=(
                "which models generate for one that is away or whose context a prompt exceeds, in "
                "order, such as `large=medium+small,*=small`; `X-Penstock-Model` names who did"
            ),
        )
    )
    data_dir: Path = setting(shared.DATA_DIR)
    share_data_dir: bool = setting(
        switch(
            "PENSTOCK_SHARE_DATA_DIR",
            False,
            meaning=(
                "other gateways use `PENSTOCK_DATA_DIR` as well: each takes a folder `gateway-N` "
                "in it, and the outbox of one that is gone"
            ),
        )
    )
    key_dir: Path | None = setting(shared.KEY_DIR)
    max_body_bytes: int = setting(MAX_BODY_BYTES)
    max_bodies_per_caller: int = setting(
        whole_number(
            "PENSTOCK_MAX_BODIES_PER_CALLER",
            8,
            minimum=1,
            maximum=10**6,
            meaning=(
                "bodies over 64 KiB that one key, or one address without a key, may have under way"
            ),
        )
    )
    max_answer_bytes: int = setting(
        size(
            "PENSTOCK_MAX_ANSWER_BYTES",
            32 * 1024 * 1024,
            minimum=1024,
            meaning="requests whose answer is estimated to be larger are refused",
        )
    )
    max_connections: int = setting(
        whole_number(
            "PENSTOCK_MAX_CONNECTIONS",
            0,
            minimum=0,
            maximum=10**6,
            shown_default="0: from the limit of file descriptors",
            meaning="HTTP connections that may be open at a time",
        )
    )
    max_connections_per_address: int = setting(
        whole_number(
            "PENSTOCK_MAX_CONNECTIONS_PER_ADDRESS",
            0,
            minimum=0,
            maximum=10**6,
            shown_default="0: a share of the total",
            meaning="of these, what one address may hold",
        )
    )
    replay_memory: int = setting(
        size(
            "PENSTOCK_REPLAY_MEMORY",
            32 * 1024 * 1024,
            minimum=1024 * 1024,
            meaning=(
                "memory of this gateway for answers to requests that came with an "
                "`Idempotency-Key`; a longer answer than an eighth of it is not kept"
            ),
        )
    )
    replay_age_s: float = setting(
        number(
            "PENSTOCK_REPLAY_AGE_S",
            86_400.0,
            minimum=1,
            maximum=30 * 86_400,
            meaning="how long such an answer is kept",
        )
    )
    max_wrong_keys: int = setting(
        whole_number(
            "PENSTOCK_MAX_WRONG_KEYS",
            20,
            minimum=0,
            maximum=10**6,
            meaning=(
                "different wrong keys that one address may try in a row, then ten a minute; others "
                "are a 429. Keys that were good are not counted; 0 hears all"
            ),
        )
    )
    max_queue: int = setting(
        whole_number(
            "PENSTOCK_MAX_QUEUE",
            512,
            minimum=1,
            maximum=10**6,
            meaning=(
                "requests of one model that wait for an engine; over it 503 with `Retry-After`. "
                "One tenant may hold as many places as are still free (half of them when alone), "
                "and always 16"
            ),
        )
    )
    max_outbox: int = setting(
        whole_number(
            "PENSTOCK_MAX_OUTBOX",
            10_000,
            minimum=1,
            maximum=10**6,
            meaning="settlements that wait for the auth worker; over it 503",
        )
    )
    hook_timeout_s: float = setting(
        number(
            "PENSTOCK_HOOK_TIMEOUT_S",
            5.0,
            minimum=0.01,
            maximum=600,
            meaning="what a call of a hook may take; one that takes longer fails its request",
        )
    )
    request_timeout_s: float = setting(
        number(
            "PENSTOCK_REQUEST_TIMEOUT_S",
            600.0,
            minimum=0.1,
            maximum=86_400,
            meaning="a longer request is a 504",
        )
    )
    worker_dead_s: float = setting(
        number(
            "PENSTOCK_WORKER_DEAD_S",
            15.0,
            minimum=2,
            maximum=3600,
            meaning=(
                "a worker silent for this long counts as dead (60 s while it loads or compiles); "
                "its requests move to other workers"
            ),
        )
    )
    stall_timeout_s: float = setting(
        number(
            "PENSTOCK_STALL_TIMEOUT_S",
            60.0,
            minimum=1,
            maximum=86_400,
            meaning=(
                "a worker that has requests and makes no progress for this long counts as dead; an "
                "engine that hangs for another minute exits, so that it is restarted"
            ),
        )
    )
    drain_timeout_s: float = setting(shared.DRAIN_TIMEOUT_S)
    auth_timeout_s: float = setting(
        number(
            "PENSTOCK_AUTH_TIMEOUT_S",
            5.0,
            minimum=0.1,
            maximum=600,
            meaning="timeout of one request to the auth worker",
        )
    )
    ping_interval_s: float = setting(
        number(
            "PENSTOCK_PING_INTERVAL_S",
            15.0,
            minimum=0.05,
            maximum=3600,
            meaning="a stream silent for this long gets a comment, so that proxies keep it open",
        )
    )
    lease_slice_tokens: int = setting(
        whole_number(
            "PENSTOCK_LEASE_SLICE_TOKENS",
            1024,
            minimum=16,
            maximum=2**20,
            meaning="what a choice without `max_tokens` reserves at a time",
        )
    )
    request_chat_templates: bool = setting(
        switch(
            "PENSTOCK_REQUEST_CHAT_TEMPLATES",
            False,
            meaning=(
                "whether a request may bring a `chat_template` instead of the model's; it is a"
                " program, run in a sandbox with bounds of memory and time"
            ),
        )
    )
    thinking_budgets: tuple[str, ...] = setting(
        words(
            "PENSTOCK_THINKING_BUDGETS",
            ("none=0", "minimal=0", "low=1024", "medium=4096"),
            each=_budget,
            meaning=(
                "tokens of reasoning by `reasoning_effort`, after which it is ended; an effort that"
                " isn't named has no such bound"
            ),
        )
    )
    routing: str = setting(
        choice(
            "PENSTOCK_ROUTING",
            "prefix",
            ("prefix", "load"),
            meaning=(
                "`prefix` sends a prompt to the engine that has most of its beginning cached, "
                "unless that one is overloaded; `load` looks at the load alone"
            ),
        )
    )
    tools: bool = setting(shared.TOOLS)
    tool_timeout_s: float = setting(
        number(
            "PENSTOCK_TOOL_TIMEOUT_S",
            30.0,
            minimum=0.1,
            maximum=86_400,
            meaning="how long a tool of this server may run before its process is killed",
        )
    )
    max_tool_processes: int = setting(
        whole_number(
            "PENSTOCK_MAX_TOOL_PROCESSES",
            4,
            minimum=1,
            maximum=256,
            meaning=(
                "tools of this server that run at a time, each in a process of its own; one caller"
                " leaves a place"
            ),
        )
    )
    tool_env: tuple[str, ...] = setting(
        words(
            "PENSTOCK_TOOL_ENV",
            meaning=(
                "names of environment variables that tools of this server see, beside `PATH`, "
                "`HOME`, `LANG`, `LC_*`, `TMPDIR`, `VIRTUAL_ENV` and `PYTHON*`"
            ),
        )
    )
    mcp_servers: tuple[str, ...] = setting(
        words(
            "PENSTOCK_MCP_SERVERS",
            each=_mcp_server,
            meaning=(
                "MCP servers whose tools responses may use, such as "
                "`tools=https://tools.example/mcp`; no other ones are connected to"
            ),
        )
    )
    max_mcp_processes: int = setting(
        whole_number(
            "PENSTOCK_MAX_MCP_PROCESSES",
            8,
            minimum=1,
            maximum=256,
            meaning=(
                "calls to MCP servers under way at a time, each in a process of its own; each is "
                "bounded by `PENSTOCK_TOOL_TIMEOUT_S`; one caller, and one server, leave a place"
            ),
        )
    )
    max_tool_calls: int = setting(
        whole_number(
            "PENSTOCK_MAX_TOOL_CALLS",
            32,
            minimum=1,
            maximum=1024,
            meaning="tools that this server may run for one response; `max_tool_calls` lowers it",
        )
    )
    max_tool_output_bytes: int = setting(
        size(
            "PENSTOCK_MAX_TOOL_OUTPUT_BYTES",
            64 * 1024,
            minimum=256,
            maximum=1024 * 1024,
            meaning="what a tool that is run for a response may answer; more is an error",
        )
    )
    internal_targets: tuple[str, ...] = setting(shared.INTERNAL_TARGETS)
    store_url: str = setting(
        text(
            "PENSTOCK_STORE_URL",
            "",
            shown_default="`responses.sqlite3` in `PENSTOCK_DATA_DIR`",
            meaning=(
                "where responses and conversations are kept: `sqlite:///PATH`, "
                "`postgresql://…` for gateways on several machines, or `none`"
            ),
        )
    )
    store_max_responses: int = setting(
        whole_number(
            "PENSTOCK_STORE_MAX_RESPONSES",
            100_000,
            minimum=1,
            maximum=10**9,
            meaning=(
                "responses and conversations that are kept of one tenant; those used longest ago "
                "are dropped"
            ),
        )
    )
    store_max_tenant_bytes: int = setting(
        size(
            "PENSTOCK_STORE_MAX_TENANT_BYTES",
            1024**3,
            minimum=1024,
            meaning="their bytes, likewise",
        )
    )
    store_max_bytes: int = setting(
        size(
            "PENSTOCK_STORE_MAX_BYTES",
            8 * 1024**3,
            minimum=1024,
            meaning="bytes kept of all tenants; beyond it the largest tenant loses its oldest",
        )
    )
    store_max_replay_bytes: int = setting(
        size(
            "PENSTOCK_STORE_MAX_REPLAY_BYTES",
            256 * 1024**2,
            minimum=1024,
            meaning=(
                "answers to requests that came with an `Idempotency-Key`, as they are kept for all "
                "gateways of the store; one tenant has a quarter, and the oldest are dropped"
            ),
        )
    )
    store_max_age_s: float = setting(
        number(
            "PENSTOCK_STORE_MAX_AGE_S",
            30 * 86_400.0,
            minimum=60,
            maximum=10 * 366 * 86_400,
            meaning="what was not used for so long is dropped",
        )
    )
    store_max_context_bytes: int = setting(
        size(
            "PENSTOCK_STORE_MAX_CONTEXT_BYTES",
            10 * 1024 * 1024,
            minimum=1024,
            maximum=_MAX_BODY_BYTES,
            meaning="what one request may draw from the store; over it a 400",
        )
    )
    store_max_queued: int = setting(
        whole_number(
            "PENSTOCK_STORE_MAX_QUEUED",
            1000,
            minimum=1,
            maximum=10**6,
            meaning="background responses of one tenant that have not ended; over it a 429",
        )
    )
    max_background: int = setting(
        whole_number(
            "PENSTOCK_MAX_BACKGROUND",
            16,
            minimum=1,
            maximum=4096,
            meaning="background responses that this gateway makes at a time",
        )
    )
    max_file_bytes: int = setting(
        whole_number(
            "PENSTOCK_MAX_FILE_BYTES",
            200 * 2**20,
            minimum=0,
            maximum=2**36,
            meaning="largest uploaded file; 0 switches files and batches off",
        )
    )
    max_files_bytes: int = setting(
        whole_number(
            "PENSTOCK_MAX_FILES_BYTES",
            2 * 2**30,
            minimum=1,
            maximum=2**44,
            meaning="all files of one tenant together; over it an upload is a 400",
        )
    )
    max_files: int = setting(
        whole_number(
            "PENSTOCK_MAX_FILES",
            1000,
            minimum=1,
            maximum=100_000,
            meaning="files that one tenant may have at a time",
        )
    )
    max_file_age_s: float = setting(
        number(
            "PENSTOCK_MAX_FILE_AGE_S",
            30 * 86_400.0,
            minimum=3600,
            maximum=10 * 365 * 86_400,
            meaning="how long files, and batches that have ended, are kept",
        )
    )
    max_batch_requests: int = setting(
        whole_number(
            "PENSTOCK_MAX_BATCH_REQUESTS",
            32,
            minimum=1,
            maximum=4096,
            meaning="lines of batches under way at a time, where the engines have room for them",
        )
    )
    batch_share: float = setting(
        number(
            "PENSTOCK_BATCH_SHARE",
            0.75,
            minimum=0.01,
            maximum=2,
            meaning=(
                "the share of what an engine runs at a time that lines of batches may be; over 1 "
                "some wait in the engine"
            ),
        )
    )
    strict_fields: bool = setting(shared.STRICT_FIELDS)
    trace_ratio: float = setting(
        number(
            "PENSTOCK_TRACE_RATIO",
            1.0,
            minimum=0,
            maximum=1,
            meaning="of all requests, those whose traces are told to `PENSTOCK_OTLP_ENDPOINT`",
        )
    )
    trace_clients: str = setting(
        choice(
            "PENSTOCK_TRACE_CLIENTS",
            "link",
            CLIENT_TRACES,
            meaning=(
                "what becomes of a client's `traceparent`: `link` begins a trace of the server's "
                "own and links to the client's, `parent` goes on with the client's, which belongs "
                "to servers whose clients are trusted, `ignore` ignores it"
            ),
        )
    )
    access_log: bool = setting(
        switch("PENSTOCK_ACCESS_LOG", True, meaning="a log line for every request")
    )
    log_level: str = setting(shared.LOG_LEVEL)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "GatewaySettings":
        """The settings in a mapping such as `os.environ`.

        Raises:
            ConfigurationError: A setting is missing or bad; the message names it.
        """
        secured = shared.KEY_DIR.read(environ) is not None
        given_require_keys = _REQUIRE_KEYS.find(environ)
        on_loopback = is_loopback(shared.HOST.read(environ))
        settings = read_settings(
            cls,
            environ,
            engine_endpoint=bind_endpoint(environ, "engine", secured=secured),
            auth_endpoint=bind_endpoint(environ, "auth", secured=secured),
            toolparser_endpoint=bind_endpoint(environ, "toolparser", secured=secured),
            require_keys=not on_loopback if given_require_keys is None else given_require_keys,
        )
        settings.check()
        return settings

    @property
    def aliases(self) -> dict[str, str]:
        """The models that further names stand for."""
        pairs = (word.partition("=") for word in self.model_aliases)
        return {name: model for name, _, model in pairs}

    @property
    def thinking_budget_by_effort(self) -> dict[str, int]:
        """Tokens of reasoning by effort."""
        pairs = (word.partition("=") for word in self.thinking_budgets)
        return {effort: int(number) for effort, _, number in pairs}

    @property
    def fallbacks(self) -> dict[str, tuple[str, ...]]:
        """Who generates for a model that can't, in order."""
        pairs = (word.partition("=") for word in self.model_fallbacks)
        return {model: tuple(stand_ins.split("+")) for model, _, stand_ins in pairs}

    @property
    def mcp_urls(self) -> dict[str, str]:
        """The MCP servers by their labels."""
        pairs = (word.partition("=") for word in self.mcp_servers)
        return {label: url for label, _, url in pairs}

    def check(self) -> None:
        """What no setting can say alone: without keys only a loopback address may be served.

        Raises:
            ConfigurationError: Others would be served without keys, or there is no such store.
        """
        self.check_edge(requires_keys=self.require_keys)
        if self.metrics_port and self.metrics_port == self.port and self.uds is None:
            raise ConfigurationError(
                f"PENSTOCK_METRICS_PORT {self.metrics_port} is PENSTOCK_PORT, too; take another."
            )
        if self.store_url not in ("", "none") and not self.store_url.startswith(STORE_SCHEMES):
            raise ConfigurationError(
                "PENSTOCK_STORE_URL must be `none` or begin with one of "
                f"{', '.join(STORE_SCHEMES)}."
            )
        if not self.require_keys and not is_loopback(self.host):
            raise ConfigurationError(
                f"PENSTOCK_REQUIRE_KEYS is false, but PENSTOCK_HOST {self.host} can be reached by "
                "others; require keys or serve 127.0.0.1."
            )
