import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from engine_worker.core.scheduling.block_hashes import block_hashes
from engine_worker.demo import demo_model_path
from engine_worker.errors import (
    AbandonedError,
    ContextLengthError,
    InvalidRequestError,
    NoChatTemplateError,
    TokenizerLoadError,
)
from engine_worker.text import format_detection
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.format_detection import DetectedFormats, detect_formats
from engine_worker.text.preparation import PromptPreparer
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Detokenize, Detokenized, Prepare
from tests.fakes.tiny_tokenizers import CHATML, byte_level_tokenizer
from toolparser_worker.formats import REASONING_FORMATS


def make_preparer(template: Any = CHATML, max_model_len: int = 50) -> PromptPreparer:
    tokenizer = byte_level_tokenizer(template)
    return PromptPreparer(
        tokenizer,
        ChatTemplate(tokenizer, "m"),
        vocab_size=tokenizer.num_tokens,
        max_model_len=max_model_len,
        block_size=4,
        now=lambda: 1234.9,
    )


def prepare_chat(text: str = "hi", **changes: Any) -> Prepare:
    options: dict[str, Any] = {
        "kind": "chat",
        "messages_json": json.dumps([{"role": "user", "content": text}]),
        "deadline_s": 1.0,
        **changes,
    }
    return Prepare(request_id="r", **options)


def test_a_chat_becomes_token_ids_hashes_and_a_tail() -> None:
    prepared = make_preparer().prepare(prepare_chat(tenant="t"))
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert byte_level_tokenizer().decode(prepared.prompt_token_ids) == text
    assert prepared.prompt_tail == text
    assert prepared.block_hashes == block_hashes(prepared.prompt_token_ids, 4, "t")
    assert prepared.max_output_tokens == 50 - len(prepared.prompt_token_ids)
    assert prepared.template_time == 1234


@pytest.mark.parametrize("template", [CHATML, None], ids=["chat", "plain"])
def test_of_what_nobody_waits_for_any_more_the_rest_is_left_out(template: str | None) -> None:
    preparer = make_preparer(max_model_len=1_000_000)
    text = "a few words " * 30_000
    command = (
        prepare_chat(text)
        if template
        else Prepare(request_id="r", kind="completion", prompt=text, deadline_s=1.0)
    )
    with pytest.raises(AbandonedError):
        preparer.answer(command, lambda: False)
    assert preparer.answer(command, lambda: True) == preparer.answer(command)


def test_the_template_time_of_an_earlier_engine_is_replayed() -> None:
    preparer = make_preparer("{{ strftime_now('%Y') }}")
    assert preparer.prepare(prepare_chat(template_time=1_000_000_000)).prompt_tail == "2001"
    assert preparer.prepare(prepare_chat()).prompt_tail == "1970"


def test_a_completion_prompt_is_text_or_token_ids() -> None:
    preparer = make_preparer()
    by_text = preparer.prepare(prepare_chat(kind="completion", messages_json=None, prompt="abc"))
    by_ids = preparer.prepare(
        prepare_chat(kind="completion", messages_json=None, prompt_token_ids=(97, 98, 99))
    )
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == (97, 98, 99)
    assert by_text.prompt_tail == by_ids.prompt_tail == "abc"


def completion(**changes: Any) -> Prepare:
    return prepare_chat(**{"kind": "completion", "messages_json": None, **changes})


@pytest.mark.parametrize(
    ("num_kept", "max_tokens", "expected"),
    [(3, None, "hij"), (100, None, "abcdefghij"), (10, 2, "abcdefghij"), (-1, 44, "efghij")],
)
def test_a_truncated_prompt_keeps_its_last_tokens(
    num_kept: int, max_tokens: int | None, expected: str
) -> None:
    command = completion(
        prompt="abcdefghij", truncate_prompt_tokens=num_kept, max_tokens=max_tokens
    )
    prepared = make_preparer().prepare(command)
    assert bytes(prepared.prompt_token_ids).decode() == expected
    assert prepared.prompt_text == prepared.prompt_tail == expected
    assert prepared.max_output_tokens == 50 - len(expected)


