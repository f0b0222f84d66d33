"""Templates of strangers are bounded in memory and time, and otherwise render as they did."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import psutil
import pytest

from engine_worker.errors import HelperLostError
from engine_worker.text.template_process import TEXT, render
from engine_worker.text.template_renderer import (
    RENDERER,
    TemplateCostError,
    TemplateRefusedError,
    TemplateRenderer,
)

VARIABLES: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": False}
MESSAGES = [{"role": "user", "content": "Grüße \udcf7 \N{PILE OF POO}"}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools|tojson }}"
HUGE = [
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 'a'.center(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6)|list|join('b' * 10**6) }}",
    "{{ {'a': 1}|tojson(indent=10**10) }}",
    "{% set n = namespace(t='a') %}{% for i in range(64) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 10**6 }}{% endfor %}",
]


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_secret")
        own = TemplateRenderer()
        yield own
        own.close()


def rendered(renderer: TemplateRenderer, source: str, **options: Any) -> str:
    return renderer.render(source, MESSAGES, None, VARIABLES, **options)


def test_the_text_is_what_the_renderer_makes_here(renderer: TemplateRenderer) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    here = render(PLAIN, MESSAGES, tools, VARIABLES, 10.0)
    assert (TEXT, renderer.render(PLAIN, MESSAGES, tools, VARIABLES)) == here
    assert "Grüße \udcf7 \N{PILE OF POO}" in here[1]


@pytest.mark.parametrize("source", HUGE)
def test_memory_is_bounded(renderer: TemplateRenderer, source: str) -> None:
    with pytest.raises(TemplateCostError, match="memory"):
        rendered(renderer, source)
    assert rendered(renderer, "x{{ 1 + 1 }}") == "x2"


def test_what_a_message_is_repeated_to_is_bounded_too(renderer: TemplateRenderer) -> None:
    short = {"role": "user", "content": "a"}
    many = [{"role": "user", "content": "a" * 10**6}, *[short] * 4000]
    source = "{% for m in messages %}{{ messages[0].content }}{% endfor %}"
    with pytest.raises(TemplateCostError, match="memory"):
        renderer.render(source, many, None, VARIABLES)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (7 ** 9) }}",
    ],
)
def test_time_is_bounded_also_of_a_call_of_c(renderer: TemplateRenderer, source: str) -> None:
    with pytest.raises(TemplateCostError, match=r"computed for more than 0\.2 s"):
        rendered(renderer, source, max_compute_s=0.2)
    assert rendered(renderer, "x") == "x"


def test_a_refusal_has_the_words_of_the_template(renderer: TemplateRenderer) -> None:
    with pytest.raises(TemplateRefusedError, match="only users"):
        rendered(renderer, "{{ raise_exception('only users') }}")
    with pytest.raises(TemplateRefusedError):
        rendered(renderer, "{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ cycler() }}",
        "{% break %}",
        "{% for a in [1] %}" * 21 + "{% endfor %}" * 21,
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_whatever_a_template_raises_is_a_refusal_and_costs_no_process(
    renderer: TemplateRenderer, source: str
) -> None:
    """A RuntimeError or SyntaxError ended the process, and was told as too much memory."""
    assert rendered(renderer, "x") == "x"
    before = [one._process and one._process.pid for one in renderer._processes]
    with pytest.raises(TemplateRefusedError):
        rendered(renderer, source)
    assert [one._process and one._process.pid for one in renderer._processes] == before


def test_a_process_that_was_killed_is_replaced(renderer: TemplateRenderer) -> None:
    assert rendered(renderer, "x") == "x"
    children = psutil.Process().children()
    killed = [one for one in children if "engine_worker.text.template_process" in one.cmdline()]
    for one in killed:
        os.kill(one.pid, signal.SIGKILL)
    for one in killed:
        one.wait(60)
    assert killed
    assert [rendered(renderer, "x") for _ in range(3)] == ["x"] * 3


def test_a_process_that_is_killed_while_it_renders_is_replaced(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its death came as too much memory, which is the fault of whoever wrote the messages."""
    num_left = [1]
    receive = Connection.recv_bytes

    def killed(connection: Connection, maxlength: int | None = None) -> bytes:
        if num_left[0]:
            num_left[0] -= 1
            (process,) = [one for one in renderer._processes if one._connection is connection]
            assert process._process is not None
            process._process.kill()
            process._process.wait(60)
            raise EOFError
        return receive(connection, maxlength)

    monkeypatch.setattr(Connection, "recv_bytes", killed)
    assert rendered(renderer, "x") == "x"
    num_left[0] = 2
    with pytest.raises(HelperLostError, match="was killed"):
        rendered(renderer, "x")
    assert rendered(renderer, "x") == "x"


def test_several_threads_render_at_a_time(renderer: TemplateRenderer) -> None:
    with ThreadPoolExecutor(6) as pool:
        sources = [f"{number}{{{{ messages[0].role }}}}" for number in range(24)]
        texts = list(pool.map(lambda source: rendered(renderer, source), sources))
    assert texts == [f"{number}user" for number in range(24)]


def test_the_bundled_template_needs_no_process() -> None:
    own = TemplateRenderer()
    source = own._own
    assert source
    assert own.is_ours(source)
    assert not own.is_ours(source + " ")
    assert not RENDERER.is_ours("")
    assert "?" in own.render(
        source, [{"role": "user", "content": "?"}], None, VARIABLES, is_ours=True
    )
    assert not any(process.is_alive for process in own._processes)


def test_a_process_gets_no_secret_of_the_engines_environment(renderer: TemplateRenderer) -> None:
    assert rendered(renderer, "x") == "x"
    running = [one._process for one in renderer._processes if one._process is not None]
    assert running
    for process in running:
        assert "hf_secret" not in psutil.Process(process.pid).environ().values()
