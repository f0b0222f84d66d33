"""A streamed chat with the unmodified `openai` package.

make serve                                     # in another terminal
.venv/bin/pip install openai
.venv/bin/python examples/chat.py "What is 12 + 30?"
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    """Stream one answer."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "not-needed-on-loopback"),
    )
    question = " ".join(sys.argv[1:]) or "What is 12 + 30?"
    stream = client.chat.completions.create(
        model="penstock-demo",
        messages=[{"role": "user", "content": question}],
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
