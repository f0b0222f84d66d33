"""The engine within one process, for scripts and notebooks: no sockets, no server.

from engine_worker import LLM

with LLM("path/to/model") as llm:        # without a path, the bundled model
    for output in llm.generate(["One, two,", "Red, green,"]):
        print(output.text)
    print(llm.chat([{"role": "user", "content": "Hello!"}]).text)
    for piece in llm.stream("Once upon a time"):
        print(piece, end="")
"""

import json
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from engine_worker.config import DEFAULT_COMPILE_CACHE_DIR, DEFAULT_WEIGHTS_CACHE_DIR, ModelSettings
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.demo import DEMO_MODEL_NAME, demo_model_path
from engine_worker.errors import EngineError, InvalidRequestError
from engine_worker.loading.write_behind import WriteBehind
from engine_worker.python_api.llm_collector import Collector
from engine_worker.python_api.llm_outputs import RequestOutput
from engine_worker.text.preparation import PromptPreparer
from protocol.runtime.gguf_header import model_name
from protocol.wire.messages import (
    Generate,
    Grammar,
    Prepare,
    Prepared,
    SamplingDefaults,
    SamplingParams,
)

if TYPE_CHECKING:
    # jax comes with it; the class alone works with any runner.
    pass

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
# Nobody waits at the other end, so no request runs out of time.
_DEADLINE_S = 1e9
_MAX_SEED = 2**63


