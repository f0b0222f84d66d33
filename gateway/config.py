"""The gateway's settings, read once from the environment and frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import ConfigurationError
from protocol.runtime.settings import SettingsReader
from protocol.wire.codec import MAX_MESSAGE_BYTES
from protocol.wire.endpoints import Endpoint, bind_endpoint, is_loopback

ROUTINGS = ("prefix", "load")
LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT_MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_BODY_BYTES = MAX_MESSAGE_BYTES // 2
"""A body travels on in one message of the wire, where escapes and the tools add to it."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class GatewaySettings:
    """Everything that can be set about a gateway.

    Attributes:
        engine_endpoint: Where engines dial in; `auth_endpoint`, `toolparser_endpoint` likewise.
        host: The HTTP address.
        port: The HTTP port; 0 takes a free one.
        port_file: Where the bound port is written, for whoever asked for port 0.
        require_keys: Without keys only a loopback address may be served.
        allowed_hosts: Names, beside the loopback ones, that `Host` and `Origin` may hold when no
            key is needed.
        models: Readiness waits for an engine of each; more may come by themselves.
        data_dir: Holds the outbox of settlements.
        share_data_dir: Other gateways use `data_dir` as well; each takes a folder in it.
        max_body_bytes: Longer request bodies are refused.
        max_queue: Requests of one model that wait for an engine; more are refused.
        max_outbox: Settlements that wait for the auth worker; more refuse new requests.
        request_timeout_s: A request that takes longer ends with a deadline error.
        worker_dead_s: A worker not heard for so long counts as dead.
        stall_timeout_s: A worker with work and no progress for so long counts as dead.
        drain_timeout_s: How long running requests may go on after SIGTERM.
        auth_timeout_s: How long one answer of the auth worker may take.
        ping_interval_s: A stream silent for so long gets a comment, so that proxies keep it open.
        lease_slice_tokens: What a choice reserves at a time when the client set no `max_tokens`.
        tools: Whether models may be given tools, and tools of this server be run.
        tool_timeout_s: How long a tool of this server may run.
        max_tool_processes: Calls of tools of this server that run at a time.
        routing: `prefix` prefers the engine that has a prompt's beginning cached, `load` looks at
            the load alone.
        strict_fields: Refuse fields that no schema knows, instead of listing them.
    """

    engine_endpoint: Endpoint
    auth_endpoint: Endpoint
    toolparser_endpoint: Endpoint
    host: str = "127.0.0.1"
    port: int = 8000
    port_file: Path | None = None
    require_keys: bool = True
    allowed_hosts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    data_dir: Path = field(default_factory=lambda: Path("~/.local/share/penstock").expanduser())
    share_data_dir: bool = False
    key_dir: Path | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    max_queue: int = 512
    max_outbox: int = 10_000
    request_timeout_s: float = 600.0
    worker_dead_s: float = 15.0
    stall_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    auth_timeout_s: float = 5.0
    ping_interval_s: float = 15.0
    lease_slice_tokens: int = 1024
    routing: str = "prefix"
    tools: bool = True
    tool_timeout_s: float = 30.0
    max_tool_processes: int = 4
    strict_fields: bool = False
    log_level: str = "info"
    trusted_proxies: tuple[str, ...] = ()
    max_connections: int = 0
    max_connections_per_address: int = 0
    max_answer_bytes: int = 32 * 1024 * 1024
    access_log: bool = True
    max_bodies_per_caller: int = 8

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "GatewaySettings":
        """The settings in a mapping such as `os.environ`.

        Raises:
            ConfigurationError: A setting is missing or bad; the message names it.
        """
        reader = SettingsReader(environ)
        host = reader.str("PENSTOCK_HOST", cls.host)
        on_loopback = is_loopback(host)
        require_keys = reader.bool("PENSTOCK_REQUIRE_KEYS", not on_loopback)
        if not require_keys and not on_loopback:
            raise ConfigurationError(
                f"PENSTOCK_REQUIRE_KEYS is false, but PENSTOCK_HOST {host} can be reached by "
                "others; require keys or serve 127.0.0.1."
            )
        key_dir = reader.path("PENSTOCK_KEY_DIR")
        secured = key_dir is not None
        return cls(
            engine_endpoint=bind_endpoint(environ, "engine", secured=secured),
            auth_endpoint=bind_endpoint(environ, "auth", secured=secured),
            toolparser_endpoint=bind_endpoint(environ, "toolparser", secured=secured),
            host=host,
            port=reader.int("PENSTOCK_PORT", cls.port, minimum=0, maximum=65535),
            port_file=reader.path("PENSTOCK_PORT_FILE"),
            require_keys=require_keys,
            allowed_hosts=tuple(
                name.lower() for name in reader.words("PENSTOCK_ALLOWED_HOSTS", cls.allowed_hosts)
            ),
            models=reader.words("PENSTOCK_MODELS", cls.models),
            data_dir=reader.path("PENSTOCK_DATA_DIR", Path("~/.local/share/penstock").expanduser()),
            share_data_dir=reader.bool("PENSTOCK_SHARE_DATA_DIR", cls.share_data_dir),
            key_dir=key_dir,
            max_body_bytes=reader.size_bytes(
                "PENSTOCK_MAX_BODY_BYTES", cls.max_body_bytes, minimum=1024, maximum=MAX_BODY_BYTES
            ),
            max_queue=reader.int("PENSTOCK_MAX_QUEUE", cls.max_queue, minimum=1, maximum=10**6),
            max_outbox=reader.int("PENSTOCK_MAX_OUTBOX", cls.max_outbox, minimum=1, maximum=10**6),
            request_timeout_s=reader.float(
                "PENSTOCK_REQUEST_TIMEOUT_S", cls.request_timeout_s, minimum=0.1, maximum=86_400
            ),
            worker_dead_s=reader.float(
                "PENSTOCK_WORKER_DEAD_S", cls.worker_dead_s, minimum=2, maximum=3600
            ),
            stall_timeout_s=reader.float(
                "PENSTOCK_STALL_TIMEOUT_S", cls.stall_timeout_s, minimum=1, maximum=86_400
            ),
            drain_timeout_s=reader.float(
                "PENSTOCK_DRAIN_TIMEOUT_S", cls.drain_timeout_s, minimum=0, maximum=86_400
            ),
            auth_timeout_s=reader.float(
                "PENSTOCK_AUTH_TIMEOUT_S", cls.auth_timeout_s, minimum=0.1, maximum=600
            ),
            ping_interval_s=reader.float(
                "PENSTOCK_PING_INTERVAL_S", cls.ping_interval_s, minimum=0.05, maximum=3600
            ),
            lease_slice_tokens=reader.int(
                "PENSTOCK_LEASE_SLICE_TOKENS", cls.lease_slice_tokens, minimum=16, maximum=2**20
            ),
            routing=reader.choice("PENSTOCK_ROUTING", cls.routing, ROUTINGS),
            tools=reader.bool("PENSTOCK_TOOLS", cls.tools),
            tool_timeout_s=reader.float(
                "PENSTOCK_TOOL_TIMEOUT_S", cls.tool_timeout_s, minimum=0.1, maximum=86_400
            ),
            max_tool_processes=reader.int(
                "PENSTOCK_MAX_TOOL_PROCESSES", cls.max_tool_processes, minimum=1, maximum=256
            ),
            strict_fields=reader.bool("PENSTOCK_STRICT_FIELDS", cls.strict_fields),
            log_level=reader.choice("PENSTOCK_LOG_LEVEL", cls.log_level, LOG_LEVELS),
        )