def test_a_prompt_beyond_the_context_fits_once_it_is_truncated() -> None:
    long = "x" * 5000
    prepared = make_preparer().prepare(completion(prompt=long, truncate_prompt_tokens=-1))
    assert len(prepared.prompt_token_ids) == 49
    chat = prepare_chat(long, truncate_prompt_tokens=20)
    assert len(make_preparer().prepare(chat).prompt_token_ids) == 20
    with pytest.raises(ContextLengthError):
        make_preparer().prepare(completion(prompt=long, truncate_prompt_tokens=51))
    with pytest.raises(ContextLengthError):
        make_preparer().prepare(completion(prompt=long, truncate_prompt_tokens=-1, max_tokens=50))


@pytest.mark.parametrize("num_kept", [0, -2, 2**31])
def test_a_truncation_that_means_nothing_is_refused(num_kept: int) -> None:
    with pytest.raises(InvalidRequestError, match="-1 or 1 ≤ x") as caught:
        make_preparer().prepare(completion(prompt="a", truncate_prompt_tokens=num_kept))
    assert caught.value.param == "truncate_prompt_tokens"


def test_the_texts_of_the_tokens_and_of_the_prompt_come_back() -> None:
    tokenizer = byte_level_tokenizer()
    token_ids = tokenizer.encode("<|im_start|> the é", add_special_tokens=False)
    by_ids = make_preparer().prepare(
        completion(prompt_token_ids=tuple(token_ids), return_tokens=True)
    )
    assert by_ids.tokens == ("<|im_start|>", " the", " ", "\ufffd", "\ufffd")
    assert by_ids.prompt_text == "<|im_start|> the é"
    by_text = make_preparer().prepare(completion(prompt=" the é"))
    assert (by_text.tokens, by_text.prompt_text) == ((), " the é")
    assert make_preparer().prepare(prepare_chat("hi")).prompt_text == ""


def test_token_ids_become_text_special_ones_included() -> None:
    tokenizer = byte_level_tokenizer()
    token_ids = tuple(tokenizer.encode("<|im_start|>é", add_special_tokens=False))
    preparer = make_preparer()
    detokenized = preparer.detokenize(
        Detokenize(request_id="r", token_ids=token_ids, deadline_s=1.0)
    )
    assert detokenized == Detokenized(request_id="r", text="<|im_start|>é")
    with pytest.raises(InvalidRequestError) as caught:
        preparer.detokenize(Detokenize(request_id="r", token_ids=(9999,), deadline_s=1.0))
    assert caught.value.param == "tokens"


@pytest.mark.parametrize(
    ("word", "texts"),
    [("the", {"the", " the"}), ("  the", {"the", " the"}), ("\n", {"\n", " \n"}), (" ", {" "})],
)
def test_a_word_is_spelt_with_and_without_a_space_before_it(word: str, texts: set[str]) -> None:
    tokenizer = byte_level_tokenizer()
    sequences = tokenizer.word_sequences([word, word])
    assert {tokenizer.decode(sequence) for sequence in sequences} == texts
    assert len(sequences) == len(texts)


