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
    # Of one mask. Where a text can be read in many ways each takes microseconds, and the library's
    # 50,000 held up everybody's step for 0.1 s and more. Real schemas, and grammars of 1,024 tools,
    # need 2,000 at most with a vocabulary of 100,000.
    "step_max_items": 5_000,
    "max_grammar_size": 500_000,
}
"""Arguments of `llguidance.LLParserLimits`."""

TRIED_ROW_ITEMS: Final = (200, 225, 250, 275, 300)
"""Ways to go on at one place of a text. A grammar that meets each of these at another place has
more of them the longer its text is, and the work of a place grows with their square."""
ROW_ITEMS: Final = 800
"""The limit of a Lark grammar that doesn't; there may be places that its trial didn't come to."""
BROAD_ROW_ITEMS: Final = 2_000
"""For grammars that name more at one place, such as a thousand tools, and for those that we write;
as llguidance has it."""
CALM_LEXER_STATES: Final = 4_000
"""A grammar whose long outputs need no more states is shared between outputs."""


def parser_limits(**changes: Any) -> LLParserLimits:
    """The limits as llguidance takes them."""
    return LLParserLimits(**{**LIMITS, **changes})
