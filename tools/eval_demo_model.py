"""Scores the shipped demo model greedily and writes the table into docs/demo-model.md.

python -m tools.eval_demo_model                    # through the real engine
python -m tools.eval_demo_model --backend training # through the training code's own forward
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine_worker.python_api.llm import LLM
from protocol.wire.messages import SamplingParams
from tools.demo_model.conversation import Conversation, Example
from tools.demo_model.decode import GreedyDecoder
from tools.demo_model.draw import Split
from tools.demo_model.grammar import CATEGORIES, LATE_CALL, TOOL_CATEGORIES, pinned_conversation
from tools.demo_model.model import ModelShape, load_weights
from tools.demo_model.packing import ChatFormat
from tools.demo_model.readme_prompts import README_PROMPTS
from tools.demo_model.scoring import Generate, Score, draw_examples, score
from tools.demo_model.tokenizer import TURN_END, token_id

_ROOT = Path(__file__).resolve().parent.parent
_LEVELS: tuple[Split, ...] = ("closed", "open")
GATE = 0.90
# Prompts that fill the context take ten times as long, so there are fewer of them.
LONG_PROMPT_SHARE = 5
TABLE_BEGIN = "<!-- demo-eval: begin -->"
TABLE_END = "<!-- demo-eval: end -->"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=_ROOT / "engine_worker" / "demo")
    parser.add_argument("--document", type=Path, default=_ROOT / "docs" / "demo-model.md")
    parser.add_argument("--backend", choices=("engine", "training"), default="engine")
    parser.add_argument("--num-examples", type=int, default=500, help="per category and level")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show-wrong", action="store_true", help="print each wrong answer")
    parser.add_argument("--no-write", action="store_true", help="leave the document as it is")
    return parser.parse_args(arguments)


def generate_with_engine(model: Path) -> Generate:
    """Greedy generation through the engine that serves, in this process."""
    llm = LLM(model, compile_cache_dir=None)

    def generate(prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        return llm.generate_token_ids(
            prompts, SamplingParams(temperature=0.0, max_tokens=max_tokens)
        )

    return generate


def generate_with_training_code(model: Path, chat_format: ChatFormat) -> Generate:
    """Greedy generation with the forward that the model was trained with."""
    shape = ModelShape.from_hf_config(model / "config.json")
    eos_id = token_id(chat_format.tokenizer, TURN_END)
    return GreedyDecoder(load_weights(model / "model.safetensors"), shape, [eos_id]).generate


def readme_score(
    generate: Generate,
    chat_format: ChatFormat,
    on_wrong: Callable[[Example, str], None] | None = None,
) -> Score:
    """The pinned prompts, which must all be right."""
    examples = []
    for prompt in README_PROMPTS:
        *asked, expected = pinned_conversation(prompt).messages
        examples.append(
            Example("README prompts", Conversation(tuple(asked), prompt.tools), expected)
        )
    return score(
        generate, chat_format, examples, "closed", batch_size=len(examples), on_wrong=on_wrong
    )


def print_wrong(example: Example, text: str) -> None:
    """Shows what was asked, what was wanted and what came."""
    question = example.prompt.messages[-1]["content"]
    expected = example.expected.get("tool_calls") or example.expected["content"]
    print(f"  {example.category}: {question!r}\n    wanted {expected!r}\n    came   {text!r}")


def together(scores: Sequence[Score], level: Split) -> Score:
    """All categories that ask for calls, as one."""
    chosen = [item for item in scores if item.level == level and item.category in TOOL_CATEGORIES]
    return Score(
        "tool calls, all",
        level,
        sum(item.num_right for item in chosen),
        sum(item.num_asked for item in chosen),
    )


def table(scores: Sequence[Score], readme: Score, description: str) -> str:
    """The Markdown that goes between the markers."""
    by_key = {(item.category, item.level): item for item in scores}
    names = [*TOOL_CATEGORIES, "tool calls, all", *CATEGORIES[len(TOOL_CATEGORIES) :]]
    for level in _LEVELS:
        by_key["tool calls, all", level] = together(scores, level)
    lines = [
        f"{description} README's pinned prompts: {readme.num_right} of {readme.num_asked} right.",
        "",
        "| category | closed | open |",
        "|---|---|---|",
    ]
    for name in names:
        cells = " | ".join(cell(by_key[name, level]) for level in _LEVELS)
        bold = "**" if name == "tool calls, all" else ""
        lines.append(f"| {bold}{name}{bold} | {cells} |")
    return "\n".join(lines)


def cell(item: Score) -> str:
    """A share with its 95 % interval."""
    low, high = item.interval()
    return f"{item.share:.1%} ({low:.1%}–{high:.1%})"


def write_table(document: Path, text: str) -> None:
    """Replaces what is between the markers.

    Raises:
        ValueError: the document lacks the markers.
    """
    old = document.read_text(encoding="utf-8")
    before, begin, rest = old.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not begin or not end:
        raise ValueError(f"{document} lacks the markers {TABLE_BEGIN} and {TABLE_END}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> int:
    """Scores everything; exit code 1 when the gate or a README prompt is missed."""
    options = parse_arguments()
    chat_format = ChatFormat(options.model)
    if options.backend == "engine":
        generate = generate_with_engine(options.model)
    else:
        generate = generate_with_training_code(options.model, chat_format)
    scores = []
    started = time.monotonic()
    for category in CATEGORIES:
        for level in _LEVELS:
            count = options.num_examples
            if category == LATE_CALL:
                count = max(1, count // LONG_PROMPT_SHARE)
            examples = draw_examples(category, level, count, options.seed)
            result = score(
                generate,
                chat_format,
                examples,
                level,
                batch_size=options.batch_size,
                on_wrong=print_wrong if options.show_wrong else None,
            )
            scores.append(result)
            print(f"{category}, {level}: {cell(result)}", flush=True)
    readme = readme_score(generate, chat_format, print_wrong)
    gate = together(scores, "closed")
    print(f"README prompts {readme.num_right}/{readme.num_asked}; tool calls, closed: {cell(gate)}")
    print(f"{time.monotonic() - started:.0f} s")
    if not options.no_write:
        through = "the real engine" if options.backend == "engine" else "the training code"
        description = (
            f"Exact answers, greedy, through {through}, {options.num_examples} prompts a cell, "
            f"seed {options.seed}, with 95 % Wilson intervals."
        )
        write_table(options.document, table(scores, readme, description))
    return 0 if gate.share >= GATE and readme.num_right == readme.num_asked else 1


if __name__ == "__main__":
    sys.exit(main())
