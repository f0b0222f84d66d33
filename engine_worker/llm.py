"""The engine within one process, for evaluation and benchmarks: token ids in, token ids out."""

from collections.abc import Sequence
from pathlib import Path

from engine_worker.config import ModelSettings
from engine_worker.engine import Engine
from engine_worker.errors import EngineError
from protocol.messages import Failure, Generate, SamplingParams

_OWNER = "in-process"
# Nobody waits at the other end, so no request runs out of time.
_DEADLINE_S = 1e9


class LLM:
    """A loaded model that generates for many prompts at once.

    Args:
        engine: Used by nobody else.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._num_requests = 0

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        deterministic: bool = False,
        max_num_seqs: int = 32,
        compile_cache_dir: Path | None = None,
    ) -> "LLM":
        """Load a model folder and compile its programs; takes seconds to minutes.

        Args:
            folder: In Hugging Face's layout.
            deterministic: Equal bits whatever runs beside a prompt.
            max_num_seqs: Prompts that run at a time.
            compile_cache_dir: Where compiled programs are kept; None compiles afresh.

        Raises:
            ModelLoadError: The folder can't be served.
        """
        # jax comes with it; the class alone works with any runner.
        from engine_worker.loading import load_model

        settings = ModelSettings(
            path=folder,
            name=folder.name,
            deterministic=deterministic,
            max_num_seqs=max_num_seqs,
            compile_cache_dir=compile_cache_dir,
        )
        return cls(load_model(settings, lambda phase, fraction, detail: None).engine)

    def generate_token_ids(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams
    ) -> list[list[int]]:
        """Generate one output for each prompt; they share the engine's steps.

        Args:
            prompts: Token ids.
            sampling: The same for all.

        Returns:
            Output token ids in the order of the prompts, the one that ended it included.

        Raises:
            EngineError: A prompt was refused or failed.
        """
        outputs: dict[str, list[int]] = {}
        for prompt in prompts:
            request_id = str(self._num_requests)
            self._num_requests += 1
            outputs[request_id] = []
            self._engine.add(
                _OWNER,
                Generate(
                    request_id=request_id,
                    choice=0,
                    attempt=0,
                    prompt_token_ids=tuple(prompt),
                    sampling=sampling,
                    lease_tokens=self._engine.max_model_len,
                    deadline_s=_DEADLINE_S,
                    want_token_ids=True,
                ),
            )
        try:
            while self._engine.has_work():
                for told in self._engine.step().values():
                    for delta in told.deltas:
                        outputs[delta.request_id].extend(delta.token_ids)
                    for end in told.ends:
                        if isinstance(end, Failure):
                            raise EngineError(end.message, code=end.code, param=end.param)
        finally:
            self._engine.forget_gateway(_OWNER)
        return list(outputs.values())
