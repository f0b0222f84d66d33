"""What Claude Code, Codex CLI and LangChain send: shapes of their requests, with texts of ours.

Claude Code 2.1 (https://code.claude.com/docs), Codex CLI 0.14x (openai/codex,
codex-rs/codex-api/src/common.rs), LangChain's ChatOpenAI with `use_responses_api`.
"""

import json
from typing import Any, Final

APPLY_PATCH_LARK: Final = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
"""The format of Codex's freeform tool, as openai/codex publishes it."""

CLAUDE_CODE_HEADERS: Final = {
    "accept": "application/json",
    "anthropic-beta": (
        "claude-code-20250219,interleaved-thinking-2025-05-14,thinking-token-count-2026-05-13,"
        "context-management-2025-06-27,prompt-caching-scope-2026-01-05,"
        "mid-conversation-system-2026-04-07,effort-2025-11-24"
    ),
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "user-agent": "claude-cli/2.1.278 (external, cli)",
    "x-api-key": "any",
    "x-app": "cli",
    "x-claude-code-session-id": "123e4567-e89b-12d3-a456-426614174000",
    "x-stainless-helper-method": "stream",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
EPHEMERAL: Final = {"type": "ephemeral", "ttl": "1h"}


def claude_code_turn(model: str, billing: str, **fields: Any) -> dict[str, Any]:
    """A turn of its main loop; `billing` is what changes in its first line."""
    session = {"device_id": "a" * 64, "account_uuid": "", "session_id": "123e4567"}
    return {
        "model": model,
        "max_tokens": 256,
        "stream": True,
        "system": [
            {
                "type": "text",
                "text": (
                    f"x-anthropic-billing-header: cc_version=2.1.278.{billing}; cc_entrypoint=cli;"
                ),
            },
            {"type": "text", "text": "You are an agent of the command line."},
            {"type": "text", "text": "Answer in one line.", "cache_control": EPHEMERAL},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "<system-reminder>\nToday is Monday.\n</system-reminder>",
                    },
                    {
                        "type": "text",
                        "text": "What files are there?",
                        "cache_control": {"type": "ephemeral"},
                    },
                ],
            },
            {"role": "system", "content": "The user sees your texts only."},
        ],
        "tools": [
            {
                "name": "Bash",
                "description": "Runs a command.",
                "input_schema": {
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "type": "object",
                    "properties": {
                        "command": {"type": "string", "description": "The command"},
                        "timeout": {"type": "number"},
                    },
                    "required": ["command"],
                    "additionalProperties": False,
                },
            },
            {
                "name": "Read",
                "description": "Reads a file.",
                "input_schema": {
                    "type": "object",
                    "properties": {"file_path": {"type": "string"}},
                    "required": ["file_path"],
                },
                "eager_input_streaming": True,
                "cache_control": {"type": "ephemeral"},
            },
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "tool_choice": {"type": "auto"},
        "metadata": {"user_id": json.dumps(session)},
        "thinking": {"type": "adaptive", "display": "summarized"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        **fields,
    }


def claude_code_title(model: str) -> dict[str, Any]:
    """It asks for the title of a session beside its first turn."""
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    }
    return {
        "model": model,
        "max_tokens": 64,
        "stream": True,
        "temperature": 1,
        "system": [{"type": "text", "text": "Write a title of three words."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "List files."}]}],
        "tools": [],
        "metadata": {"user_id": "{}"},
        "thinking": {"type": "disabled"},
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }


CODEX_HEADERS: Final = {
    "accept": "text/event-stream",
    "authorization": "Bearer any",
    "originator": "codex_cli_rs",
    "session-id": "019b0000-0000-7000-8000-000000000000",
    "thread-id": "019b0000-0000-7000-8000-000000000000",
    "user-agent": "codex_cli_rs/0.144.1 (Debian 12.0.0; x86_64) xterm-256color",
    "x-client-request-id": "019b0000-0000-7000-8000-000000000000",
    "x-codex-beta-features": "terminal_resize_reflow",
    "x-codex-turn-metadata": '{"session_id":"019b0000","turn_id":"1"}',
    "x-codex-window-id": "019b0000-0000-7000-8000-000000000000:0",
}


def _function(name: str, required: str, **properties: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": f"Is called {name}.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {key: {"type": kind} for key, kind in properties.items()},
            "required": [required],
            "additionalProperties": False,
        },
    }


def codex_turn(model: str, **fields: Any) -> dict[str, Any]:
    """A turn of its loop, as HTTP has it; its WebSocket adds the type."""
    return {
        "model": model,
        "instructions": "You are a coding agent.",
        "input": [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "<permissions>none</permissions>"}],
            },
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "# AGENTS.md\n\nUse tabs."},
                    {"type": "input_text", "text": "<environment_context></environment_context>"},
                ],
            },
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "Fix the bug."}],
            },
        ],
        "tools": [
            _function("exec_command", "cmd", cmd="string", workdir="string", tty="boolean"),
            _function("write_stdin", "session_id", session_id="number", chars="string"),
            {
                "type": "custom",
                "name": "apply_patch",
                "description": "Edits files. This is a FREEFORM tool: no JSON.",
                "format": {"type": "grammar", "syntax": "lark", "definition": APPLY_PATCH_LARK},
            },
            {"type": "web_search", "external_web_access": False, "search_content_types": ["text"]},
            {
                "type": "namespace",
                "name": "mcp__docs",
                "description": "A server of documents.",
                "tools": [_function("find", "query", query="string")],
            },
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto", "context": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "019b0000-0000-7000-8000-000000000000",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "0", "session_id": "019b0000"},
        **fields,
    }


def langchain_turn(model: str) -> dict[str, Any]:
    """A second turn: it sends an answer back as blocks of output."""
    return {
        "model": model,
        "input": [
            {"type": "message", "role": "system", "content": "Be brief."},
            {"type": "message", "role": "user", "content": "Hello."},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
            },
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "What is 2 + 3?"}],
            },
        ],
        "tools": [_function("get_weather", "city", city="string")],
        "stream": True,
    }
