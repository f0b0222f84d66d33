"""LangChain's Responses mode against a server, in an environment that has just LangChain.

    python langchain_checks.py URL MODEL

Prints a JSON list of checks: their names, and what went wrong or nothing. It imports nothing of the
project, which isn't there.
"""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

import openai
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel

SUM: Final = "What is 2 + 3?"
WEATHER: Final = "What is the weather in Paris?"
FORMATS: Final = ("v0", "responses/v1", "v1")
"""How messages keep what a response had, and send it back."""


class Digit(BaseModel):
    """What the answer is."""

    n: int


def _weather(city: str) -> str:
    """Get the weather of a city."""
    return json.dumps({"city": city, "temperature": 18, "condition": "sunny"})


GET_WEATHER: Final = tool("get_weather")(_weather)


class Checks:
    """What is tried; every public method is a check, which raises what went wrong.

    It is long because there are so many.

    Args:
        url: Of the server, with `/v1`.
        model: Served there.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._name = model

    def _model(self, **options: Any) -> Any:
        return ChatOpenAI(
            model=self._name,
            base_url=self._url,
            api_key="none",
            use_responses_api=True,
            temperature=0,
            max_retries=0,
            timeout=120,
            **options,
        )

    def a_stream_says_what_an_answer_says(self) -> None:
        """Text, usage and the id of the response are in both."""
        whole = self._model().invoke(SUM)
        streamed = _streamed(self._model(), SUM)
        assert "5" in whole.text
        assert streamed.text == whole.text
        assert whole.usage_metadata["output_tokens"] > 0
        assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
        assert whole.response_metadata["status"] == "completed"
        for message in (whole, streamed):
            assert message.response_metadata["id"].startswith("resp_")

    def several_are_asked_at_once(self) -> None:
        """Each gets its own answer."""
        five, four = self._model().batch([SUM, "What is 2 + 2?"])
        assert "5" in five.text
        assert "4" in four.text

    def a_tool_makes_the_round_trip(self) -> None:
        """The model calls it, and reads what it answered, in every format of messages."""
        for version in FORMATS:
            model = self._model(output_version=version).bind_tools([GET_WEATHER])
            messages: list[Any] = [HumanMessage(WEATHER)]
            messages.append(model.invoke(messages))
            _use_tools(messages)
            assert "18" in model.invoke(messages).text, version

    def a_streamed_tool_call_makes_the_round_trip(self) -> None:
        """So do calls that came in pieces, of a strict tool."""
        for version in FORMATS:
            model = self._model(output_version=version).bind_tools([GET_WEATHER], strict=True)
            messages: list[Any] = [HumanMessage(WEATHER)]
            messages.append(_streamed(model, messages))
            _use_tools(messages)
            assert "18" in _streamed(model, messages).text, version

    def a_tool_choice_is_kept(self) -> None:
        """Forced, named, and none."""
        for choice, has_calls in (("any", True), ("get_weather", True), ("none", False)):
            model = self._model().bind_tools(
                [GET_WEATHER], tool_choice=choice, parallel_tool_calls=False
            )
            assert bool(model.invoke(WEATHER).tool_calls) is has_calls, choice

    def structured_output_is_of_its_type(self) -> None:
        """By a schema, by a call, and by a schema that is streamed."""
        for method in ("json_schema", "function_calling"):
            found = self._model().with_structured_output(Digit, method=method).invoke(SUM)
            assert isinstance(found, Digit), method
        raw = self._model().with_structured_output(Digit, include_raw=True, strict=True).invoke(SUM)
        assert isinstance(raw["parsed"], Digit)
        *_, last = self._model().with_structured_output(Digit).stream(SUM)
        assert isinstance(last, Digit)

    def a_mode_of_json_holds_the_text(self) -> None:
        """Without a schema the text is an object all the same, or the beginning of one."""
        model = self._model(max_tokens=60).bind(response_format={"type": "json_object"})
        said = model.invoke("Write JSON.")
        assert said.text.startswith("{"), said.text
        if said.response_metadata["status"] == "completed":
            assert isinstance(json.loads(said.text), dict)

    def a_response_is_continued_by_its_id(self) -> None:
        """Named by the caller, or found by the client in the messages."""
        first = self._model().invoke(SUM)
        alone = self._model().invoke("Why?")
        named = self._model().invoke("Why?", previous_response_id=first.response_metadata["id"])
        assert named.usage_metadata["input_tokens"] > alone.usage_metadata["input_tokens"]
        messages = [HumanMessage(SUM), first, HumanMessage("Why?")]
        found = self._model(use_previous_response_id=True).invoke(messages)
        assert found.text == named.text
        assert found.usage_metadata["input_tokens"] == named.usage_metadata["input_tokens"]

    def a_conversation_is_sent_back_in_every_format(self) -> None:
        """Its messages read alike, whatever they keep."""
        told = set()
        for version in FORMATS:
            model = self._model(output_version=version)
            messages = [SystemMessage("Be short."), HumanMessage(SUM)]
            messages = [*messages, model.invoke(messages), HumanMessage("Why?")]
            told.add(model.invoke(messages).text)
        assert len(told) == 1, told

    def options_of_reasoning_are_taken(self) -> None:
        """Also of a model that doesn't reason; what is sealed is sent back."""
        for reasoning in ({"effort": "low", "summary": "auto"}, {"effort": "high"}):
            assert self._model(reasoning=reasoning).invoke(SUM).text
            assert _streamed(self._model(reasoning=reasoning), SUM).text
        model = self._model(
            reasoning={"effort": "low"},
            include=["reasoning.encrypted_content"],
            store=False,
            output_version="responses/v1",
        )
        messages: list[Any] = [HumanMessage(SUM)]
        messages = [*messages, model.invoke(messages), HumanMessage("Why?")]
        assert model.invoke(messages).text

    def other_options_are_taken(self) -> None:
        """Those that the client has names for."""
        for options in (
            {"verbosity": "low"},
            {"truncation": "auto"},
            {"metadata": {"a": "b"}},
            {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
            {"service_tier": "default"},
        ):
            assert self._model(**options).invoke(SUM).text, options

    def an_answer_that_is_cut_says_so(self) -> None:
        """With the reason."""
        cut = self._model(max_tokens=3).invoke("Count to twenty.")
        assert cut.response_metadata["status"] == "incomplete"
        told = cut.response_metadata["incomplete_details"]
        assert told["reason"] == "max_output_tokens"

    def an_image_is_refused_by_name(self) -> None:
        """As an error of the request."""
        parts = [{"type": "text", "text": SUM}, {"type": "image", "url": "http://localhost/a.png"}]
        told = ""
        try:
            self._model().invoke([HumanMessage(parts)])
        except openai.BadRequestError as error:
            told = str(error)
        assert "input_image" in told, told

    def an_agent_uses_its_tool(self) -> None:
        """LangGraph's, whole and in pieces."""
        agent = create_react_agent(self._model(output_version="responses/v1"), [GET_WEATHER])
        asked = {"messages": [("user", WEATHER)]}
        messages = agent.invoke(asked)["messages"]
        assert [type(one).__name__ for one in messages] == [
            *("HumanMessage", "AIMessage", "ToolMessage", "AIMessage")
        ]
        assert "18" in messages[-1].text
        pieces = [piece for piece, _ in agent.stream(asked, stream_mode="messages")]
        said = "".join(piece.text for piece in pieces if isinstance(piece, AIMessageChunk))
        assert "18" in said


def _streamed(model: Any, asked: Any) -> Any:
    """The message that the pieces add up to."""
    first, *rest = model.stream(asked)
    for piece in rest:
        first += piece
    return first


def _use_tools(messages: list[Any]) -> None:
    """Run what the last message calls."""
    said = messages[-1]
    assert isinstance(said, AIMessage)
    (call,) = said.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    messages.append(GET_WEATHER.invoke(call))


def outcome_of(check: Callable[[], None]) -> str:
    """What went wrong; empty when nothing did."""
    try:
        check()
    except Exception as error:  # noqa: BLE001  # whatever the client raises is a finding
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def main(arguments: Sequence[str]) -> None:
    """Make all checks of a server."""
    url, model = arguments
    checks = Checks(url, model)
    names = [name for name in vars(Checks) if not name.startswith("_")]
    found = [(name.replace("_", " "), outcome_of(getattr(checks, name))) for name in names]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
