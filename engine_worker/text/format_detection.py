"""Finds out from a model's own files how it spells tool calls and reasoning."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DetectedFormats:
    """Formats by the names that parser workers know them by.

    Attributes:
        tool_format: None when there is none, or none that is known.
        reasoning_format: Likewise.
        evidence: Why, in one sentence for people.
    """

    tool_format: str | None
    reasoning_format: str | None
    evidence: str


@dataclass(frozen=True, slots=True)
class _Clue:
    """Texts that together tell of a format.

    Attributes:
        texts: All of them stand in the chat template, or are special tokens.
        format: What they tell of.
    """

    texts: tuple[str, ...]
    format: str

    @property
    def weight(self) -> int:
        """How much a clue says: longer evidence is less likely to be there by chance."""
        return sum(map(len, self.texts))


_TOOL_CLUES = (
    _Clue(("<tool_call>", "name", "arguments"), "hermes"),
    _Clue(("<tool_call>", "<function=", "<parameter="), "qwen3_coder"),
    _Clue(("<tool_call>", "<function="), "qwen3_coder"),
    _Clue(("<tool_call>", "<arg_key>", "<arg_value>", "name", "arguments"), "glm45"),
    _Clue(("<tool_call>", "<arg_key>"), "glm45"),
    _Clue(("<tool_calls>", "<tool_sep>", "<arg_key>", "<arg_value>", "arguments"), "hy_v3"),
    _Clue(("<seed:tool_call>",), "seed_oss"),
    _Clue(("<minimax:tool_call>",), "minimax_m2"),
    _Clue(("]<]minimax[>[",), "minimax_m3"),
    _Clue(("<dots_function_call>",), "dots"),
    _Clue(("<longcat_tool_call>",), "longcat"),
    _Clue(("<TOOLCALL>",), "nemotron_nano_v2"),
    _Clue(("<｜DSML｜", "function_calls"), "deepseek_v32"),
    _Clue(("<｜DSML｜", "tool_calls>"), "deepseek_v4"),
    _Clue(("<｜tool▁call▁begin｜>",), "deepseek_v31"),
    _Clue(("<｜tool▁call▁begin｜>", "```json"), "deepseek_v3"),
    _Clue(("<｜tool_call_begin｜>", "steptml:invoke"), "step3"),
    _Clue(("<|tool_calls_section_begin|>",), "kimi_k2"),
    _Clue(("<|open|>", "<|close|>", "<|sep|>"), "kimi_k3"),
    _Clue(("[TOOL_CALLS]",), "mistral"),
    _Clue(("<|start|>", "<|channel|>", "<|message|>"), "openai"),
    _Clue(("<|content_invoke_tool_json|>",), "inkling"),
    _Clue(("atem:function_calls",), "muse_glimmer"),
    _Clue(("<|START_ACTION|>",), "cohere_command3"),
    _Clue(("<|START_ACTION|>", "<|START_TEXT|>"), "cohere_command4"),
    _Clue(("<|tools_prefix|>",), "apertus"),
    _Clue(("<|action_start|>", "<|plugin|>"), "internlm"),
    _Clue(("<|function_call|>",), "gigachat3"),
    _Clue(("<|python_tag|>",), "llama3_json"),
    _Clue(("<|start_header_id|>", '"parameters"'), "llama3_json"),
    _Clue(("<|header_start|>", '"parameters"'), "llama3_json"),
    _Clue(("func_name1(params_name1=",), "pythonic"),
    _Clue(("<|python_start|>",), "llama4_pythonic"),
    _Clue(("<|tool_call_start|>",), "lfm2"),
    _Clue(("<function_calls>",), "olmo3"),
    _Clue(("<start_function_call>", "<escape>"), "functiongemma"),
    _Clue(("<|tool_call>", '<|"|>'), "gemma4"),
    _Clue(("<|tool|>", "<|/tool|>"), "phi4"),
    _Clue(("functools[",), "phi4_mini_json"),
    _Clue(("<|tool|>", "<|/tool|>", "functools["), "phi4_mini_json"),
    _Clue(("[BEGIN FINAL RESPONSE]", "<tool_calls>["), "jamba"),
    _Clue(("<|start_of_role|>", "<|tool_call|>"), "granite"),
    _Clue(("<|start_of_role|>", "<tool_call>", "name", "arguments"), "granite4"),
)
"""Clues of tool formats; hermes's tag alone says little, as half of all families have it."""