def test_counting_checks_no_length() -> None:
    command = prepare_chat(kind="count", messages_json=None, prompt="a" * 100)
    prepared = make_preparer().prepare(command)
    assert (len(prepared.prompt_token_ids), prepared.max_output_tokens) == (100, 0)
    assert len(make_preparer().prepare(prepare_chat("x" * 100, kind="count")).prompt_token_ids) > 50


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"prompt": "a" * 50}, (50, 1, 50)),
        ({"prompt": "a" * 40, "max_tokens": 11}, (50, 11, 40)),
        ({"prompt": "a" * 1_000_000}, (50, 1, 17_858)),
    ],
)
def test_a_prompt_that_is_too_long_is_refused_with_all_numbers(
    changes: dict[str, Any], numbers: tuple[int, int, int]
) -> None:
    command = prepare_chat(kind="completion", messages_json=None, **changes)
    context, output, prompt = numbers
    with pytest.raises(ContextLengthError) as caught:
        make_preparer().prepare(command)
    message = caught.value.message
    assert f"maximum context length is {context} tokens" in message
    assert f"{output} output token" in message
    if len(changes["prompt"]) < 1000:
        assert f"contains {prompt} input tokens" in message
    else:
        assert "contains at least" in message
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt_token_ids": ()}, "prompt"),
        ({"prompt_token_ids": (5, 100_000)}, "prompt"),
        ({"prompt_token_ids": (-1,)}, "prompt"),
        ({"prompt": "\ud800"}, None),
        ({}, "messages"),
    ],
)
def test_a_prompt_that_is_none_is_refused(changes: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_preparer().prepare(prepare_chat(messages_json=None, **changes))
    assert caught.value.param == param


def test_template_arguments_must_be_an_object() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_preparer().prepare(prepare_chat(template_kwargs_json="[]"))
    assert caught.value.param == "chat_template_kwargs"


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(NoChatTemplateError):
        make_preparer(None).prepare(prepare_chat())


def test_the_demo_tokenizer_loads_from_its_folder() -> None:
    tokenizer = Tokenizer.load(demo_model_path())
    assert tokenizer.eos_token_ids == {0, 2}
    token_ids = tokenizer.encode("What is 12 + 30?", add_special_tokens=True)
    assert tokenizer.decode(token_ids) == "What is 12 + 30?"
    assert tokenizer.chat_template_source(has_tools=True) is not None


def test_a_folder_without_a_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerLoadError, match=str(tmp_path)):
        Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerLoadError, match="no tokenizer folder"):
        Tokenizer.load(tmp_path / "missing")


def test_a_broken_tokenizer_file_is_one_clear_error(tmp_path: Path) -> None:
    shutil.copytree(demo_model_path(), tmp_path / "m", ignore=shutil.ignore_patterns("*.py*"))
    (tmp_path / "m" / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerLoadError):
        Tokenizer.load(tmp_path / "m")


def test_the_demo_model_is_found_to_speak_hermes() -> None:
    tokenizer = Tokenizer.load(demo_model_path())
    formats = detect_formats(tokenizer.chat_template_source(has_tools=True))
    assert (formats.tool_format, formats.reasoning_format) == ("hermes", None)
    assert "<tool_call>" in formats.evidence


@pytest.mark.parametrize(
    ("template", "tool_format", "reasoning_format"),
    [
        ('<tool_call>\\n{"name": f, "arguments": a}\\n</tool_call> <think>', "hermes", "think"),
        ("<tool_call><function=name><parameter=k> name arguments", "qwen3_coder", None),
        ("<tool_call>name<arg_key>arguments<arg_value> <think>", "glm45", "glm45"),
        ("<tool_calls> <tool_call> <tool_sep><arg_key><arg_value> name arguments", "hy_v3", None),
        ("<｜tool▁call▁begin｜>function```json", "deepseek_v3", None),
        # Llama 4's own, and those of pythonic calls for families that have no marker of theirs.
        ('<|header_start|><|python_start|> {"name": n, "parameters": p}', "llama3_json", None),
        ("<|header_start|>ipython <|python_start|>[f()]<|python_end|>", "llama4_pythonic", None),
        ("<|start_header_id|>[func_name1(params_name1=params_value1)]", "pythonic", None),
        ("<|start|>assistant<|channel|>final<|message|>", "openai", "openai_gptoss"),
        ('{"name": n, "parameters": d} <|python_tag|>', "llama3_json", None),
        ('<|start_header_id|> {"name": n, "parameters": d}', "llama3_json", None),
        ("[TOOL_CALLS] name arguments", "mistral", None),
        ('<|start_header_id|><TOOLCALL>[{"name": "f"}]</TOOLCALL>', "nemotron_nano_v2", None),
        # What the templates of Granite 3.3 and Granite 4 tell the model to write.
        ("<|start_of_role|>system: use <|tool_call|> and a JSON list of tools", "granite", None),
        ('<|start_of_role|> <tool_call>{"name": f, "arguments": a}</tool_call>', "granite4", None),
        # Phi-4-mini's own, and the one that other servers use with it.
        ("'<|tool|>' + message['tools'] + '<|/tool|>'", "phi4", None),
        ("'<|tool|>' '<|/tool|>' functools[{name, arguments}]", "phi4_mini_json", None),
        # Phi-4-mini-reasoning's, which says nothing of thoughts.
        ("Your name is Phi, an AI math expert developed by Microsoft.", None, "think"),
        # Apriel 1.5's and 1.6's.
        (
            '<tool_call></tool_call> XML tags: <tool_calls>[{"name": n, "arguments": a},...]'
            "</tool_calls> [BEGIN FINAL RESPONSE]",
            *("jamba", "apriel"),
        ),
        ("</think>", None, "think"),
        (None, None, None),
    ],
)
def test_formats_are_found_by_the_markers_of_the_template(
    template: str | None, tool_format: str | None, reasoning_format: str | None
) -> None:
    formats = detect_formats(template)
    assert (formats.tool_format, formats.reasoning_format) == (tool_format, reasoning_format)


