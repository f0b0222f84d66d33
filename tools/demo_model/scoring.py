"""Evaluation: examples of each category, exact judgement and Wilson intervals."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.demo_model.conversation import Example, Message
from tools.demo_model.draw import Split
from tools.demo_model.grammar import example
from tools.demo_model.packing import ChatFormat
from tools.demo_model.tool_talk import spell_call

Generate = Callable[[list[list[int]], int], list[list[int]]]


@dataclass(frozen=True)
class Score:
    """How many of a category's answers were exactly right."""

    category: str
    level: Split
    num_right: int
    num_asked: int

    @property
    def share(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.num_right / self.num_asked

    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval (Wilson, 1927) of the share."""
        z = 1.96
        n, p = self.num_asked, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)


def expected_text(message: Message) -> str:
    """The assistant message as the model must write it, letter for letter."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return str(message["content"])
    return "\n".join(
        spell_call(call["function"]["name"], call["function"]["arguments"]) for call in calls
    )


def draw_examples(category: str, level: Split, count: int, seed: int) -> list[Example]:
    """The same examples for the same arguments."""
    rng = random.Random(f"evaluation:{seed}:{level}:{category}")
    return [example(rng, category, level) for _ in range(count)]


def score(
    generate: Generate,
    chat_format: ChatFormat,
    examples: Sequence[Example],
    level: Split,
    *,
    batch_size: int,
    on_wrong: Callable[[Example, str], None] | None = None,
) -> Score:
    """Asks all examples of one category greedily and counts the exact answers.

    Args:
        generate: prompts and the most tokens to generate, to the generated token ids.
        chat_format: the template and tokenizer.
        examples: of one category.
        level: for the result.
        batch_size: prompts given to `generate` at once.
        on_wrong: told of each wrong answer.
    """
    num_right = 0
    asked = [(item, chat_format.prompt_ids(item.prompt)) for item in examples]
    # Prompts of similar length together waste little padding.
    asked.sort(key=lambda pair: len(pair[1]))
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        expected = [expected_text(item.expected) for item, _ in batch]
        longest = max(len(chat_format.tokenizer.encode(text).ids) for text in expected)
        max_tokens = -(-(longest + 8) // 64) * 64
        outputs = generate([ids for _, ids in batch], max_tokens)
        for (item, _), wanted, output in zip(batch, expected, outputs, strict=True):
            text = chat_format.tokenizer.decode(output, skip_special_tokens=True)
            if text == wanted:
                num_right += 1
            elif on_wrong is not None:
                on_wrong(item, text)
    return Score(examples[0].category, level, num_right, len(examples))
