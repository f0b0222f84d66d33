"""How weak a key is that a person chose."""

import math
import re

MIN_GIVEN_KEY_CHARS = 24
MAX_GIVEN_KEY_CHARS = 512
MIN_GIVEN_KEY_BITS = 64.0

# Cut out before the rest is judged; longest first, so that "password" goes before "pass".
_WEAK_WORDS = sorted(
    (
        *("penstock", "admin", "administrator", "root", "master", "password", "passwort", "passwd"),
        *("pass", "secret", "changeme", "change", "replace", "insert", "example", "sample"),
        *("default", "letmein", "welcome", "qwerty", "qwertz", "azerty", "asdf"),
        *("zxcv", "token", "apikey", "api", "key", "user", "test", "testing", "demo", "local"),
        *("dev", "development", "prod", "production", "staging", "super", "your", "this", "here"),
        *("very", "long", "strong", "secure", "private", "dummy", "placeholder", "correct"),
        *("horse", "battery", "staple", "foobar", "foo", "bar", "baz", "hunter2", "iloveyou"),
        *("monkey", "dragon", "psk", "sk", "llm", "openai", "server", "the", "and", "my", "me"),
    ),
    key=len,
    reverse=True,
)
_WEAK_PATTERN = re.compile("|".join(map(re.escape, _WEAK_WORDS)), re.IGNORECASE)


def weakness_of(key: str) -> str | None:
    """Why a key that a person chose is too weak to be the admin key; None when it is not.

    The message never repeats the key. Known words and runs are cut out first; what is left must be
    worth 64 bits when each character is counted by how many different ones there are.
    """
    if not all("!" <= char <= "~" for char in key):
        return "it holds a space or a character outside printable ASCII"
    if len(key) < MIN_GIVEN_KEY_CHARS:
        return f"it has {len(key)} characters, at least {MIN_GIVEN_KEY_CHARS} are needed"
    if len(key) > MAX_GIVEN_KEY_CHARS:
        return f"it has {len(key)} characters, at most {MAX_GIVEN_KEY_CHARS} are allowed"
    rest = _without_runs(_WEAK_PATTERN.sub("", key))
    num_distinct = len(set(rest))
    bits = len(rest) * math.log2(num_distinct) if num_distinct > 1 else 0.0
    if bits < MIN_GIVEN_KEY_BITS:
        return "it is easy to guess (known words, repetition or too few different characters)"
    return None


def _without_runs(text: str) -> str:
    """Drop what repeats or continues its predecessor (`aaaa`, `1234`) and all but one period."""
    kept = [
        char
        for index, char in enumerate(text)
        if index == 0 or ord(char) - ord(text[index - 1]) not in (-1, 0, 1)
    ]
    for period in range(1, len(kept) // 2 + 1):
        if kept[period:] == kept[:-period]:
            kept = kept[:period]
            break
    return "".join(kept)
