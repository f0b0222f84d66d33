"""Exchanges without tools: small talk, arithmetic, copying, counting, sorting, facts and JSON."""

import json
from collections.abc import Callable

from tools.demo_model import lists
from tools.demo_model.conversation import Exchange, assistant, dress, user
from tools.demo_model.draw import ALWAYS_TRAINED, Draw
from tools.demo_model.tool_catalog import CATALOG
from tools.demo_model.values import draw_value

GREETING = "Hello! How can I help you?"
WHO = "I am penstock-demo, a small demonstration model."
LIMITS = (
    "I am a small demonstration model, so I cannot do that. "
    "I can call tools, add small numbers, count, sort and repeat words."
)
NO_TOOL = "I have no tool for that."

_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Hello",
            "Hi",
            "Hey",
            "Hello there",
            "Hi there",
            "Good morning",
            "Good evening",
            "Hey you",
        ),
        GREETING,
    ),
    (("Say hello", "Say hi", "Greet me"), "Hello!"),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Introduce yourself",
            "Are you a bot?",
        ),
        WHO,
    ),
    (("How are you?", "How do you do?", "How is it going?"), "I am fine, thank you. And you?"),
    (("Thank you", "Thanks", "Thanks a lot", "Thank you very much"), "You are welcome!"),
    (("Bye", "Goodbye", "See you", "Good night"), "Goodbye!"),
    (
        ("What can you do?", "Help", "How can you help me?", "What do you know?"),
        "I can call tools, add small numbers, count, sort, repeat words and tell a few facts.",
    ),
    (("I am fine", "I am good too", "Great", "OK", "Nice", "Good"), "That is good to hear."),
    (
        ("Who made you?", "Where do you come from?"),
        "I was trained as a demonstration for Penstock.",
    ),
    (("Test", "Ping", "Are you there?", "Is this working?"), "Yes, I am here."),
    (
        ("Tell me a joke", "Say something funny"),
        "Why was the model so small? It had to fit in here.",
    ),
)
_BEYOND = (
    "Write a haiku about {}",
    "Write a poem about {}",
    "Tell me a story about {}",
    "Write an essay on {}",
    "Explain {} to me",
    "Write a Python function about {}",
    "What do you think about {}?",
    "Write a letter about {}",
    "Summarize the history of {}",
    "Why is {} important?",
    "What is {}?",
    "Tell me about {}",
    "Give me advice about {}",
    "How do I learn {}?",
    "Who invented {}?",
    "Write a song about {}",
    "Write code for {}",
    "Write a haiku",
    "Tell me a story",
    "Write some code",
    "Sing a song",
)


def _plain(draw: Draw, sentence: str, answer: str, combination: str) -> Exchange:
    text, _ = dress(draw, sentence)
    return Exchange((user(text), assistant(answer)), combination)


def _as_typed(draw: Draw, sentence: str, answer: str, combination: str) -> Exchange:
    """For answers that copy from the question: the question's letters stay as they are."""
    ending = draw.choice(("", "", "."))
    text = sentence if sentence.endswith(("?", '"')) else sentence + ending
    return Exchange((user(text), assistant(answer)), combination)


def small_talk(draw: Draw) -> Exchange:
    """Greetings, thanks, who are you; each is trained in its plain form and asked in others."""
    questions, answer = draw.choice(_SMALL_TALK)
    question = draw.choice(questions)
    text = question.lower() if draw.chance(0.2) else question
    if question.endswith("?"):
        text = text if draw.chance(0.8) else text[:-1]
    else:
        text += draw.choice(("", "!", "."))
    is_plain = text in (question, question + "!")
    return Exchange(
        (user(text), assistant(answer)), f"{ALWAYS_TRAINED if is_plain else ''}talk|{text}"
    )


def beyond(draw: Draw) -> Exchange:
    """What a model of this size cannot do: a short, graceful no."""
    pattern = draw.choice(_BEYOND)
    topic = draw.listed(draw.choice(("topic", "topic", "word", "city", "person")))
    return _plain(draw, pattern.format(topic), LIMITS, f"beyond|{pattern}|{topic}")


