"""What a compiled grammar may cost: the limits that llguidance is given."""

from typing import Any, Final

from llguidance import LLParserLimits

LIMITS: Final[dict[str, Any]] = {
    # Without it messages hold parts of the parser's state.
    "verbose_errors": False,
    # About 1 to 2 kB each, for every output or, where they are few, for all outputs together.
    "max_lexer_states": 100_000,
    # As llguidance has them: an ordinary pattern with bounded repetitions needs no less.
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_grammar_size": 500_000,
}
"""Arguments of `llguidance.LLParserLimits`."""

CALM_LEXER_STATES: Final = 4_000
"""A grammar whose long outputs need no more states is shared between outputs."""


def parser_limits(**changes: Any) -> LLParserLimits:
    """The limits as llguidance takes them."""
    return LLParserLimits(**{**LIMITS, **changes})
