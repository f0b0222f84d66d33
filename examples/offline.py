"""The engine within a script, without a server: texts, a conversation, a stream, JSON.

make serve                              # installs what this needs; then stop it with Ctrl-C
.venv/bin/python examples/offline.py
"""

import json

from engine_worker import LLM, Grammar, SamplingParams

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "is_capital": {"type": "boolean"}},
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}


def main() -> None:
    """Show what the API can do with the bundled model."""
    # Few rows and short texts: less to compile at the first start.
    with LLM(max_num_seqs=4, max_model_len=512) as llm:
        sampling = SamplingParams(temperature=0.0, max_tokens=16)
        for output in llm.generate(["One, two, three,", "Red, green,"], sampling):
            print(repr(output.text))

        hello = [{"role": "user", "content": "Hello!"}]
        print(llm.chat(hello, sampling).text)
        for piece in llm.stream(hello, sampling):
            print(piece, end="|", flush=True)
        print()

        grammar = Grammar(kind="json_schema", source=json.dumps(CITY))
        held = llm.chat(hello, SamplingParams(seed=1, max_tokens=100), grammar=grammar)
        print(json.loads(held.text))


if __name__ == "__main__":
    main()
