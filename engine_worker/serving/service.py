"""Runs the engine process: connect first, then load, announce, and step until it is time to go."""

import logging
import threading
from collections.abc import Sequence

from engine_worker.compute.runner.profiling import Profiler
from engine_worker.config import EngineSettings, ModelSettings
from engine_worker.core.metrics import EngineMetrics
from engine_worker.errors import ModelLoadError
from engine_worker.loading.phases import PhaseCallback
from engine_worker.loading.write_behind import WriteBehind
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.step_loop import StepLoop
from protocol.errors import ConfigurationError
from protocol.runtime import collector
from protocol.runtime.threads import watch_threads
from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages import Classify, EngineCommand, EngineOffer, Phase
from protocol.wire.worker import Worker, WorkerSettings

EXIT_FAILED = 1
HANG_GRACE_S = 60.0
"""Beyond the gateway's own timeout; a program that compiles after all may need it."""

_log = logging.getLogger("penstock.engine")


def run(
    settings: EngineSettings,
    *,
    endpoints: Sequence[Endpoint],
    security: ClientSecurity | None,
    build: str,
) -> int:
    """Serve until a signal, a refusal or a failure; call it from the main thread.

    Args:
        settings: Of the process.
        endpoints: The gateways to dial.
        security: CURVE keys; None for ipc and loopback.
        build: Version of the code.

    Returns:
        The exit code: 0 after a drain, 1 when the model can't be served or the engine broke.
    """
    handler = EngineHandler(profiler=Profiler(settings.profile_dir))
    metrics = EngineMetrics(handler.load)
    worker: Worker[EngineCommand] = Worker(
        role="engine",
        decoder=codec.engine_command_decoder(),
        handler=handler,
        endpoints=endpoints,
        security=security,
        settings=WorkerSettings(
            drain_timeout_s=settings.drain_timeout_s, hang_grace_s=HANG_GRACE_S
        ),
        build=build,
        metrics=metrics.registry,
        ready_file=settings.ready_file,
    )
    handler.connect(worker)
    watch_threads(lambda name: worker.stop(f"The engine's thread {name} died.", EXIT_FAILED))
    worker.start()
    # The main thread stays free for signals; the engine's own thread loads, compiles and steps.
    behind = WriteBehind()
    thread = threading.Thread(
        target=_serve,
        args=(settings.model, handler, worker, metrics, behind),
        name="engine",
        daemon=True,
    )
    thread.start()
    exit_code = worker.wait()
    handler.close()
    behind.cancel()
    return exit_code


def _serve(
    settings: ModelSettings,
    handler: EngineHandler,
    worker: Worker[EngineCommand],
    metrics: EngineMetrics,
    behind: WriteBehind,
) -> None:
    try:
        # Imported here because jax takes a second, in which heartbeats already flow.
        from engine_worker.loading.encoder import is_encoder_folder
        from engine_worker.loading.gguf_folder import with_model_folder

        settings = with_model_folder(settings)
        if is_encoder_folder(settings):
            _serve_encoder(settings, handler, worker)
        else:
            _serve_decoder(settings, handler, worker, metrics, behind)
    except (ConfigurationError, ModelLoadError) as error:
        _log.error("%s", error.message)
        worker.stop(error.message, EXIT_FAILED)
    except BaseException:  # noqa: BLE001 - the process ends with it, and says so; a panic too
        _log.exception("the engine broke")
        worker.stop("The engine failed; see its log.", EXIT_FAILED)


def _serve_decoder(
    settings: ModelSettings,
    handler: EngineHandler,
    worker: Worker[EngineCommand],
    metrics: EngineMetrics,
    behind: WriteBehind,
) -> None:
    from engine_worker.embedding.queue import TextQueue
    from engine_worker.embedding.service import Embeddings
    from engine_worker.loading.decoder import load_model

    on_phase = logged_phases(worker.set_phase)
    served = load_model(settings, on_phase, metrics, compiler_yields=True, behind=behind)
    if served.embedder is not None:
        embeddings = TextQueue(
            Embeddings(served.embedder, served.tokenizer, served.offer.vocab_size), worker
        )
        handler.serve_texts(embeddings)
        threading.Thread(target=embeddings.run, name="embedding", daemon=True).start()
    engine = served.engine
    handler.serve(
        served.preparer,
        served.credit_policy,
        engine.grammars,
        engine.acceptor,
        served.score_task,
    )
    _announce(served.offer, worker)
    StepLoop(engine, handler, worker, engine_id=worker.instance_id).run()


def logged_phases(on_phase: PhaseCallback) -> PhaseCallback:
    """The same, and a line in the log when a phase begins: what a start takes can be told."""
    phases: list[Phase] = []

    def told(phase: Phase, done: float, text: str) -> None:
        if phase not in phases:
            phases.append(phase)
            _log.info("%s: %s", phase, text)
        on_phase(phase, done, text)

    return told


def _serve_encoder(
    settings: ModelSettings, handler: EngineHandler, worker: Worker[EngineCommand]
) -> None:
    from engine_worker.embedding.classification import Classifications
    from engine_worker.embedding.queue import TextQueue
    from engine_worker.embedding.service import Embeddings
    from engine_worker.loading.encoder import load_encoder

    served = load_encoder(settings, worker.set_phase)
    if served.classifier is not None:
        classifications = Classifications(served.classifier, served.tokenizer, served.vocab_size)
        texts = TextQueue(classifications, worker, takes=Classify)
    else:
        assert served.embedder is not None, "it is the one or the other"
        embeddings = Embeddings(served.embedder, served.tokenizer, served.vocab_size)
        texts = TextQueue(embeddings, worker)
    handler.serve_texts(texts, served.credit_policy)
    _announce(served.offer, worker)
    texts.run()


def _announce(offer: EngineOffer, worker: Worker[EngineCommand]) -> None:
    worker.announce(offer)
    collector.settle()
    _log.info(
        "serving %s: %s, %d parameters in %s%s%s, context %d tokens",
        offer.model,
        offer.architecture,
        offer.num_parameters,
        offer.dtype,
        f" and {offer.stored_formats}" if offer.stored_formats else "",
        f" (stored as {offer.stored_as})" if offer.stored_as else "",
        offer.max_model_len,
    )
