"""The commands and their options; each hands over to the module that does the work."""

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from penstock import __name__ as program
from penstock.admin_options import DataDir, KeyFile, Url, admin_client, option_of
from penstock.api_client import ApiClient
from penstock.audit_commands import audit
from penstock.auth_commands import auth
from penstock.chat import answer, choose_model, converse
from penstock.config import CACHE_DIR, REVISION, SERVE_OPTIONS, URL, build_settings
from penstock.fake_engine.engine import FakeEngineSettings
from penstock.fake_engine.script import FINGERPRINT
from penstock.key_commands import keys
from penstock.parse import parse as parse_input
from penstock.resource_commands import budgets, limits, prices, teams, users, webhooks
from penstock.terminal import visible_line
from penstock.usage_commands import show_budgets, show_usage
from penstock.worker_commands import show_workers
from protocol.runtime.logs import setup as setup_logs
from protocol.runtime.settings import Setting
from protocol.runtime.shared_settings import LOG_LEVEL, MODEL_PATH

app = typer.Typer(
    name=program,
    help="Serve language models over the OpenAI API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # As markup, what stands in brackets would vanish from the help.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys, name="keys")
app.add_typer(users, name="users")
app.add_typer(teams, name="teams")
app.add_typer(limits, name="limits")
app.add_typer(budgets, name="budgets")
app.add_typer(prices, name="prices")
app.add_typer(webhooks, name="webhooks")
app.add_typer(audit, name="audit")
app.add_typer(auth, name="auth")
app.command("usage")(show_usage)
app.command("workers")(show_workers)
budgets.command("status")(show_budgets)
bench = typer.Typer(
    help="Measure how fast this machine is.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(bench, name="bench")

_FAKE = FakeEngineSettings()
Command = TypeVar("Command", bound=Callable[..., None])


def _with_options(settings: Sequence[Setting[Any]]) -> Callable[[Command], Command]:
    """Gives a command that takes `**given` an option for each setting, named by its key."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        *named, _ = signature.parameters.values()
        options = [
            inspect.Parameter(
                declared.key,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[declared.kind.option_type | None, option_of(declared)],
            )
            for declared in settings
        ]
        full = signature.replace(parameters=[*named, *options])
        command.__signature__ = full  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


_MODEL_OPTION = typer.Option(
    "--model", "-m", help="Name of a served model [the first served].", show_default=False
)


@app.command()
@_with_options(SERVE_OPTIONS)
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="NAME=PATH_OR_ID, a folder, a GGUF file or a Hugging Face id; without one what "
            "PENSTOCK_MODEL_PATH or MODEL_PATH name, else the bundled demo.",
            show_default=False,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Start gateway, engines, parsers and auth on this machine and serve MODEL."""
    # Imported here: an image that only talks to a server has none of what starting one needs.
    from penstock.serve import serve as run_server

    raise typer.Exit(run_server(build_settings({**given, "models": models}), Console()))


def _api_key() -> str | None:
    """From the environment alone: an argument would stand in every list of processes."""
    return os.environ.get("PENSTOCK_API_KEY") or None


@app.command()
def chat(
    message: Annotated[
        str | None, typer.Argument(help="One message; without it, a dialogue.")
    ] = None,
    url: Url = URL.default,
    model: Annotated[str | None, _MODEL_OPTION] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, max=2.0)] = None,
) -> None:
    """Talk to a running server; the key comes from PENSTOCK_API_KEY."""
    console = Console()
    with ApiClient(url, _api_key()) as client:
        body: dict[str, Any] = {"model": choose_model(client, model)}
        body |= {"max_tokens": max_tokens} if max_tokens is not None else {}
        body |= {"temperature": temperature} if temperature is not None else {}
        messages = [{"role": "system", "content": system}] if system else []
        if message is None:
            converse(client, body, messages, console, lambda: input("> "))
            return
        messages.append({"role": "user", "content": message})
        answer(client, body, messages, console)


