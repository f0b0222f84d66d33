"""What is made of the checks that LangChain's Responses mode is tried with."""

import pytest

from tests.suites.langchain import judge

VERSIONS = {"langchain-core": "1.0", "langgraph": "2.0", "openai": "3.0"}


def test_a_check_that_does_not_hold_fails_the_suite_and_is_told() -> None:
    good = judge("LangChain", VERSIONS, [("a stream", ""), ("a tool", "")])
    assert not good.has_failed
    assert "| a stream | yes |\n| a tool | yes |" in good.markdown()
    assert "With langchain-core 1.0, langgraph 2.0, openai 3.0." in good.markdown()
    bad = judge("LangChain", VERSIONS, [("a stream", ""), ("a tool", "ValueError: none")])
    assert bad.has_failed
    assert "| a tool | **no: ValueError: none** |" in bad.markdown()


def test_a_run_without_a_check_shows_nothing() -> None:
    with pytest.raises(ValueError, match="no check"):
        judge("LangChain", VERSIONS, [])
