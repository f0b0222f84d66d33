"""Assembles a served model from its folder: tokenizer, weights, runner, and what it offers."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from engine_worker.compute.backends.base import Backend, PackedDecoder
from engine_worker.compute.backends.cache_type import AUTO
from engine_worker.compute.backends.choice import (
    BackendName,
    backend_label,
    choose_backend,
    describe,
    identity_of,
    kv_label,
    stored_label,
)
from engine_worker.compute.backends.kv_memory import (
    choose_num_blocks,
    default_kv_memory_bytes,
    device_memory_stats,
    num_kv_tokens,
)
from engine_worker.compute.memory.host_memory import trim_heap
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.dtype import DtypeChoice, read_cpu_flags, resolve_dtype
from engine_worker.compute.models.families.registry import origin_of
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.models.reading import reading_of
from engine_worker.compute.models.rope import for_length, rope_factors
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.loader import stored_formats, with_own_head
from engine_worker.compute.weights.sampling_defaults import load_sampling_defaults
from engine_worker.config import QWEN3_RERANKER, ModelSettings
from engine_worker.core.credits import CreditPolicy
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine import RESUME_VERSION, Engine
from engine_worker.core.metrics import EngineMetrics
from engine_worker.core.score_task import ScoreTask, score_task
from engine_worker.embedding.embedder import Embedder
from engine_worker.loading.cache_shape import (
    block_size_of,
    cache_shape_of,
    choose_max_model_len,
    max_num_seqs_of,
    with_fitting_requests,
)
from engine_worker.loading.encoder import decoder_embedder, embedding_offer, what_follows
from engine_worker.loading.identity import model_fingerprint
from engine_worker.loading.memory_estimate import estimate_memory, require_memory
from engine_worker.loading.phases import PhaseCallback
from engine_worker.loading.quality_record import read_quality
from engine_worker.loading.weights import load_for_backend
from engine_worker.loading.write_behind import WriteBehind
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.fill_in_middle import FillInMiddle
from engine_worker.text.format_detection import DetectedFormats, detect_formats
from engine_worker.text.preparation import PromptPreparer
from engine_worker.text.score_preparation import ScorePreparer
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import BlockPlacement, EngineOffer, Score
from protocol.wire.sampling_ranges import MAX_LOGPROBS

_QWEN3 = "Qwen3ForCausalLM"

_log = logging.getLogger("penstock.engine")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is ready to work.

    Attributes:
        engine: Warm; belongs to the thread that steps it.
        preparer: Renders and tokenises, for any thread.
        tokenizer: The model's.
        template: The model's chat template; may not exist.
        credit_policy: What gateways may have unfinished.
        offer: What is announced to gateways.
        embedder: Makes embeddings with the same weights; None when nobody asked for it.
        scores: Tokenises Scores, for any thread.
    """

    engine: Engine
    preparer: PromptPreparer
    tokenizer: Tokenizer
    template: ChatTemplate
    credit_policy: CreditPolicy
    offer: EngineOffer
    embedder: Embedder | None
    scores: ScorePreparer

    def score_task(self, gateway_id: str, command: Score, received_at: float) -> ScoreTask:
        """What is to be computed for a gateway's Score that came at some time; for any thread.

        Raises:
            RequestError: Something is wrong with it.
        """
        prompt = self.scores.prepare(command)
        return score_task(gateway_id, command, prompt, self.engine.score_limits, received_at)