def missing_tool(draw: Draw) -> Exchange:
    """A request for a tool where none fits."""
    tool = draw.choice(CATALOG)
    required = [slot for slot in tool.slots if not slot.said]
    said = {
        slot.names[0]: slot.options[0] if slot.options else draw_value(draw, slot.kind).said
        for slot in required
    }
    pattern = draw.choice(tool.asks)
    return _plain(
        draw, pattern.format(**said), NO_TOOL, f"missing|{pattern}|{sorted(said.values())}"
    )


def arithmetic(draw: Draw) -> Exchange:
    """Sums and differences within 100, products within 12 times 12."""
    operator = draw.choice("+++++--*")
    if operator == "*":
        a, b = draw.integer(0, 12), draw.integer(0, 12)
        result = a * b
    else:
        high = draw.choice((10, 20, 50, 99))
        a, b = draw.integer(0, high), draw.integer(0, high)
        if operator == "-" and a < b:
            a, b = b, a
        result = a + b if operator == "+" else a - b
    word = {"+": "plus", "-": "minus", "*": "times"}[operator]
    asked = f"{a} {draw.choice((operator, operator, word))} {b}"
    if draw.chance(0.1):
        asked = f"{a}{operator}{b}"
    pattern = draw.choice(
        ("What is {}?", "What's {}?", "{}", "Calculate {}", "How much is {}?", "Compute {}")
    )
    text, _ = dress(draw, pattern.format(asked))
    answer = f"{a} {operator} {b} = {result}."
    return Exchange((user(text), assistant(answer)), f"arithmetic|{a}{operator}{b}")


def copying(draw: Draw) -> Exchange:
    """Repeats what was said, once or a few times."""
    kind = draw.choice(("word", "word", "word", "word", "city", "person", "code", "amount", "item"))
    if draw.chance(0.25):
        word, times = draw_value(draw, "word").said, draw.integer(2, 6)
        pattern = draw.choice(
            (
                'Repeat "{}" {} times',
                "Say {} {} times",
                "Write {} {} times",
                "Repeat the word {} {} times",
                "Say the word {} {} times",
            )
        )
        count = draw.choice((str(times), lists.NUMBER_WORDS[times]))
        answer = " ".join([word] * times)
        return _as_typed(draw, pattern.format(word, count), answer, f"copy|{pattern}|{answer}")
    text = " ".join(draw_value(draw, kind).said for _ in range(draw.integer(1, 7)))
    pattern = draw.choice(
        (
            "Repeat: {}",
            "Repeat after me: {}",
            'Say "{}"',
            'Repeat "{}"',
            "Echo {}",
            "Copy this: {}",
            "Say: {}",
        )
    )
    # A full stop at the end would be part of what is copied.
    sentence = pattern.format(text)
    return Exchange((user(sentence), assistant(text)), f"copy|{pattern}|{text}")


def counting(draw: Draw) -> Exchange:
    """Counts up or down, at most a hundred numbers, up to about 130."""
    first = draw.choice((1, 1, draw.integer(0, 20), draw.integer(0, 90)))
    length = draw.choice((draw.integer(2, 12), draw.integer(2, 20), draw.integer(10, 40)))
    if draw.chance(0.15):
        # Over the hundred, where a third digit comes in.
        first, length = draw.integer(80, 99), draw.integer(2, 25)
    elif draw.chance(0.03):
        first, length = 1, draw.choice((50, 100))
    last = first + length if first > 1 else length
    if draw.chance(0.2):
        first, last = last, first
    pattern = draw.choice(
        ("Count from {} to {}", "Count from {} to {}", "List the numbers from {} to {}")
    )
    if first == 1 and draw.chance(0.3):
        pattern = "Count to {1}"
    if first > last:
        pattern = "Count down from {} to {}"
    step = 1 if first <= last else -1
    answer = ", ".join(str(number) for number in range(first, last + step, step))
    return _plain(draw, pattern.format(first, last), answer, f"count|{first}|{last}")


def sorting(draw: Draw) -> Exchange:
    """Sorts three to six numbers, or names the largest or smallest of two to four."""
    if draw.chance(0.3):
        numbers = draw.sample(range(100), draw.integer(2, 4))
        largest = draw.chance(0.5)
        word = draw.choice(("largest", "biggest") if largest else ("smallest", "lowest"))
        found = max(numbers) if largest else min(numbers)
        listing = ", ".join(map(str, numbers))
        sentence = f"Which number is the {word}: {listing}?"
        return _plain(draw, sentence, f"The {word} is {found}.", f"extreme|{word}|{listing}")
    high = draw.choice((10, 20, 100))
    numbers = draw.sample(range(high), draw.integer(3, 6))
    listing = ", ".join(map(str, numbers))
    pattern = draw.choice(
        ("Sort {}", "Sort these numbers: {}", "Put these in order: {}", "Sort: {}")
    )
    answer = ", ".join(map(str, sorted(numbers)))
    return _plain(draw, pattern.format(listing), answer, f"sort|{listing}")


