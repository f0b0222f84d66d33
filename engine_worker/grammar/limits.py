"""What a compiled grammar may cost: the limits that llguidance is given."""

from typing import Final

LIMITS: Final = {
    # Without it messages hold parts of the parser's state.
    "verbose_errors": False,
    # About 1 to 2 kB each, for every request that uses the grammar.
    "max_lexer_states": 25_000,
    "initial_lexer_fuel": 1_000_000,
    # About 10 ms a step.
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_grammar_size": 250_000,
}
"""Arguments of `llguidance.LLParserLimits`."""