def load_model(
    settings: ModelSettings,
    on_phase: PhaseCallback,
    metrics: EngineMetrics | None = None,
    *,
    compiler_yields: bool = False,
    behind: WriteBehind | None = None,
) -> ServedModel:
    """Load a model and compile its programs.

    What is quick to check comes first, so that a folder that can't be served is refused at once.
    The tokenizer is loaded beside the weights: its library alone takes seconds to import.

    Args:
        settings: Which model, and how.
        on_phase: Called in this thread, from `loading` to the end of `compiling`.
        metrics: What the engine counts into; of its own when None.
        compiler_yields: See `JaxModelRunner.create`; for a process that serves one model.
        behind: See `load_for_backend`.

    Raises:
        ModelLoadError: The folder can't be served; one line that says why.
        ConfigurationError: A setting doesn't go with the model.
    """
    on_phase("loading", 0.0, "configuration")
    cache_dir = prepare_backend(settings.compile_cache_dir, settings.num_threads)
    spec = _load_spec(settings)
    dtype = _choose_dtype(settings, spec)
    backend = _choose_backend(settings, spec, dtype)
    settings = with_fitting_requests(settings, backend)
    require_memory(
        settings.name,
        estimate_memory(
            backend,
            settings,
            kv_memory_bytes=settings.kv_memory_bytes,
            checkpoint=open_checkpoint(settings.path, settings.lora),
        ),
        backend,
        device_memory_stats(),
    )
    max_model_len = choose_max_model_len(settings, backend)
    with ThreadPoolExecutor(1, "tokenizer") as thread:
        text_side = thread.submit(_load_text_side, settings, spec.vocab_size)

        def on_weights(done: float, text: str) -> None:
            on_phase("loading", done, text)
            if text_side.done():
                # A tokenizer that can't be loaded is no reason to read all weights first.
                text_side.result()

        decoder = load_for_backend(
            settings.path, backend, settings.weights_cache_dir, on_weights, settings.lora, behind
        )
        runner = create_runner(
            decoder,
            settings,
            max_model_len,
            device_memory_stats,
            compiler_yields=compiler_yields,
            program_folder=choose_program_folder(cache_dir, spec),
        )
        tokenizer, template = text_side.result()
    on_compiled = partial(on_phase, "compiling")
    runner.warm_up(on_compiled)
    engine = Engine(
        runner,
        tokenizer,
        vocab_size=spec.vocab_size,
        max_model_len=max_model_len,
        prefix_cache=settings.prefix_cache,
        speculation=settings.speculation,
        metrics=metrics,
    )
    embedder = decoder_embedder(
        settings, decoder, max_model_len, on_compiled, kv_cache_bytes=runner.kv_layout.size_bytes
    )
    trim_heap()
    if metrics is not None:
        metrics.on_loaded(
            placements_of(backend), weights=dtype.name, keys_and_values=str(backend.cache_dtype)
        )
    return _assemble(settings, dtype, tokenizer, template, runner, engine, embedder)


def choose_program_folder(cache_dir: Path | None, spec: DecoderSpec) -> Path | None:
    """Where programs are kept as they were traced; None has them traced at every start.

    Args:
        cache_dir: Of what is kept for this machine and version of jax.
        spec: Of the decoder: one of another package's families depends on that package's code.
    """
    # On an accelerator nobody has measured it.
    if cache_dir is None or jax.default_backend() != "cpu" or origin_of(spec.architecture):
        return None
    return cache_dir / "programs"


def _load_text_side(settings: ModelSettings, vocab_size: int) -> tuple[Tokenizer, ChatTemplate]:
    folder = settings.tokenizer_path or settings.path
    tokenizer = Tokenizer.load(folder, settings.path, vocab_size)
    tokenizer.require_end(folder)
    template = ChatTemplate(
        tokenizer, settings.name, special_tokens_in_text=settings.special_tokens_in_text
    )
    return tokenizer, template


