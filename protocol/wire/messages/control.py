"""The life of a worker on the wire: ready, heartbeats, drain, goodbye, failures, pings."""

from typing import Literal

from protocol.errors import ErrorCode
from protocol.version import ProtocolVersion
from protocol.wire.messages.base import Count, Message, Part

Role = Literal["engine", "auth", "toolparser"]
"""The roles that dial in; a gateway binds one ROUTER for each."""

Phase = Literal["starting", "downloading", "loading", "compiling", "ready", "draining"]
"""What a worker is doing. Only `ready` takes work; the first four have bounds of their own."""


class Load(Part, frozen=True):
    """How busy a worker is, as routing wants to know it."""

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    tokens_per_s: float = 0.0


class Credits(Part, frozen=True):
    """How much one gateway may have unfinished at one engine at a time.

    Absolute windows, not increments, so that a lost message can't leak credit. Work beyond them is
    refused with `credit_exceeded` before any output.
    """

    max_requests: int
    max_tokens: int


class SamplingDefaults(Part, frozen=True):
    """What the checkpoint's `generation_config.json` recommends where a client says nothing.

    None means that the checkpoint says nothing either; `temperature` is 0 when it asks for greedy.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class BlockPlacement(Part, frozen=True):
    """Where one kind of a decoder's blocks is computed.

    Attributes:
        block: `embedding`, `attention`, `mlp` or `head`.
        backend: `xla` or `cpu_native`.
        reason: Why not, or not everywhere, by the native backend; empty where there is none.
    """

    block: str
    backend: str
    reason: str = ""


class EngineOffer(Part, frozen=True):
    """What an engine serves.

    Attributes:
        model: The public model name.
        fingerprint: Hash of weights, tokenizer, template, dtype; engines of one model must agree.
        resume_version: Streams move only between engines whose resume versions are equal.
        max_model_len: Prompt and output together, tokens.
        created: Unix time of the checkpoint, seconds, for `/v1/models`.
        architecture: The checkpoint's architecture, `LlamaForCausalLM`.
        dtype: How weights are held, `float32`, `bfloat16`, `int8`, `int4`.
        has_chat_template: Whether chat requests can be served.
        tool_format: Detected from the template, or configured; None when none was found.
        reasoning_format: Likewise for reasoning.
        format_evidence: Why these formats were chosen, one sentence.
        vocab_size: Token ids at or above it are refused.
        block_size: Tokens a KV block.
        capabilities: `chat`, `completions`, `tools`, …
        sampling_defaults: For requests that leave sampling parameters out.
        max_num_seqs: Requests that run at a time.
        num_kv_tokens: Tokens that the KV cache holds.
        max_logprobs: The most likely tokens that are reported beside one.
        num_embedding_dimensions: Numbers of a vector; 0 when it serves no embeddings.
        pooling: How token vectors become one: `mean`, `cls`, `last`; empty without embeddings.
        max_token_bytes: The longest text of a token in UTF-8 bytes, so that a hopeless prompt can
            be refused by its length; 0 when the engine doesn't tell.
        stored_as: How the model's files keep most weights where these are no plain numbers: `GGUF
            Q4_K_M`, `awq`; empty otherwise.
        stored_formats: Which matrices are computed with as the files keep them, and in what; empty
            where all are of `dtype`.
        backend: What computes the model, `xla`, `cpu_native`, with instructions where it has any.
        kv_dtype: How keys and values are held.
        placements: Where each kind of block runs.
        quality_json: What `penstock quality` measured of these weights, a JSON object; empty when
            nobody did.
        tokenizer_info_json: What `GET /tokenizer_info` answers, a JSON object; empty when the
            engine doesn't tell.
        prompt_names: Prompts that an Embed may name.
        max_prompt_bytes: Of the longest of them, and of the one that stands before texts by
            default.
        labels: Of a classifier, in the order of its logits; empty for other models.
        problem_type: Of a classifier: `single_label`, `multi_label` or `regression`.
        rerank_wording: How the model was trained to be asked whether a document answers a query;
            empty for the gateway's own words.
    """

    model: str
    fingerprint: str
    resume_version: int
    max_model_len: int
    created: int
    credits: Credits
    architecture: str = ""
    dtype: str = ""
    has_chat_template: bool = False
    tool_format: str | None = None
    reasoning_format: str | None = None
    format_evidence: str = ""
    vocab_size: int = 0
    block_size: int = 0
    num_parameters: int = 0
    capabilities: tuple[str, ...] = ()
    sampling_defaults: SamplingDefaults = SamplingDefaults()
    max_num_seqs: int = 0
    num_kv_tokens: int = 0
    max_logprobs: int = 0
    num_embedding_dimensions: int = 0
    pooling: str = ""
    max_token_bytes: int = 0
    tokenizer_info_json: str = ""
    backend: str = ""
    kv_dtype: str = ""
    placements: tuple[BlockPlacement, ...] = ()
    quality_json: str = ""
    prompt_names: tuple[str, ...] = ()
    max_prompt_bytes: Count = 0
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    rerank_wording: str = ""
    stored_as: str = ""
    stored_formats: str = ""


class AuthOffer(Part, frozen=True):
    """What an auth worker serves: the epoch of its lease on the database.

    Attributes:
        database_id: Epochs of one id can be compared: a gateway that has seen a later one asks the
            worker of an earlier one nothing and takes no grant of it. Empty where only one auth
            worker can be at a time, and from before 1.4.
    """

    epoch: int
    allow_anonymous: bool = False
    database_id: str = ""


class ParserOffer(Part, frozen=True):
    """What a parser worker serves: the formats by name, aliases included."""

    tool_formats: tuple[str, ...]
    reasoning_formats: tuple[str, ...]


class Ready(Message, frozen=True, tag="ready"):
    """A worker announces itself, on connecting and after each change of what it serves.

    The first message of every connection. Sent with a phase other than `ready` while the worker
    still loads, so that the gateway can show progress; it takes work once the phase is `ready`
    and the offer of its role is there.

    Attributes:
        incarnation: Random, of the process. It tells a worker that connects again from another one
            that was given the same instance id.
        host: The name of the machine or container that it runs on, for people.
    """

    role: Role
    instance_id: str
    protocol_version: ProtocolVersion
    build: str
    phase: Phase = "starting"
    engine: EngineOffer | None = None
    auth: AuthOffer | None = None
    parser: ParserOffer | None = None
    incarnation: str = ""
    host: str = ""


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Sent both ways each second from an I/O thread that neither compiles nor generates.

    Attributes:
        instance_id: The sender's; a gateway whose instance changed is another gateway, and the
            worker drops what the old one wanted and announces itself again.
        phase: The sender's phase.
        progress_counter: Grows with each step of work; standing still with work running = hung.
        fraction: Of the phase, 0 to 1, for progress bars; negative when unknown.
        detail: What the phase is about, for people (`weights`, `program 3 of 11`).
        load: The sender's load.
        credits: The receiver's credit at this engine.
        protocol_version: Of the sender; None from before 1.1. Messages that came with a later
            minor are sent to nobody older.
        takes_work: From a gateway: whether it gives this worker new work; None from before 1.2.
    """

    instance_id: str
    phase: Phase
    progress_counter: int = 0
    fraction: float = -1.0
    detail: str = ""
    load: Load = Load()
    credits: Credits | None = None
    protocol_version: ProtocolVersion | None = None
    takes_work: bool | None = None


class Drain(Message, frozen=True, tag="drain"):
    """No new work, please: from a worker that is about to stop, or to one that should."""

    timeout_s: float


class Goodbye(Message, frozen=True, tag="goodbye"):
    """The last message of a connection, either way, with the reason.

    Attributes:
        has_failed: The sender broke; what it worked on may have been the cause.
        is_hung: The receiver has work and makes no progress; if that lasts, it had better end and
            be started again.
    """

    reason: str = ""
    has_failed: bool = False
    is_hung: bool = False


class Refused(Message, frozen=True, tag="refused"):
    """The gateway will not work with this worker; the worker logs it and exits or retries."""

    code: ErrorCode
    message: str


class Ping(Message, frozen=True, tag="ping"):
    """Anybody may check that a gateway's socket answers; no Ready is needed."""

    nonce: int


class Pong(Message, frozen=True, tag="pong"):
    """The answer to a Ping, with the same nonce."""

    nonce: int
    protocol_version: ProtocolVersion


class Failure(Message, frozen=True, tag="failure"):
    """A request's terminal event when it went wrong; the message is safe for clients.

    Attributes:
        request_id: The request; empty when a frame could not be decoded.
        choice: The choice that ended, -1 for the whole request (a failed Prepare, OpenParse …).
        attempt: The attempt that the sender was working on.
        param: The request field that is wrong, if one is.
        usage: What was computed before the failure; it is charged.
        retry_after_s: When trying again makes sense.
    """

    request_id: str
    code: ErrorCode
    message: str
    choice: int = -1
    attempt: int = 0
    param: str | None = None
    usage: "Usage | None" = None
    retry_after_s: float | None = None


class Usage(Part, frozen=True):
    """Tokens of one choice; what was computed but discarded is not in it."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0