_REASONING_CLUES = (
    _Clue(("<think>",), "think"),
    _Clue(("</think>",), "think"),
    # Phi-4-mini-reasoning's, which writes `<think>` though nothing of its files has the word.
    _Clue(("Your name is Phi, an AI math expert",), "think"),
    _Clue(("<seed:think>",), "seed_oss"),
    _Clue(("<mm:think>",), "minimax_m3"),
    _Clue(("[THINK]",), "mistral"),
    _Clue(("<|START_THINKING|>",), "cohere_command3"),
    _Clue(("<|start|>", "<|channel|>", "<|message|>"), "openai_gptoss"),
    _Clue(("<|content_thinking|>",), "inkling"),
    _Clue(("to=self", "<|message|>"), "muse_glimmer"),
    _Clue(("<|open|>think<|sep|>",), "kimi_k3"),
    _Clue(("<|channel>", "<channel|>"), "gemma4"),
    _Clue(("Here is my thought process:",), "granite"),
    _Clue(("[BEGIN FINAL RESPONSE]",), "apriel"),
)

_BY_MODEL_TYPE: dict[str, tuple[str | None, str | None]] = {
    "llama": ("llama3_json", None),
    "llama4": ("llama4_pythonic", None),
    "llama4_text": ("llama4_pythonic", None),
    "mistral": ("mistral", None),
    "mistral3": ("mistral", "mistral"),
    "ministral3": ("mistral", "mistral"),
    "qwen2": ("hermes", None),
    "qwen3": ("hermes", "qwen3"),
    "qwen3_moe": ("hermes", "qwen3"),
    "qwen3_next": ("hermes", "qwen3"),
    "qwen3_5": ("qwen3_coder", "qwen3"),
    "qwen3_5_text": ("qwen3_coder", "qwen3"),
    "qwen3_5_moe": ("qwen3_coder", "qwen3"),
    "qwen3_5_moe_text": ("qwen3_coder", "qwen3"),
    "gpt_oss": ("openai", "openai_gptoss"),
    "deepseek_v3": ("deepseek_v3", "deepseek_r1"),
    "glm4_moe": ("glm45", "glm45"),
    "kimi_k2": ("kimi_k2", "kimi_k2"),
    "minimax_m2": ("minimax_m2", "minimax_m2"),
    "seed_oss": ("seed_oss", "seed_oss"),
    "jamba": ("jamba", None),
    "granitemoehybrid": ("granite4", None),
    "granite": ("granite", None),
    "ernie4_5_moe": ("ernie45", "ernie45"),
    "hunyuan_v1_moe": ("hunyuan_a13b", "hunyuan_a13b"),
    "internlm2": ("internlm", None),
    "phi4_mini": ("phi4_mini_json", None),
    "olmo3": ("olmo3", "olmo3"),
    "lfm2": ("lfm2", None),
    "lfm2_moe": ("lfm2", None),
    "apertus": ("apertus", None),
    "cohere2": ("cohere_command3", "cohere_command3"),
    "gemma4": ("gemma4", "gemma4"),
    "gemma4_text": ("gemma4", "gemma4"),
    "step3": ("step3", "step3"),
    "nemotron_h": ("qwen3_coder", "nemotron_v3"),
}
"""What families write whose template and special tokens do not tell."""

_BEGIN_IN_REASONING = frozenset(
    {
        *("qwen3", "deepseek_r1", "glm45", "kimi_k2", "minimax_m2", "seed_oss", "ernie45"),
        *("olmo3", "step3", "nemotron_v3"),
    }
)
"""Formats of types whose text is reasoning from its beginning. Not all models of such a type think:
one whose template and tokens say nothing of it answers at once."""

