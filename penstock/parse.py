"""`penstock parse`: a model's text from a pipe, by the parser's own code, without a server."""

import subprocess
import sys
from pathlib import Path

from penstock.terminal import visible_json


def parse(
    tool_format: str | None, reasoning_format: str | None, tools: Path | None, prompt_tail: str
) -> int:
    """Parse standard input and print what stands in it as JSON.

    Args:
        tool_format: Name of the tool format; None leaves calls in the text.
        reasoning_format: Name of the reasoning format; None leaves reasoning in the text.
        tools: A JSON file with OpenAI tools; with None every tool name is taken for one.
        prompt_tail: The end of the prompt, which may have opened the reasoning.

    Returns:
        The exit code.
    """
    command = [sys.executable, "-m", "toolparser_worker.parse_text", f"--prompt-tail={prompt_tail}"]
    for option, value in (
        ("format", tool_format),
        ("reasoning", reasoning_format),
        ("tools", tools),
    ):
        if value is not None:
            command.append(f"--{option}={value}")
    done = subprocess.run(  # noqa: S603  # our own module
        command, check=False, stdout=subprocess.PIPE, encoding="utf-8", errors="surrogatepass"
    )
    sys.stdout.write(visible_json(done.stdout))
    return done.returncode
