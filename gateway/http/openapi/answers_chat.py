"""What chat and completions answer."""

from typing import Any, Final

from gateway.http.openapi.shapes import (
    NULL,
    NUMBER,
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
)

CALL: Final = either(ref("FunctionCall"), ref("CustomCall"))
_CHAT_ENDS: Final = one_of("stop", "length", "tool_calls", "function_call")
_ENDS: Final = one_of("stop", "length")
_TOKEN: Final[dict[str, Any]] = {"token": TEXT, "logprob": NUMBER, "bytes": list_of(WHOLE)}
_PROMPT_LOGPROBS: Final = list_of(
    or_null(map_of(record(logprob=NUMBER, rank=or_null(WHOLE), decoded_token=TEXT)))
)
_CUSTOM: Final = absent_or(record(name=absent_or(TEXT), input=TEXT))
_FUNCTION: Final = absent_or(record(name=absent_or(TEXT), arguments=TEXT))


def _head(kind: str) -> dict[str, Any]:
    return {
        "id": TEXT,
        "object": is_exactly(kind),
        "created": WHOLE,
        "model": TEXT,
        "system_fingerprint": TEXT,
    }


_ASKED_FOR: Final[dict[str, Any]] = {
    "budget_warnings": absent_or(list_of(ref("BudgetWarning"))),
    "timings": absent_or(ref("Timings")),
}
_OF_PROMPT: Final[dict[str, Any]] = {
    "prompt_token_ids": absent_or(list_of(WHOLE)),
    "prompt_logprobs": absent_or(_PROMPT_LOGPROBS),
}
_OF_CHOICE: Final[dict[str, Any]] = {
    "stop_reason": absent_or(either(TEXT, WHOLE)),
    "token_ids": absent_or(list_of(WHOLE)),
}
_CHUNK: Final[dict[str, Any]] = {"usage": absent_or(or_null(ref("Usage"))), **_ASKED_FOR}

SCHEMAS: Final[dict[str, Schema]] = {
    "Usage": record(
        prompt_tokens=WHOLE,
        completion_tokens=WHOLE,
        total_tokens=WHOLE,
        prompt_tokens_details=record(cached_tokens=WHOLE, audio_tokens=WHOLE),
        completion_tokens_details=record(
            reasoning_tokens=WHOLE,
            audio_tokens=WHOLE,
            accepted_prediction_tokens=WHOLE,
            rejected_prediction_tokens=WHOLE,
        ),
    ),
    "BudgetWarning": record(
        type=one_of("budget_warning", "budget_exceeded", "budget_used_up"),
        budget_id=TEXT,
        budget_name=TEXT,
        scope=TEXT,
        measure=TEXT,
        window=TEXT,
        message=TEXT,
        used=WHOLE,
        amount=WHOLE,
        usage_percentage=NUMBER,
        threshold_percentage=NUMBER,
        resets_in_s=or_null(WHOLE),
    ),
    "Timings": record(
        first_token_time=or_null(NUMBER), processing_time=NUMBER, tokens_per_second=NUMBER
    ),
    "FunctionCall": record(
        id=TEXT, type=is_exactly("function"), function=record(name=TEXT, arguments=TEXT)
    ),
    "CustomCall": record(id=TEXT, type=is_exactly("custom"), custom=record(name=TEXT, input=TEXT)),
    "TokenLogprob": record(**_TOKEN, top_logprobs=list_of(record(**_TOKEN))),
    "ChatLogprobs": record(content=list_of(ref("TokenLogprob")), refusal=NULL),
    "CompletionLogprobs": record(
        tokens=list_of(TEXT),
        token_logprobs=list_of(or_null(NUMBER)),
        top_logprobs=list_of(or_null(map_of(NUMBER))),
        text_offset=list_of(WHOLE),
    ),
    "AssistantMessage": record(
        role=is_exactly("assistant"),
        content=or_null(TEXT),
        refusal=NULL,
        reasoning_content=absent_or(TEXT),
        function_call=absent_or(record(name=TEXT, arguments=TEXT)),
        tool_calls=absent_or(list_of(CALL)),
    ),
    "ChatCompletion": record(
        **_head("chat.completion"),
        choices=list_of(
            record(
                index=WHOLE,
                message=ref("AssistantMessage"),
                logprobs=or_null(ref("ChatLogprobs")),
                finish_reason=_CHAT_ENDS,
                **_OF_CHOICE,
            )
        ),
        usage=ref("Usage"),
        **_OF_PROMPT,
        **_ASKED_FOR,
    ),
    "ChatDelta": record(
        role=absent_or(is_exactly("assistant")),
        content=absent_or(TEXT),
        reasoning_content=absent_or(TEXT),
        function_call=_FUNCTION,
        tool_calls=absent_or(
            list_of(
                record(
                    index=WHOLE,
                    id=absent_or(TEXT),
                    type=absent_or(one_of("function", "custom")),
                    function=_FUNCTION,
                    custom=_CUSTOM,
                )
            )
        ),
    ),
    "ChatCompletionChunk": record(
        **_head("chat.completion.chunk"),
        choices=list_of(
            record(
                index=WHOLE,
                delta=ref("ChatDelta"),
                logprobs=or_null(ref("ChatLogprobs")),
                finish_reason=or_null(_CHAT_ENDS),
                **_OF_CHOICE,
            )
        ),
        prompt_token_ids=absent_or(list_of(WHOLE)),
        **_CHUNK,
    ),
    "Completion": record(
        **_head("text_completion"),
        choices=list_of(
            record(
                index=WHOLE,
                text=TEXT,
                logprobs=or_null(ref("CompletionLogprobs")),
                finish_reason=_ENDS,
                **_OF_CHOICE,
                **_OF_PROMPT,
            )
        ),
        usage=ref("Usage"),
        **_ASKED_FOR,
    ),
    "CompletionChunk": record(
        **_head("text_completion"),
        choices=list_of(
            record(
                index=WHOLE,
                text=TEXT,
                logprobs=or_null(ref("CompletionLogprobs")),
                finish_reason=or_null(_ENDS),
                **_OF_CHOICE,
                prompt_token_ids=absent_or(list_of(WHOLE)),
            )
        ),
        **_CHUNK,
    ),
}
_FAILS: Final = ref("Error")
ROUTES: Final[dict[str, Answers]] = {
    "POST /v1/chat/completions": Answers(
        ref("ChatCompletion"), either(ref("ChatCompletionChunk"), _FAILS)
    ),
    "POST /v1/completions": Answers(ref("Completion"), either(ref("CompletionChunk"), _FAILS)),
}