_REASONING_OF_TOOLS = {
    "glm45": "glm45",
    "kimi_k2": "kimi_k2",
    "minimax_m2": "minimax_m2",
    "deepseek_v4": "deepseek_v4",
}
"""Where `<think>` follows the rules of a family that its tool calls tell of."""

_REASONING_OF_MESSAGES = {
    "openai": "openai_gptoss",
    "inkling": "inkling",
    "muse_glimmer": "muse_glimmer",
    "kimi_k3": "kimi_k3",
    "cohere_command3": "cohere_command3",
    "cohere_command4": "cohere_command4",
}
"""Families that put markers around every answer: without their reasoning format the markers of a
request without tools would be content."""

CONFIGURED_NONE = "none"
"""The setting that switches a format off."""


def detect_formats(
    template: str | None,
    *,
    special_tokens: Iterable[str] = (),
    model_type: str | None = None,
    tool_format: str | None = None,
    reasoning_format: str | None = None,
) -> DetectedFormats:
    """The formats of a model: by its template's markers, its special tokens, its type.

    Args:
        template: Source of its chat template, with tools if that is another one.
        special_tokens: The texts of the tokenizer's special tokens.
        model_type: `model_type` of its configuration.
        tool_format: Configured by the operator: wins over what is found; `none` switches off.
        reasoning_format: Likewise.
    """
    tokens = "\n".join(special_tokens)
    by_type = _BY_MODEL_TYPE.get(model_type or "", (None, None))
    found_tool, tool_evidence = _found(
        "tool format", _TOOL_CLUES, template or "", tokens, model_type, by_type[0]
    )
    may_think_unasked = bool(template) and by_type[1] in _BEGIN_IN_REASONING
    reasoning_by_type = None if may_think_unasked else by_type[1]
    found_reasoning, reasoning_evidence = _found(
        "reasoning format", _REASONING_CLUES, template or "", tokens, model_type, reasoning_by_type
    )
    if tool_format is not None:
        found_tool, tool_evidence = _configured(tool_format), "tool format: configured"
    if found_reasoning == "think" and found_tool in _REASONING_OF_TOOLS:
        found_reasoning = _REASONING_OF_TOOLS[found_tool]
        reasoning_evidence = (
            f"reasoning format: {found_reasoning}, its tool format comes with <think>"
        )
    elif found_reasoning is None and found_tool in _REASONING_OF_MESSAGES:
        found_reasoning = _REASONING_OF_MESSAGES[found_tool]
        reasoning_evidence = f"reasoning format: {found_reasoning}, as the tool format's messages"
    elif found_reasoning is None and may_think_unasked:
        found_reasoning = "think"
        reasoning_evidence = (
            f"reasoning format: think, models of type {model_type} may write it, and the template"
            " says nothing of it"
        )
    if reasoning_format is not None:
        found_reasoning = _configured(reasoning_format)
        reasoning_evidence = "reasoning format: configured"
    return DetectedFormats(
        tool_format=found_tool,
        reasoning_format=found_reasoning,
        evidence=f"{tool_evidence}; {reasoning_evidence}.",
    )


def _configured(name: str) -> str | None:
    return None if name == CONFIGURED_NONE else name


def _found(
    kind: str,
    clues: tuple[_Clue, ...],
    template: str,
    tokens: str,
    model_type: str | None,
    by_type: str | None,
) -> tuple[str | None, str]:
    """A format, and why it is that one."""
    for source, text in (("the template has", template), ("there are special tokens", tokens)):
        fitting = [clue for clue in clues if all(part in text for part in clue.texts)]
        if fitting:
            best = max(fitting, key=lambda clue: clue.weight)
            return best.format, f"{kind}: {best.format}, {source} {' with '.join(best.texts)}"
    if by_type is not None:
        return by_type, f"{kind}: {by_type}, models of type {model_type} write it"
    return None, f"{kind}: none, neither template nor special tokens have a known marker"