class LLM:
    """A loaded model; used by one thread at a time.

    It is long because each kind of call has its one method, and most of it is their docstrings.

    Args:
        model: A folder in Hugging Face's layout, or a GGUF file; None is the bundled model. An
            encoder serves `embed` only.
        dtype: auto, float32, bfloat16, int8 or int4.
        deterministic: Equal bits whatever runs beside a prompt.
        max_model_len: Prompt and output together, tokens; None takes the model's.
        max_num_seqs: Prompts that run at a time; None is 32, or as many as the states of a
            recurrent model leave room for.
        kv_memory_bytes: Of the KV cache; None takes a share of what is free.
        speculation: As the setting PENSTOCK_SPECULATION: auto, off or always.
        pooling: As the setting PENSTOCK_POOLING: what `embed` does with a decoder.
        compile_cache_dir: Where compiled programs are kept; None compiles afresh.
        backend: As the setting PENSTOCK_BACKEND: auto, xla or cpu_native.
        kv_dtype: As the setting PENSTOCK_KV_DTYPE: auto, float32, bfloat16 or int8.
        weights_cache_dir: Where packed weights are kept; None packs them afresh.

    Attributes:
        vocab_size: Token ids are below it; 0 when nobody knows.

    Raises:
        ModelLoadError: The folder can't be served.
        ConfigurationError: An option doesn't go with the model.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: str = "auto",
        deterministic: bool = False,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        kv_memory_bytes: int | None = None,
        speculation: str = "auto",
        pooling: str = "auto",
        compile_cache_dir: str | Path | None = DEFAULT_COMPILE_CACHE_DIR,
        backend: str = "auto",
        kv_dtype: str = "auto",
        weights_cache_dir: str | Path | None = DEFAULT_WEIGHTS_CACHE_DIR,
    ) -> None:
        from engine_worker.embedding.service import Embeddings
        from engine_worker.loading.decoder import load_model
        from engine_worker.loading.encoder import is_encoder_folder, load_encoder
        from engine_worker.loading.gguf_folder import with_model_folder

        folder = demo_model_path() if model is None else Path(model).expanduser().absolute()
        cache_dir = None if compile_cache_dir is None else Path(compile_cache_dir).expanduser()
        weights_dir = None if weights_cache_dir is None else Path(weights_cache_dir).expanduser()
        settings = ModelSettings(
            path=folder,
            name=DEMO_MODEL_NAME if model is None else model_name(folder),
            dtype=dtype,
            backend=backend,
            kv_dtype=kv_dtype,
            deterministic=deterministic,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            kv_memory_bytes=kv_memory_bytes,
            speculation=SpeculationMode(speculation),
            pooling=pooling,
            compile_cache_dir=cache_dir,
            weights_cache_dir=weights_dir,
        )
        self._num_requests = 0
        # What steps told of each call that is under way, until it takes it: streams may interleave.
        self._told: dict[str, deque[GatewayOutput]] = {}
        self._behind = WriteBehind()
        self._engine: Engine | None = None
        self._preparer: PromptPreparer | None = None
        self._defaults = SamplingDefaults()
        self._embeddings: Embeddings | None = None
        self.vocab_size = 0
        settings = with_model_folder(settings)
        if is_encoder_folder(settings):
            encoder = load_encoder(settings, _tell_nobody)
            if encoder.embedder is None:
                raise EngineError(
                    f"{folder} is a classifier, which `LLM` has no method for; serve it and ask"
                    " /v1/classify."
                )
            self._embeddings = Embeddings(encoder.embedder, encoder.tokenizer, encoder.vocab_size)
            self.vocab_size = encoder.vocab_size
            return
        served = load_model(settings, _tell_nobody, behind=self._behind)
        self._engine, self._preparer = served.engine, served.preparer
        self._defaults = served.offer.sampling_defaults
        self.vocab_size = served.offer.vocab_size
        if served.embedder is not None:
            self._embeddings = Embeddings(
                served.embedder, served.tokenizer, served.offer.vocab_size
            )

    @classmethod
    def of_engine(cls, engine: Engine, preparer: PromptPreparer | None = None) -> "LLM":
        """The API round an engine that is there already.

        Args:
            engine: Used by nobody else.
            preparer: Reads prompts that are texts or conversations; None takes token ids only.
        """
        llm = cls.__new__(cls)
        llm._num_requests = 0
        llm._told = {}
        llm._behind = WriteBehind()
        llm._engine, llm._preparer = engine, preparer
        llm._defaults = SamplingDefaults()
        llm._embeddings = None
        llm.vocab_size = 0
        return llm

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs behind: programs still compiling, the helper that grammars are tried in.

        A file of packed weights that is being written is completed: scripts often end soon.
        """
        if self._engine is not None:
            self._engine.close()
        self._behind.wait()

    def sampling(self, **changes: Any) -> SamplingParams:
        """Sampling parameters: what the model recommends, a fresh seed, and `changes` to both."""
        names = SamplingDefaults.__struct_fields__
        given = {name: getattr(self._defaults, name) for name in names}
        recommended = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**{"seed": secrets.randbelow(_MAX_SEED), **recommended, **changes})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        n: int = 1,
        grammar: Grammar | None = None,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Continue texts; all of them share the engine's steps.

        Args:
            prompts: A text, token ids, or a list of either.
            sampling: For all prompts; None takes `sampling()` for each.
            n: Choices for each prompt.
            grammar: What every output has to follow.
            progress: Show a bar; None does when several prompts run and somebody looks.

        Returns:
            One output for each prompt, in order.

        Raises:
            EngineError: A prompt was refused or failed.
        """
        return self._generate(
            [self._prepare(prompt) for prompt in _listed(prompts)], sampling, n, grammar, progress
        )

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: int = 1,
        grammar: Grammar | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> RequestOutput:
        """Answer a conversation.

        Args:
            messages: In OpenAI's shape.
            sampling: None takes `sampling()`.
            tools: In OpenAI's shape; calls stay in the text, in the model's own format.
            n: Choices.
            grammar: What the output has to follow.
            template_kwargs: For the chat template.

        Raises:
            EngineError: The conversation was refused, or failed.
        """
        prepared = self._prepare_chat(messages, tools, template_kwargs)
        return self._generate([prepared], sampling, n, grammar, progress=False)[0]

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
    ) -> Iterator[str]:
        """Continue a text, or answer a conversation, piece by piece.

        Closing the iterator stops the output.

        Raises:
            EngineError: The prompt was refused, or failed.
        """
        is_chat = not isinstance(prompt, str) and any(isinstance(one, Mapping) for one in prompt)
        prepared = self._prepare_chat(prompt, None, None) if is_chat else self._prepare(prompt)  # type: ignore[arg-type]
        collector = Collector()
        with self._owner() as owner:
            self._add(owner, prepared, sampling or self.sampling(), 1, grammar, is_streaming=True)
            for told in self._steps(owner, 1):
                for delta in told.deltas:
                    if delta.text:
                        yield delta.text
                collector.take(told)

    def embed(
        self, texts: str | Sequence[str], *, dimensions: int | None = None, truncate: bool = False
    ) -> Any:
        """Turn texts into vectors.

        Args:
            texts: One or many.
            dimensions: Keep so many leading numbers of each vector.
            truncate: Cut texts that are too long, rather than refuse them.

        Returns:
            [N, D] float32 array.

        Raises:
            EngineError: This model makes no embeddings, or a text was refused.
        """
        if self._embeddings is None:
            raise InvalidRequestError("This model makes no embeddings; set `pooling`.")
        listed = [texts] if isinstance(texts, str) else list(texts)
        vectors, _ = self._embeddings.embed_texts(
            listed, dimensions=dimensions, truncate_prompt_tokens=-1 if truncate else None
        )
        return vectors

    def generate_token_ids(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams
    ) -> list[list[int]]:
        """As `generate`, from token ids to token ids alone.

        Returns:
            Output token ids in the order of the prompts, the one that ended it included.

        Raises:
            EngineError: A prompt was refused or failed.
        """
        prepared = [Prepared(request_id="", prompt_token_ids=tuple(prompt)) for prompt in prompts]
        outputs = self._generate(prepared, sampling, 1, None, progress=False)
        return [list(output.completions[0].token_ids) for output in outputs]

    def _generate(
        self,
        prepared: Sequence[Prepared],
        sampling: SamplingParams | None,
        n: int,
        grammar: Grammar | None,
        progress: bool | None,
    ) -> list[RequestOutput]:
        collector = Collector()
        with self._owner() as owner, _bar(len(prepared), progress) as advance:
            request_ids = [
                self._add(owner, one, sampling or self.sampling(), n, grammar) for one in prepared
            ]
            for told in self._steps(owner, len(prepared) * n):
                collector.take(told)
                advance(collector.num_ended // n)
        return [
            collector.output(request_id, one.prompt_token_ids)
            for request_id, one in zip(request_ids, prepared, strict=True)
        ]

    def _add(
        self,
        owner: str,
        prepared: Prepared,
        sampling: SamplingParams,
        n: int,
        grammar: Grammar | None,
        *,
        is_streaming: bool = False,
    ) -> str:
        """Give the engine a prompt; returns its id."""
        engine = self._require_engine()
        request_id = str(self._num_requests)
        self._num_requests += 1
        for choice in range(n):
            engine.add(
                owner,
                Generate(
                    request_id=request_id,
                    choice=choice,
                    attempt=0,
                    prompt_token_ids=prepared.prompt_token_ids,
                    sampling=sampling,
                    grammar=grammar,
                    lease_tokens=engine.max_model_len,
                    deadline_s=_DEADLINE_S,
                    want_token_ids=True,
                    num_choices=n,
                    is_streaming=is_streaming,
                ),
            )
        return request_id

    def _steps(self, owner: str, num_choices: int) -> Iterator[GatewayOutput]:
        """What each step tells of a call, until its choices have ended.

        A step computes for every call that is under way, so what it tells of others is kept.
        """
        engine, mine = self._require_engine(), self._told[owner]
        while num_choices > 0 and (mine or engine.has_work()):
            if mine:
                told = mine.popleft()
                num_choices -= len(told.ends)
                yield told
                continue
            for whose, output in engine.step().items():
                if whose in self._told:
                    self._told[whose].append(output)

    @contextmanager
    def _owner(self) -> Iterator[str]:
        """Whose requests they are; whatever happens, none of them runs on afterwards."""
        owner = f"in-process-{self._num_requests}"
        self._told[owner] = deque()
        try:
            yield owner
        finally:
            del self._told[owner]
            if self._engine is not None:
                self._engine.forget_gateway(owner)

    def _prepare(self, prompt: Prompt) -> Prepared:
        is_text = isinstance(prompt, str)
        question = Prepare(
            request_id="",
            kind="completion",
            deadline_s=_DEADLINE_S,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if is_text else tuple(int(one) for one in prompt),
        )
        return self._require_preparer().prepare(question)

    def _prepare_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any] | None,
    ) -> Prepared:
        question = Prepare(
            request_id="",
            kind="chat",
            deadline_s=_DEADLINE_S,
            messages_json=json.dumps(list(messages)),
            tools_json=json.dumps(list(tools)) if tools else None,
            template_kwargs_json=json.dumps(dict(template_kwargs)) if template_kwargs else None,
        )
        return self._require_preparer().prepare(question)

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("This model only makes embeddings.")
        return self._engine

    def _require_preparer(self) -> PromptPreparer:
        self._require_engine()
        if self._preparer is None:
            raise EngineError("This engine takes token ids only.")
        return self._preparer


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, also of one alone."""
    if isinstance(prompts, str):
        return [prompts]
    alone = [one for one in prompts if isinstance(one, int)]
    return [alone] if alone else [one for one in prompts if not isinstance(one, int)]


def _tell_nobody(_phase: str, _fraction: float, _detail: str) -> None: ...


@contextmanager
def _bar(total: int, wanted: bool | None) -> Iterator[Callable[[int], object]]:
    """A progress bar over prompts; gives a function that takes how many are done."""
    is_shown = sys.stderr.isatty() and total > 1 if wanted is None else wanted
    with tqdm(total=total, unit="prompt", disable=not is_shown) as bar:
        yield lambda num_done: bar.update(num_done - bar.n)
