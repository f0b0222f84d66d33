"""The settings that several packages read, or the runtime itself; others stand in `config.py`.

The command line may import no worker, so what it offers for workers is declared here, for both.
"""

import ipaddress
from pathlib import Path

from protocol.runtime.lifetime import PARENT_PID_SETTING, RUN_DIR_SETTING
from protocol.runtime.setting_kinds import UnfitValueError
from protocol.runtime.settings import (
    Setting,
    choice,
    file_path,
    number,
    size,
    switch,
    text,
    whole_number,
    words,
)
from protocol.wire.endpoints import ENDPOINT_SETTINGS
from protocol.wire.keys import KEY_DIR_SETTING
from protocol.wire.readiness import READY_FILE_SETTING

DTYPES = ("auto", "float32", "bfloat16", "int8", "int4")
BACKENDS = ("auto", "xla", "cpu_native")
KV_DTYPES = ("auto", "float32", "bfloat16", "int8")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("json", "human")

MODEL_PATH = text(
    "PENSTOCK_MODEL_PATH",
    None,
    aliases=("MODEL_PATH",),
    option="MODEL",
    shown_default="the bundled model",
    meaning=(
        "a folder, a GGUF file or a Hugging Face id (`org/model`, `hf:org/model:Q4_K_M`); for an "
        "engine worker a local folder or GGUF file"
    ),
)
MODEL_NAME = text(
    "PENSTOCK_MODEL_NAME",
    None,
    aliases=("MODEL_NAME",),
    option="--model-name",
    shown_default="folder or id",
    meaning="public name of the one model",
)
TOKENIZER_PATH = file_path(
    "PENSTOCK_TOKENIZER_PATH",
    None,
    aliases=("TOKENIZER_PATH",),
    option="--tokenizer",
    shown_default="the model's",
    meaning="folder of another tokenizer",
)
LORA = file_path(
    "PENSTOCK_LORA",
    None,
    option="--lora",
    shown_default="none",
    meaning="folder of a LoRA adapter (PEFT), merged into the model's weights when it is loaded",
)
TOOL_FORMAT = text(
    "PENSTOCK_TOOL_FORMAT",
    None,
    option="--tool-format",
    shown_default="from the template",
    meaning="name of the model's format of tool calls, or `none`",
)
REASONING_FORMAT = text(
    "PENSTOCK_REASONING_FORMAT",
    None,
    option="--reasoning-format",
    shown_default="from the template",
    meaning="name of the model's format of reasoning, or `none`",
)
HOST = text("PENSTOCK_HOST", "127.0.0.1", option="--host", meaning="address of the HTTP server")
PORT = whole_number(
    "PENSTOCK_PORT",
    8000,
    minimum=0,
    maximum=65535,
    option="--port",
    meaning="port of the HTTP server; 0 takes a free one",
)
METRICS_PORT = whole_number(
    "PENSTOCK_METRICS_PORT",
    0,
    minimum=0,
    maximum=65535,
    option="--metrics-port",
    shown_default="0: none",
    meaning=(
        "a further port of `PENSTOCK_HOST` that is this gateway's alone, with `/metrics`, `/load`, "
        "`/version` and the probes; of `--gateways N` the second one takes the next port, and so on"
    ),
)
UDS = file_path(
    "PENSTOCK_UDS",
    None,
    option="--uds",
    meaning="path of a Unix socket that HTTP is served on, instead of address and port",
)
TLS_CERT_FILE = file_path(
    "PENSTOCK_TLS_CERT_FILE",
    None,
    option="--tls-cert-file",
    meaning="certificate chain (PEM) with which HTTPS is served instead of HTTP",
)
TLS_KEY_FILE = file_path(
    "PENSTOCK_TLS_KEY_FILE",
    None,
    option="--tls-key-file",
    meaning="private key (PEM, without a passphrase) of that certificate",
)
DATA_DIR = file_path(
    "PENSTOCK_DATA_DIR",
    Path("~/.local/share/penstock"),
    option="--data-dir",
    meaning="folder of keys and usage (SQLite), outbox, first admin key",
)
DTYPE = choice(
    "PENSTOCK_DTYPE",
    "auto",
    DTYPES,
    option="--dtype",
    meaning=(
        "type of the weights: `int8` and `int4` are made from the checkpoint's once, kept in the "
        "weights cache, and change what the model says a little (docs/quality.md); `int4` needs "
        "the native backend"
    ),
)
BACKEND = choice(
    "PENSTOCK_BACKEND",
    "auto",
    BACKENDS,
    option="--backend",
    meaning=(
        "what computes the model: `xla` everywhere, `cpu_native` by C++ kernels on CPUs, `auto` by "
        "the kernels wherever they cover a block and by xla elsewhere (docs/backends.md)"
    ),
)
KV_DTYPE = choice(
    "PENSTOCK_KV_DTYPE",
    "auto",
    KV_DTYPES,
    option="--kv-dtype",
    meaning=(
        "type of keys and values in the KV cache; `auto`: float32 beside float32 weights, else "
        "bfloat16; `int8` holds nearly twice as many tokens, and changes what the model says a "
        "little (docs/quality.md)"
    ),
)
MAX_MODEL_LEN = whole_number(
    "PENSTOCK_MAX_MODEL_LEN",
    None,
    minimum=2,
    option="--max-model-len",
    shown_default="what the model was made for and the KV memory holds",
    meaning="tokens of prompt and output together",
)
MAX_NUM_SEQS = whole_number(
    "PENSTOCK_MAX_NUM_SEQS",
    None,
    minimum=1,
    maximum=256,
    option="--max-num-seqs",
    shown_default="32; fewer where recurrent states of so many take half of the KV memory",
    meaning="requests that run together in one engine",
)
THREADS = whole_number(
    "PENSTOCK_THREADS",
    None,
    minimum=1,
    maximum=1024,
    option="--threads",
    shown_default=(
        "the cores that it may use; `penstock serve` divides them among the engines it starts"
    ),
    meaning="threads that one engine computes with, at most the cores that it may use",
)
KV_MEMORY = size(
    "PENSTOCK_KV_MEMORY",
    None,
    minimum=1,
    option="--kv-memory",
    shown_default=(
        "30% of the memory that is free to it; on an accelerator 85% of what weights and programs"
        " leave"
    ),
    meaning="memory of one engine's KV cache, such as 2GiB",
)
BLOCK_SIZE = whole_number(
    "PENSTOCK_BLOCK_SIZE",
    None,
    minimum=1,
    maximum=1024,
    option="--block-size",
    shown_default="32; up to 256 where recurrent states are large",
    meaning="tokens of a KV block, which prompts share whole",
)
DETERMINISTIC = switch(
    "PENSTOCK_DETERMINISTIC",
    False,
    option="--deterministic/--no-deterministic",
    meaning="bitwise equal results in any batch; slower",
)
STRICT_FIELDS = switch(
    "PENSTOCK_STRICT_FIELDS",
    False,
    option="--strict-fields/--ignore-fields",
    meaning="refuse request fields that no schema knows, instead of listing them",
)
TOOLS = switch(
    "PENSTOCK_TOOLS",
    True,
    option="--tools/--no-tools",
    meaning=(
        "whether models may be given tools, and tools of this server be run; off, both are refused"
    ),
)