def test_special_tokens_tell_where_the_template_does_not() -> None:
    formats = detect_formats(
        "{{ messages }}", special_tokens=("<|tool_calls_section_begin|>", "</think>")
    )
    assert (formats.tool_format, formats.reasoning_format) == ("kimi_k2", "kimi_k2")
    assert "special tokens <|tool_calls_section_begin|>" in formats.evidence


def test_the_model_type_is_the_last_resort() -> None:
    formats = detect_formats(None, model_type="qwen3")
    assert (formats.tool_format, formats.reasoning_format) == ("hermes", "qwen3")
    assert "models of type qwen3" in formats.evidence
    assert detect_formats("[TOOL_CALLS]", model_type="qwen3").tool_format == "mistral"


@pytest.mark.parametrize("model_type", ["olmo3", "deepseek_v3", "ernie4_5_moe", "kimi_k2"])
def test_a_model_whose_template_never_thinks_is_not_taken_to_begin_in_reasoning(
    model_type: str,
) -> None:
    """Olmo 3 Instruct, DeepSeek V3, ERNIE 4.5: types of which other models think."""
    formats = detect_formats("{{ messages }}", model_type=model_type)
    assert formats.reasoning_format == "think"
    assert "the template says nothing of it" in formats.evidence
    assert detect_formats(None, model_type=model_type).reasoning_format not in (None, "think")


def test_the_formats_that_begin_in_reasoning_are_those_of_the_parser() -> None:
    by_type = {reasoning for _, reasoning in format_detection._BY_MODEL_TYPE.values()} - {None}
    declared = {name: REASONING_FORMATS[str(name)] for name in by_type}
    begin = {name for name, one in declared.items() if one.opens == "always" and not one.framing}
    assert begin == format_detection._BEGIN_IN_REASONING
    assert REASONING_FORMATS["think"].opens == "marked"


def test_configured_formats_win_and_none_switches_off() -> None:
    formats = detect_formats("<think></think>", tool_format="llama3_json", reasoning_format="none")
    assert formats == DetectedFormats(
        "llama3_json", None, "tool format: configured; reasoning format: configured."
    )


def test_formats_made_of_messages_bring_their_reasoning_along() -> None:
    found = detect_formats("<|START_ACTION|>")
    assert (found.tool_format, found.reasoning_format) == ("cohere_command3", "cohere_command3")
    assert "as the tool format's messages" in found.evidence
    assert detect_formats(None, tool_format="openai").reasoning_format == "openai_gptoss"
    off = detect_formats(None, tool_format="openai", reasoning_format="none")
    assert off.reasoning_format is None


def test_a_configured_tool_format_tells_of_the_reasoning_too() -> None:
    assert detect_formats("<think>", tool_format="glm45").reasoning_format == "glm45"


def test_the_pure_side_of_the_engine_imports_no_jax(tmp_path: Path) -> None:
    import subprocess

    modules = (
        "engine_worker.core.engine",
        "engine_worker.core.credits",
        "engine_worker.core.scheduling.scheduler",
        "engine_worker.grammar.compile_queue",
        "engine_worker.text.preparation",
    )
    code = f"import sys, {', '.join(modules)}\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])
