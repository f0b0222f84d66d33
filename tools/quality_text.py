"""Makes the text that `penstock quality` reads when none is given: prose and conversations.

python -m tools.quality_text
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from tools.demo_model.conversation import Example
from tools.demo_model.grammar import CATEGORIES
from tools.demo_model.packing import ChatFormat
from tools.demo_model.scoring import draw_examples

_ROOT = Path(__file__).resolve().parent.parent
_PROSE = ("architecture.md", "reliability.md", "sizing.md")
_PROSE_CHARACTERS = 12_000
_SEED = 2026
_EXAMPLES = 6
"""Of each category of the bundled model's evaluation, which it was not trained on."""


def main() -> int:
    """Write `engine_worker/demo/quality.txt`."""
    parts = [_prose(_ROOT / "docs" / name) for name in _PROSE]
    chat = ChatFormat(_ROOT / "engine_worker" / "demo")
    for category in CATEGORIES:
        examples = draw_examples(category, "closed", _EXAMPLES, _SEED)
        parts += [_conversation(chat, example) for example in examples]
    target = _ROOT / "engine_worker" / "demo" / "quality.txt"
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    sys.stdout.write(f"{target.relative_to(_ROOT)}: {target.stat().st_size} bytes\n")
    return 0


def _prose(path: Path) -> str:
    """Paragraphs and lists of a page, without tables, code and headings."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("#", "|", "<!--"))]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines)).replace("`", "")
    return re.sub(r"\n{3,}", "\n\n", text).strip()[:_PROSE_CHARACTERS]


def _conversation(chat: ChatFormat, example: Example) -> str:
    """A conversation with the answer that is expected at its end."""
    prompt = example.prompt
    return chat.render(replace(prompt, messages=(*prompt.messages, example.expected)))


if __name__ == "__main__":
    sys.exit(main())
