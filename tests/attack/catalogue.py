"""Every attack by its name."""

from typing import Final

from tests.attack.bodies import (
    at_full_speed,
    chat_to_truncate,
    dribble,
    ids_to_detokenize,
    inputs_to_embed,
    leave,
    prompt_to_tokenize,
    text_to_parse,
)
from tests.attack.connections import (
    flood_of_unknown_keys,
    half_a_head,
    idle,
    odd_routes,
    pipelines,
    storm,
    unread_streams,
)
from tests.attack.engines import ENGINE_DEATHS_A_PROMPT, POISON, amplify, grammar_bombs, poison
from tests.attack.target import CHAT, EMBEDDINGS, Attack
from tests.attack.values import bad_values

ATTACKS: Final = (
    Attack("slow-32", "32 strangers with made-up keys dribble 10 MB", dribble(32, "made-up keys")),
    Attack(
        "slow-200",
        "200 strangers, half of them with made-up keys, dribble 10 MB",
        dribble(200, "with and without"),
    ),
    Attack("large-no-key", "10 MB bodies without a key, 4 at a time", at_full_speed("no key")),
    Attack(
        "large-made-up",
        "10 MB bodies with made-up keys, 4 at a time",
        at_full_speed("made-up keys"),
    ),
    Attack(
        "large-valid",
        "10 MB bodies of six shapes with a valid key, 4 at a time",
        at_full_speed("a valid key"),
    ),
    Attack(
        "leave-tokenize",
        "12 clients send 9.5 MB to /tokenize and leave",
        leave("/tokenize", prompt_to_tokenize),
        harness="real",
        num_engines=1,
    ),
    Attack(
        "leave-truncate",
        "12 clients send a 9.5 MB chat with truncate_prompt_tokens and leave",
        leave(CHAT, chat_to_truncate),
        harness="real",
        num_engines=1,
    ),
    Attack(
        "leave-embed",
        "12 clients send 2,000 inputs to /v1/embeddings and leave",
        leave(EMBEDDINGS, inputs_to_embed),
        harness="real",
        good="embedding",
        num_engines=1,
    ),
    Attack(
        "leave-detokenize",
        "12 clients send a million ids to /detokenize and leave",
        leave("/detokenize", ids_to_detokenize),
        harness="real",
        num_engines=1,
    ),
    Attack(
        "leave-parse",
        "12 clients send 8 MB to /v1/parse and leave",
        leave("/v1/parse", text_to_parse),
    ),
    Attack(
        "amplify",
        "128 prompts with echo and logprobs 20; n=64 with top_logprobs 20",
        amplify,
        harness="real",
        num_engines=1,
    ),
    Attack("idle-5000", "5,000 idle connections of one address", idle(5000, spread=False)),
    Attack("idle-5000-spread", "5,000 idle connections of 50 addresses", idle(5000, spread=True)),
    Attack(
        "half-heads",
        "1,000 connections with half a head, of 50 addresses",
        idle(1000, spread=True, first=half_a_head()),
    ),
    Attack("storm", "16 clients connect and close as fast as it goes", storm),
    Attack(
        "grammar-bombs",
        "30 costly grammars at a time; the good client has small ones",
        grammar_bombs,
        harness="real",
        good="grammar",
        num_engines=1,
    ),
    Attack(
        "poison-embeddings",
        "two inputs of embeddings at which engines die, again and again",
        poison,
        num_engines=ENGINE_DEATHS_A_PROMPT + 1,
        max_deaths=ENGINE_DEATHS_A_PROMPT * len(POISON),
    ),
    Attack("unread-streams", "50 long streams that nobody reads", unread_streams),
    Attack("bad-values", "every bad value in every place of every route", bad_values),
    Attack("flood-keys", "500 chats a second with made-up keys", flood_of_unknown_keys),
    Attack("flood-pipelines", "100 requests in a write, on 6 connections", pipelines),
    Attack("flood-routes", "methods and paths that are not there, 8 at a time", odd_routes),
)
