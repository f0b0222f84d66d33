"""Reasoning whose end is the header of the next message is ended over HTTP, in every API.

The parser and the end of reasoning are the real ones; the model is a script that would muse on.
"""

import time
from pathlib import Path

import pytest

from engine_worker.text.thoughts import ThoughtLimit
from protocol.wire.codec import parser_command_decoder
from protocol.wire.messages import EngineCommand, Generate, ParserCommand, ParserOffer
from tests.fakes.fake_workers import FakeEngine, FakeWorker
from tests.fakes.running_gateway import RunningGateway, running_gateway
from toolparser_worker.formats import REASONING_FORMATS, TOOL_FORMATS
from toolparser_worker.handler import ParserHandler
from toolparser_worker.sessions import SessionStore

HEADERS = {
    "openai_gptoss": "<|channel|>analysis<|message|>",
    "inkling": "<|content_thinking|>",
    "muse_glimmer": " to=self<|message|>",
}
MUSINGS = "0123456789" * 3
MESSAGES = [{"role": "user", "content": "?"}]
CHAT = {"model": "demo", "messages": MESSAGES}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}


class RealParser(FakeWorker[ParserCommand]):
    """The parser worker itself, in this process."""

    def __init__(self, directory: Path) -> None:
        super().__init__("toolparser", directory, parser_command_decoder())
        store = SessionStore(max_sessions=64, idle_timeout_s=60.0, clock=time.monotonic)
        self.handler = ParserHandler(store, self.worker.send, self.worker.flush)

    def start(self) -> None:
        self.worker.start()
        self.worker.announce(ParserOffer(tuple(TOOL_FORMATS), tuple(REASONING_FORMATS)))

    def answer(self, command: ParserCommand) -> None:
        self.handler.on_command(self.gateway_id, command)


class MusingEngine(FakeEngine):
    """A model that draws given characters, one a token, and ends reasoning as an engine does."""

    drawn = ""

    def answer(self, command: EngineCommand) -> None:
        if not isinstance(command, Generate):
            super().answer(command)
            return
        text, draws = "", list(self.drawn)
        limit = None
        if command.thought is not None:
            limit = ThoughtLimit(
                command.thought, command.max_thought_tokens, lambda text: list(map(ord, text))
            )
        while draws or (limit is not None and limit.has_forced):
            is_forced = limit is not None and limit.has_forced
            character = chr(limit.next_forced()) if is_forced and limit else draws.pop(0)
            if limit is not None:
                limit.push(ord(character), character, is_whole=True)
            text += character
        self._say_all(command, list(text))


async def deployment(gateway: RunningGateway, name: str, drawn: str) -> None:
    await gateway.auth()
    tool_format = "openai" if name == "openai_gptoss" else name
    engine = MusingEngine(gateway.directory, reasoning_format=name, tool_format=tool_format)
    engine.drawn = drawn
    parser = RealParser(gateway.directory)
    for worker in (engine, parser):
        gateway.workers.append(worker)
        worker.start()
    await gateway.until(lambda: gateway.is_known(engine) and gateway.is_known(parser))


@pytest.mark.parametrize("name", HEADERS)
async def test_a_budget_ends_reasoning_and_the_answer_follows(socket_dir: Path, name: str) -> None:
    async with running_gateway(socket_dir) as gateway:
        await deployment(gateway, name, HEADERS[name] + MUSINGS)
        answer = (await gateway.chat(thinking_token_budget=12)).json()
        message = answer["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (MUSINGS[:12], MUSINGS[12:])
        free = (await gateway.chat()).json()["choices"][0]["message"]
        assert (free["reasoning_content"], free["content"]) == (MUSINGS, "")


@pytest.mark.parametrize("name", HEADERS)
async def test_an_effort_and_the_other_apis_do_the_same(socket_dir: Path, name: str) -> None:
    budgets = ("low=12", "minimal=0")
    async with running_gateway(socket_dir, thinking_budgets=budgets) as gateway:
        await deployment(gateway, name, HEADERS[name] + MUSINGS)
        chat = (await gateway.chat(reasoning_effort="low")).json()["choices"][0]["message"]
        assert (chat["reasoning_content"], chat["content"]) == (MUSINGS[:12], MUSINGS[12:])
        none = (await gateway.chat(reasoning_effort="minimal")).json()["choices"][0]["message"]
        assert (none.get("reasoning_content"), none["content"]) == (None, MUSINGS)
        response = await gateway.client.post(
            "/v1/responses", json={"model": "demo", "input": "?", "reasoning": {"effort": "low"}}
        )
        thought, said = response.json()["output"]
        assert thought["summary"][0]["text"] == MUSINGS[:12]
        assert said["content"][0]["text"] == MUSINGS[12:]
        for fields in (
            {"thinking": {"type": "enabled", "budget_tokens": 12}},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ):
            body = {**CHAT, "max_tokens": 900, **fields}
            blocks = (await gateway.client.post("/v1/messages", json=body)).json()["content"]
            assert [one.get("thinking", one.get("text")) for one in blocks] == [
                MUSINGS[:12],
                MUSINGS[12:],
            ]


async def test_a_tool_is_called_after_reasoning_that_was_ended(socket_dir: Path) -> None:
    """What follows is the model's choice where it may call: its call is not turned into text."""
    header = HEADERS["openai_gptoss"]
    call = ' to=functions.f<|channel|>commentary json<|message|>{"x":1}<|call|>'
    tools = [{"type": "function", "function": FUNCTION}]
    async with running_gateway(socket_dir) as gateway:
        await deployment(gateway, "openai_gptoss", header + MUSINGS[:12] + call)
        answer = (await gateway.chat(thinking_token_budget=12, tools=tools)).json()
        message = answer["choices"][0]["message"]
        assert message["reasoning_content"] == MUSINGS[:12]
        assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":1}'}