@bench.command(
    "engine", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def bench_engine(context: typer.Context) -> None:
    """Tokens per second of a model at several concurrencies, without sockets.

    Takes a model folder and the options that `python -m engine_worker.bench --help` lists.
    """
    command = [sys.executable, "-m", "engine_worker.bench", *context.args]
    done = subprocess.run(command, check=False)  # noqa: S603 - our own module, no shell
    raise typer.Exit(done.returncode)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def quality(context: typer.Context) -> None:
    """What a type of weights costs: KL divergence, top-1 agreement and perplexity on a text.

    Takes a model folder and the options that `python -m engine_worker.quality --help` lists.
    """
    command = [sys.executable, "-m", "engine_worker.quality", *context.args]
    done = subprocess.run(command, check=False)  # noqa: S603 - our own module, no shell
    raise typer.Exit(done.returncode)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def convert(context: typer.Context) -> None:
    """Make a folder with safetensors of a PyTorch checkpoint (.pt, .bin), without unpickling it.

    Takes the arguments that `python -m engine_worker.convert --help` lists.
    """
    command = [sys.executable, "-m", "engine_worker.convert", *context.args]
    done = subprocess.run(command, check=False)  # noqa: S603 - our own module, no shell
    raise typer.Exit(done.returncode)


@app.command()
def profile(
    seconds: Annotated[float, typer.Option("--seconds", help="How long.")] = 5.0,
    model: Annotated[str | None, _MODEL_OPTION] = None,
    url: Url = URL.default,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Record what a running engine does, as a trace for Perfetto or xprof."""
    with admin_client(url, key_file, data_dir) as client:
        body = {"model": choose_model(client, model), "seconds": seconds}
        recorded = client.request("POST", "/v1/admin/profile", body)
        with client.reading():
            size = f"({recorded['size_bytes']} bytes, {recorded['engine']})"
            typer.echo(visible_line(f"{recorded['directory']} {size}"))


@app.command()
def ping(url: Url = URL.default) -> None:
    """Check that a server answers; exit code 0 when it does."""
    started = time.perf_counter()
    with ApiClient(url) as client:
        client.request("GET", "/ping")
    typer.echo(f"{client.url} answered in {(time.perf_counter() - started) * 1000:.1f} ms")


@app.command()
def fetch(
    folder: Annotated[Path, typer.Argument(help="Folder of models: MODEL is then FOLDER/MODEL.")],
    model: Annotated[
        str | None,
        option_of(
            MODEL_PATH,
            "--model",
            "Hugging Face id (`org/model:Q4_K_M`); what is local needs no fetching.",
        ),
    ] = None,
    revision: Annotated[str | None, option_of(REVISION)] = None,
) -> None:
    """Download a model once into a folder that engines share."""
    from penstock.fetch import fetch as fetch_model

    typer.echo(fetch_model(model, folder, revision))


@app.command()
def roll(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="NAME=PATH_OR_ID, a folder, a GGUF file or a Hugging Face id; NAME is served.",
        ),
    ],
    revision: Annotated[str | None, option_of(REVISION)] = None,
    data_dir: DataDir = None,
) -> None:
    """Give a model of a server on this machine other weights while it serves.

    One after the other its engines are replaced by ones with the weights of MODEL, each once the
    new one serves; so there must be memory for one more. All other settings stay.
    """
    from penstock.roll import roll as roll_weights

    roll_weights(
        model,
        revision=revision,
        data_dir=data_dir,
        say=lambda line: typer.echo(visible_line(line)),
    )


@app.command()
def keygen(
    directory: Annotated[Path, typer.Argument(help="Folder for the key files.")],
    by_role: Annotated[
        bool, typer.Option("--by-role", help="A folder for each role with just what it needs.")
    ] = False,
    admin_key: Annotated[
        Path | None,
        typer.Option("--admin-key", help="File to write a new admin key to, unless it exists."),
    ] = None,
) -> None:
    """Make the CURVE keys that workers and gateways on different machines need."""
    from penstock.admin_key import make_admin_key
    from protocol.wire.keygen import generate_keys, generate_keys_by_role

    written = generate_keys_by_role(directory) if by_role else generate_keys(directory)
    what = f"{len(written)} files written to" if written else "Nothing is missing in"
    typer.echo(f"{what} {directory}; give each machine only the files of its role.")
    if admin_key is not None:
        made = make_admin_key(admin_key)
        typer.echo(f"Admin key {'written to' if made else 'is already in'} {admin_key}.")


@app.command("run-batch")
def run_batch(
    input_path: Annotated[Path, typer.Argument(metavar="INPUT", help="Requests, JSON lines.")],
    output_path: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Answers, JSON lines.")],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="As for `serve`; by default the bundled model.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="A running server; without it one is started.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            max=1024,
            help="Requests under way at a time, of the server that is started [32].",
            show_default=False,
        ),
    ] = None,
    cache_dir: Annotated[str | None, option_of(CACHE_DIR)] = None,
) -> None:
    """Answer a file of requests in OpenAI's batch format; taken up again where it was cut off.

    It has the batches of a server (/v1/batches) do that. The key of one named by --url comes from
    PENSTOCK_API_KEY.
    """
    from penstock.run_batch import run

    settings = build_settings({"models": models, "cache_dir": cache_dir})
    code = run(
        input_path,
        output_path,
        url=url,
        settings=settings,
        api_key=_api_key(),
        concurrency=concurrency,
        console=Console(stderr=True),
    )
    raise typer.Exit(code)


@app.command("fake-engine")
def fake_engine(
    model: Annotated[str, typer.Option("--model", help="Public name of the model.")] = _FAKE.model,
    tokens_per_s: Annotated[
        float, typer.Option("--tokens-per-s", min=0.0, help="Of each stream; 0: no pauses.")
    ] = _FAKE.tokens_per_s,
    prefill_tokens_per_s: Annotated[
        float, typer.Option("--prefill-tokens-per-s", min=0.0, help="0: prompts take no time.")
    ] = _FAKE.prefill_tokens_per_s,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", min=1, help="Streams that run at a time.")
    ] = _FAKE.max_num_seqs,
    max_model_len: Annotated[
        int, typer.Option("--max-model-len", min=2, help="Prompt and output, tokens (bytes).")
    ] = _FAKE.max_model_len,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", min=1, help="Where answers end by themselves.")
    ] = _FAKE.num_output_tokens,
    fingerprint: Annotated[
        str,
        typer.Option(
            "--fingerprint", help="Of the pretended weights; another one gives other text."
        ),
    ] = FINGERPRINT,
    log_level: Annotated[str, option_of(LOG_LEVEL)] = LOG_LEVEL.default,
) -> None:
    """Run an engine without a model, for load and failure tests.

    It dials PENSTOCK_ENGINE_ENDPOINT as a real one does and says seeded words. A prompt that holds
    [[crash]], [[hang]] or [[fail]] gets just that, [[crash@5]] after five tokens.
    """
    from penstock.fake_engine.service import run

    setup_logs("fake-engine", LOG_LEVEL.accept(log_level, LOG_LEVEL.flag))
    settings = FakeEngineSettings(
        model=model,
        tokens_per_s=tokens_per_s,
        prefill_tokens_per_s=prefill_tokens_per_s,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        num_output_tokens=output_tokens,
        fingerprint=fingerprint,
    )
    raise typer.Exit(run(settings, os.environ))


@app.command()
def parse(
    tool_format: Annotated[
        str | None, typer.Option("--format", help="Tool format, such as hermes.")
    ] = None,
    reasoning_format: Annotated[
        str | None, typer.Option("--reasoning", help="Reasoning format, such as think.")
    ] = None,
    tools: Annotated[
        Path | None, typer.Option("--tools", help="JSON file with OpenAI tools.")
    ] = None,
    prompt_tail: Annotated[
        str, typer.Option("--prompt-tail", help="The prompt's end, if it opened the reasoning.")
    ] = "",
) -> None:
    """Tell content, reasoning and tool calls apart in text from standard input."""
    raise typer.Exit(parse_input(tool_format, reasoning_format, tools, prompt_tail))


@app.command()
def version() -> None:
    """Print the versions of Penstock, its wire and Python."""
    from importlib.metadata import version as installed

    from protocol import PROTOCOL_VERSION

    python = ".".join(str(part) for part in sys.version_info[:3])
    typer.echo(f"penstock {installed('penstock')}, protocol {PROTOCOL_VERSION}, Python {python}")