def _network(word: str) -> str:
    try:
        return str(ipaddress.ip_network(word, strict=False))
    except ValueError:
        raise UnfitValueError(word, "addresses and networks such as 10.0.0.0/8") from None


INTERNAL_TARGETS = words(
    "PENSTOCK_INTERNAL_TARGETS",
    each=_network,
    meaning=(
        "addresses and networks (such as `10.0.0.0/8`) that are not public and that webhooks, a "
        "token issuer's keys and MCP servers may be at nevertheless, also over plain http"
    ),
)
DRAIN_TIMEOUT_S = number(
    "PENSTOCK_DRAIN_TIMEOUT_S",
    30.0,
    minimum=0,
    maximum=86_400,
    option="--drain-timeout",
    key="drain_timeout_s",
    meaning="seconds that running work may take after SIGTERM",
)
LOG_LEVEL = choice(
    "PENSTOCK_LOG_LEVEL",
    "info",
    LOG_LEVELS,
    option="--log-level",
    shown_default="warning; info for single processes",
    meaning="the least important log lines that are written",
)

ENGINE_ENDPOINT = text(
    ENDPOINT_SETTINGS["engine"],
    None,
    meaning=(
        "where the gateway binds and engines dial: `ipc:///path` or `tcp://host:port`; for workers "
        "a comma list of gateways"
    ),
)
AUTH_ENDPOINT = text(ENDPOINT_SETTINGS["auth"], None, meaning="the same for the auth worker")
TOOLPARSER_ENDPOINT = text(
    ENDPOINT_SETTINGS["toolparser"], None, meaning="the same for parser workers"
)
KEY_DIR = file_path(
    KEY_DIR_SETTING,
    None,
    meaning="folder of CURVE keys from `penstock keygen`; required for tcp beyond loopback",
)
ADMIN_KEY = text(
    "PENSTOCK_ADMIN_KEY",
    None,
    meaning=(
        "the admin key, for the auth worker and `penstock keys`; a weak one is refused. Without it "
        "one is made and written to `DATA_DIR/admin.key`"
    ),
)
ADMIN_KEY_FILE = file_path(
    "PENSTOCK_ADMIN_KEY_FILE",
    None,
    meaning="a file that holds the admin key, such as a mounted secret; not both",
)
DATABASE_URL = text(
    "PENSTOCK_DATABASE_URL",
    None,
    meaning=(
        "a PostgreSQL database for keys, limits and usage, which several auth workers can share, "
        "`postgresql://user:password@host/database?sslmode=verify-full`; without it they are in "
        "`DATA_DIR/auth.sqlite3`"
    ),
)
DATABASE_URL_FILE = file_path(
    "PENSTOCK_DATABASE_URL_FILE",
    None,
    meaning="a file that holds the URL of the database, such as a mounted secret; not both",
)
AUDIT_KEY_FILE = file_path(
    "PENSTOCK_AUDIT_KEY_FILE",
    None,
    shown_default="`DATA_DIR/audit.key`",
    meaning=(
        "a file with the key that checkpoints of the audit log are signed with, 64 hexadecimal "
        "digits; auth workers that share a database should share it"
    ),
)
LOG_FORMAT = choice(
    "PENSTOCK_LOG_FORMAT",
    "",
    LOG_FORMATS,
    shown_default="by terminal",
    meaning="form of log lines",
)
OTLP_ENDPOINT = text(
    "PENSTOCK_OTLP_ENDPOINT",
    None,
    shown_default="none",
    meaning=(
        "URL of an OpenTelemetry collector that takes traces over HTTP (OTLP), such as "
        "`http://localhost:4318`; headers and certificates of it by OpenTelemetry's own variables, "
        "`OTEL_EXPORTER_OTLP_HEADERS` and the like"
    ),
)
PARENT_PID = whole_number(
    PARENT_PID_SETTING,
    None,
    meaning="set by the supervisor: the process ends when that one is gone",
)
RUN_DIR = file_path(
    RUN_DIR_SETTING, None, meaning="set by the supervisor: folder of sockets, removed at the end"
)

SHARED: tuple[Setting[object], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Setting)
)
"""All of the above."""

READY_FILE = file_path(
    READY_FILE_SETTING,
    None,
    meaning=(
        "a file that a worker keeps while a gateway gives it new work; `python -m protocol ready` "
        "looks at it. One for each worker"
    ),
)
"""Not shared: each worker has its own file."""