def create_runner(
    decoder: PackedDecoder,
    settings: ModelSettings,
    max_model_len: int,
    read_device_stats: Callable[[], Mapping[str, int] | None],
    *,
    compiler_yields: bool = False,
    program_folder: Path | None = None,
) -> JaxModelRunner:
    """A runner whose cache has the configured size, or the size that memory allows.

    Args:
        decoder: On the device.
        settings: Of the model.
        max_model_len: The longest request, tokens.
        read_device_stats: See `device_memory_stats`.
        compiler_yields: See `JaxModelRunner.create`.
        program_folder: See there.

    Raises:
        KvMemoryError: Not even one request of `max_model_len` fits.
    """
    block_size = block_size_of(settings, decoder.backend.spec)
    max_num_seqs = max_num_seqs_of(settings, decoder.backend.spec)

    def create(num_blocks: int | Sequence[int]) -> JaxModelRunner:
        return JaxModelRunner.create(
            decoder,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            deterministic=settings.deterministic,
            speculates=settings.speculation is not SpeculationMode.OFF,
            compiler_yields=compiler_yields,
            program_folder=program_folder,
        )

    kv_memory_bytes = settings.kv_memory_bytes
    if kv_memory_bytes is None:
        taken_bytes = 0
        if read_device_stats() is not None:
            # Programs take as much beside a cache of one block as beside the whole one.
            taken_bytes = create(1).program_bytes()
            _log.info("programs take up to %d MiB of the device", taken_bytes // 2**20)
        kv_memory_bytes = default_kv_memory_bytes(taken_bytes, read_device_stats())
    num_blocks = choose_num_blocks(
        cache_shape_of(settings, decoder.backend),
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        kv_memory_bytes=kv_memory_bytes,
    )
    return create(num_blocks)


def _assemble(
    settings: ModelSettings,
    dtype: DtypeChoice,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    runner: JaxModelRunner,
    engine: Engine,
    embedder: Embedder | None,
) -> ServedModel:
    graph = runner.backend.graph
    spec = graph.spec
    formats = detect_formats(
        tokenizer.chat_template_source(has_tools=True),
        special_tokens=tokenizer.added_tokens(),
        model_type=_model_type(settings.path),
        tool_format=settings.tool_format,
        reasoning_format=settings.reasoning_format,
    )
    _log.info("%s", formats.evidence)
    kv_tokens = num_kv_tokens(
        cache_shape_of(settings, runner.backend), runner.kv_layout.num_blocks, engine.max_model_len
    )
    credit_policy = CreditPolicy.for_engine(
        max_num_seqs=runner.max_num_seqs,
        num_kv_tokens=kv_tokens,
        max_model_len=engine.max_model_len,
    )
    offer = EngineOffer(
        model=settings.name,
        fingerprint=model_fingerprint(
            settings,
            tokenizer,
            types_of(runner.backend, dtype, embedder, deterministic=settings.deterministic),
        ),
        resume_version=RESUME_VERSION,
        max_model_len=engine.max_model_len,
        created=int((settings.path / "config.json").stat().st_mtime),
        credits=credit_policy.whole,
        architecture=spec.architecture,
        dtype=dtype.name,
        has_chat_template=template.exists,
        tool_format=formats.tool_format,
        reasoning_format=formats.reasoning_format,
        format_evidence=formats.evidence,
        vocab_size=spec.vocab_size,
        max_logprobs=MAX_LOGPROBS,
        block_size=runner.block_size,
        num_parameters=graph.num_parameters,
        capabilities=_capabilities(
            tokenizer, template, formats, embedder, has_scores=engine.max_score_len > 0
        ),
        sampling_defaults=load_sampling_defaults(settings.path),
        max_num_seqs=runner.max_num_seqs,
        num_kv_tokens=kv_tokens,
        **({} if embedder is None else embedding_offer(embedder)),
        max_token_bytes=tokenizer.max_token_bytes,
        tokenizer_info_json=json.dumps(tokenizer.info()),
        backend=backend_label(runner.backend),
        kv_dtype=kv_label(runner.backend),
        placements=placements_of(runner.backend),
        stored_as=open_checkpoint(settings.path).stored_as,
        stored_formats=stored_label(runner.backend),
        quality_json=read_quality(
            settings.weights_cache_dir, settings.path, runner.backend, settings.lora
        ),
        rerank_wording=choose_rerank_wording(settings, spec),
    )
    preparer = PromptPreparer(
        tokenizer,
        template,
        vocab_size=spec.vocab_size,
        max_model_len=engine.max_model_len,
        block_size=runner.block_size,
    )
    scores = ScorePreparer(
        tokenizer, template, vocab_size=spec.vocab_size, max_len=engine.max_score_len
    )
    return ServedModel(
        engine, preparer, tokenizer, template, credit_policy, offer, embedder, scores
    )


def types_of(
    backend: Backend, dtype: DtypeChoice, embedder: Embedder | None, *, deterministic: bool
) -> dict[str, str]:
    """What an engine's fingerprint is made of beside files and tokenizer: all that it computes.

    Args:
        backend: Of the decoder.
        dtype: Of its weights.
        embedder: Makes vectors of the same weights; None when nobody asked for it.
        deterministic: See `identity_of`.
    """
    origin = origin_of(backend.spec.architecture)
    return {
        "weights": dtype.name,
        "cache": str(backend.cache_dtype),
        "products": identity_of(backend, deterministic=deterministic),
        # Another version may read the same config in another way.
        "decoder": reading_of(backend.spec),
        # Where the length that is served decides which factors its ropes take.
        **{f"rope {index}": text for index, text in enumerate(rope_factors(backend.spec))},
        # Another version of a package may read the same files in another way.
        **({"family": origin} if origin else {}),
        **({} if embedder is None else what_follows(embedder.pooling, embedder.layers)),
    }


def choose_rerank_wording(settings: ModelSettings, spec: DecoderSpec) -> str:
    """How the model is asked whether a document answers a query; empty for the gateway's words."""
    if settings.rerank_wording != "auto":
        return settings.rerank_wording if settings.rerank_wording == QWEN3_RERANKER else ""
    says_so = "reranker" in f"{settings.name} {settings.path}".lower()
    return QWEN3_RERANKER if says_so and spec.architecture == _QWEN3 else ""


def placements_of(backend: Backend) -> tuple[BlockPlacement, ...]:
    """Where each kind of block runs, as gateways are told."""
    return tuple(
        BlockPlacement(block=kind.value, backend=place.backend, reason=place.reason)
        for kind, place in backend.placements.items()
    )


def _model_type(folder: Path) -> str | None:
    """`model_type` of a configuration that was read before, so that it is known to be good."""
    value = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    return value if isinstance(value, str) else None


def _capabilities(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    formats: DetectedFormats,
    embedder: Embedder | None,
    *,
    has_scores: bool,
) -> tuple[str, ...]:
    found = {
        "completions": True,
        "chat": template.exists,
        "tools": formats.tool_format is not None,
        "reasoning": formats.reasoning_format is not None,
        "embeddings": embedder is not None,
        "scores": template.exists and has_scores,
        "fill_in_middle": FillInMiddle(tokenizer).exists,
        "verbosity": template.knows_verbosity,
    }
    return tuple(name for name, is_there in found.items() if is_there)


def _choose_dtype(settings: ModelSettings, spec: DecoderSpec) -> DtypeChoice:
    choice = resolve_dtype(
        settings.dtype,
        jax.default_backend(),
        # Declaring allocates nothing; the number of parameters is the same in every type.
        lambda: declare(spec, "float32").num_parameters,
        read_cpu_flags(),
        deterministic=settings.deterministic,
    )
    _log.info("%s in %s: %s", settings.name, choice.name, choice.reason)
    return choice


def choose_for_settings(
    settings: ModelSettings, *, dtype: str | None = None, backend: str | None = None
) -> Backend:
    """The backend that computes a folder's decoder, chosen and not loaded yet.

    Args:
        settings: Name the folder, and what is asked for.
        dtype: Instead of that of the settings.
        backend: Instead of that of the settings.

    Raises:
        ModelLoadError: The folder can't be served.
        ConfigurationError: What is asked for isn't available.
    """
    spec = _load_spec(settings)
    wanted = replace(settings, dtype=dtype or settings.dtype, backend=backend or settings.backend)
    return _choose_backend(wanted, spec, _choose_dtype(wanted, spec))


def _load_spec(settings: ModelSettings) -> DecoderSpec:
    """The folder's decoder, told how long its sequences may become."""
    return for_length(load_spec(settings.path), settings.max_model_len)


def _choose_backend(settings: ModelSettings, spec: DecoderSpec, dtype: DtypeChoice) -> Backend:
    checkpoint = open_checkpoint(settings.path, settings.lora)
    graph = with_own_head(declare(spec, dtype.dtype), checkpoint)
    choice = choose_backend(
        BackendName(settings.backend),
        graph,
        dtype.name,
        block_size=block_size_of(settings, spec),
        deterministic=settings.deterministic,
        stored=stored_formats(graph, checkpoint) if dtype.keeps_stored else None,
        kv_dtype=settings.kv_dtype,
    )
    _log.info("%s on %s: %s", settings.name, describe(choice.backend), choice.reason)
    if settings.kv_dtype != AUTO:
        _log.info("%s keeps keys and values in %s", settings.name, kv_label(choice.backend))
    if choice.backend.stored_formats:
        _log.info(
            "%s is stored as %s; %s stay so, and are multiplied with activations in int8; choose a"
            " dtype to have them dequantised",
            settings.name,
            checkpoint.stored_as,
            stored_label(choice.backend),
        )
    return choice.backend