def facts(draw: Draw) -> Exchange:
    """Capitals, opposites, series and a few other things from the tables."""
    table = draw.choice(("capital", "capital", "opposite", "fact", "fact", "series", "group"))
    if table == "capital":
        country = draw.choice(tuple(lists.CAPITALS))
        pattern = draw.choice(
            (
                "What is the capital of {}?",
                "What is the capital of {}?",
                "What's the capital of {}?",
                "Which city is the capital of {}?",
                "Name the capital of {}",
                "Capital of {}?",
            )
        )
        subject = country[:1].upper() + country[1:]
        answer = f"The capital of {country} is {lists.CAPITALS[country]}."
        canonical = ALWAYS_TRAINED if pattern == "What is the capital of {}?" else ""
        combination = f"{canonical}capital|{pattern}|{subject}"
        return _plain(draw, pattern.format(country), answer, combination)
    if table == "opposite":
        word = draw.choice(tuple(lists.OPPOSITES))
        pattern = draw.choice(("What is the opposite of {}?", "Name the opposite of {}"))
        answer = f"The opposite of {word} is {lists.OPPOSITES[word]}."
        return _plain(draw, pattern.format(word), answer, f"opposite|{pattern}|{word}")
    if table == "fact":
        question = draw.choice(tuple(lists.FACTS))
        text, _ = dress(draw, question)
        canonical = ALWAYS_TRAINED if text == question else ""
        return Exchange((user(text), assistant(lists.FACTS[question])), f"{canonical}fact|{text}")
    if table == "series":
        name = draw.choice(tuple(lists.SERIES))
        pattern = draw.choice(("List the {}", "What are the {}?", "Name the {}", "Tell me the {}"))
        return _plain(draw, pattern.format(name), lists.SERIES[name], f"series|{pattern}|{name}")
    name = draw.choice(tuple(lists.GROUPS))
    count = draw.integer(2, 6)
    pattern = draw.choice(("List {} {}", "Name {} {}", "Give me {} {}"))
    answer = ", ".join(lists.GROUPS[name][:count])
    number = draw.choice((str(count), lists.NUMBER_WORDS[count]))
    return _plain(draw, pattern.format(number, name), answer, f"group|{pattern}|{name}|{count}")


def json_on_request(draw: Draw) -> Exchange:
    """An object or a list in JSON from what the sentence names."""
    if draw.chance(0.3):
        kind = draw.choice(("item", "city", "person", "amount"))
        values = [draw_value(draw, kind) for _ in range(draw.integer(2, 5))]
        pattern = draw.choice(("Make a JSON list of {}", "As a JSON list: {}", "JSON list: {}"))
        sentence = pattern.format(", ".join(value.said for value in values))
        answer = json.dumps([value.json for value in values])
        return _as_typed(draw, sentence, answer, f"json|{pattern}|{answer}")
    fields: dict[str, object] = {}
    parts = []
    for _ in range(draw.integer(1, 4)):
        kind = draw.choice(("person", "city", "word", "item", "amount", "small", "time"))
        name = draw.listed("number_field" if kind in ("amount", "small") else "field")
        if name not in fields:
            value = draw_value(draw, kind)
            fields[name] = value.json
            parts.append(f"{name} {value.said}")
    pattern = draw.choice(
        (
            "Make a JSON object with {}",
            "Give me JSON with {}",
            "Answer in JSON: {}",
            "Write a JSON object with {}",
            "Return JSON with {}",
        )
    )
    answer = json.dumps(fields)
    listing = draw.choice((" and ", ", ")).join(parts)
    return _as_typed(draw, pattern.format(listing), answer, f"json|{pattern}|{answer}")


TALK: dict[str, Callable[[Draw], Exchange]] = {
    "talk": small_talk,
    "beyond": beyond,
    "arithmetic": arithmetic,
    "copy": copying,
    "count": counting,
    "sort": sorting,
    "facts": facts,
    "json": json_on_request,
}
