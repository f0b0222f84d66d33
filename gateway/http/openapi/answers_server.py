"""What routes about models, tokens and tools answer, MCP, and the probes."""

from typing import Any, Final

from gateway.http.openapi.answers_chat import CALL
from gateway.http.openapi.shapes import (
    ANYTHING,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Answers,
    Schema,
    absent_or,
    either,
    is_exactly,
    list_of,
    map_of,
    one_of,
    or_null,
    record,
    ref,
    struct,
)
from protocol.wire.messages import SamplingDefaults

_OR_TEXT: Final = or_null(TEXT)
_FORMATS: Final[dict[str, Any]] = {
    "tool_format": _OR_TEXT,
    "reasoning_format": _OR_TEXT,
    "format_evidence": TEXT,
}
_METADATA: Final = record(
    architecture=TEXT,
    **{
        f"supports_{name}": FLAG
        for name in (
            *("chat", "completions", "streaming", "function_calling", "reasoning"),
            *("structured_outputs", "logprobs", "fill_in_middle", "embeddings"),
            *("decisions", "classification", "vision"),
        )
    },
)
_CARD: Final[dict[str, Any]] = {
    "id": TEXT,
    "object": is_exactly("model"),
    "created": WHOLE,
    "owned_by": is_exactly("penstock"),
    "root": TEXT,
    "max_model_len": WHOLE,
    "capabilities": list_of(TEXT),
    "metadata": _METADATA,
}
_READINESS: Final = Answers(ref("Readiness"))

SCHEMAS: Final[dict[str, Schema]] = {
    "ModelCard": record(_CARD),
    "Model": record(
        **_CARD,
        architecture=TEXT,
        dtype=TEXT,
        compute=record(
            backend=TEXT,
            weights=TEXT,
            stored_as=_OR_TEXT,
            stored_formats=_OR_TEXT,
            kv=TEXT,
            blocks=list_of(record(block=TEXT, backend=TEXT, reason=_OR_TEXT)),
        ),
        quality=or_null(OBJECT),
        num_parameters=WHOLE,
        fingerprint=TEXT,
        has_chat_template=FLAG,
        **_FORMATS,
        sampling_defaults=record(struct(SamplingDefaults)),
        limits=record(
            max_model_len=WHOLE,
            vocab_size=WHOLE,
            max_logprobs=WHOLE,
            max_num_seqs=WHOLE,
            num_kv_tokens=WHOLE,
            max_choices=WHOLE,
        ),
        embeddings=or_null(record(num_dimensions=WHOLE, pooling=TEXT)),
    ),
    "ModelInfo": record(
        type=is_exactly("model"),
        id=TEXT,
        display_name=TEXT,
        created_at=TEXT,
        lifecycle=is_exactly("active"),
        max_input_tokens=WHOLE,
        max_tokens=WHOLE,
    ),
    "Models": record(object=is_exactly("list"), data=list_of(ref("ModelCard"))),
    "ModelInfoPage": record(
        data=list_of(ref("ModelInfo")), has_more=FLAG, first_id=_OR_TEXT, last_id=_OR_TEXT
    ),
    "Tokens": record(
        count=WHOLE,
        max_model_len=WHOLE,
        tokens=list_of(WHOLE),
        token_strs=or_null(list_of(TEXT)),
    ),
    "TokenizerInfo": {
        "type": "object",
        "description": "Special tokens by their roles, those of the tokenizer's own among them.",
        "properties": {
            "tokenizer_class": TEXT,
            **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _OR_TEXT),
            "model_max_length": or_null(NUMBER),
            "chat_template": _OR_TEXT,
        },
        "additionalProperties": either(TEXT, list_of(TEXT)),
    },
    "Tools": record(
        object=is_exactly("list"),
        data=list_of(
            record(
                type=is_exactly("function"),
                function=record(name=TEXT, description=TEXT, parameters=OBJECT),
            )
        ),
        enabled=FLAG,
        tool_formats=list_of(TEXT),
        reasoning_formats=list_of(TEXT),
        models=list_of(record(id=TEXT, **_FORMATS)),
    ),
    "ToolResult": record(
        object=is_exactly("tool.result"),
        name=TEXT,
        is_error=FLAG,
        result=ANYTHING,
        error=or_null(map_of(TEXT)),
    ),
    "ParsedText": record(
        object=is_exactly("parsed_text"),
        format=_OR_TEXT,
        reasoning_format=_OR_TEXT,
        content=_OR_TEXT,
        reasoning=_OR_TEXT,
        tool_calls=list_of(CALL),
        num_malformed=WHOLE,
    ),
    "McpResult": record(
        jsonrpc=is_exactly("2.0"),
        id=either(TEXT, WHOLE),
        result={"type": "object", "description": "As the method says in MCP."},
    ),
    "Readiness": record(
        status=one_of("ready", "degraded", "starting", "draining"),
        missing=list_of(TEXT),
        models=list_of(record(model=TEXT, ready=FLAG, fingerprints=list_of(TEXT))),
        workers=list_of(
            record(role=TEXT, model=_OR_TEXT, phase=TEXT, fraction=NUMBER, detail=TEXT)
        ),
    ),
    "Metrics": record(
        uptime_seconds=NUMBER,
        total_requests=WHOLE,
        successful_requests=WHOLE,
        failed_requests=WHOLE,
        aborted_requests=WHOLE,
        total_tokens_generated=WHOLE,
        average_tokens_per_second=NUMBER,
        active_requests=WHOLE,
        models_loaded=WHOLE,
        models=list_of(TEXT),
        status=TEXT,
        auth_stats=record(
            connected=FLAG,
            decisions=absent_or(map_of(WHOLE)),
            open_leases=absent_or(or_null(WHOLE)),
        ),
    ),
}
ROUTES: Final[dict[str, Answers]] = {
    "GET /live": Answers(record(status=is_exactly("live"))),
    "GET /ping": Answers(record(status=is_exactly("ok"))),
    "GET /ready": _READINESS,
    "GET /health": _READINESS,
    "GET /metrics": Answers(ref("Metrics")),
    "GET /load": Answers(
        record(
            server_load=WHOLE,
            engines=list_of(record(name=TEXT, model=TEXT, running=WHOLE, waiting=WHOLE)),
        )
    ),
    "GET /version": Answers(record(version=TEXT)),
    "GET /v1/models": Answers(either(ref("Models"), ref("ModelInfoPage"))),
    "GET /v1/models/{model_id}": Answers(either(ref("Model"), ref("ModelInfo"))),
    "POST /tokenize": Answers(ref("Tokens")),
    "POST /detokenize": Answers(record(prompt=TEXT)),
    "GET /tokenizer_info": Answers(ref("TokenizerInfo")),
    "GET /v1/tools": Answers(ref("Tools")),
    "POST /v1/tools/execute": Answers(ref("ToolResult")),
    "POST /v1/parse": Answers(ref("ParsedText")),
    "POST /mcp": Answers(either(ref("McpResult"), ref("McpError"))),
}
