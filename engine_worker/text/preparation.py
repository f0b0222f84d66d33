"""Answers Prepare and Detokenize: templates, tokens and text, lengths, hashes of blocks."""

import time
from collections.abc import Callable

from engine_worker.core.scheduling.block_hashes import block_hashes, salt_of
from engine_worker.errors import (
    ContextLengthError,
    InvalidRequestError,
    UnsupportedParameterError,
)
from engine_worker.text.chat_messages import parse_json, parse_messages, parse_tools
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.control_tokens import Rendered
from engine_worker.text.fill_in_middle import FillInMiddle
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Detokenize, Detokenized, Prepare, Prepared
from protocol.wire.sampling_ranges import MAX_INT32

# Enough for a parser to see whether the template opened a reasoning block.
_NUM_TAIL_CHARACTERS = 256
# Text normalisation may shorten a text a little before it becomes tokens; never by this factor.
_MAX_NORMALISATION_FACTOR = 4
_KEEP_WHAT_FITS = -1


class PromptPreparer:
    """Turns the prompts of one model into token ids; stateless, for any number of threads.

    Args:
        tokenizer: The model's.
        template: The model's; may not exist.
        vocab_size: Token ids at or above it are refused.
        max_model_len: Prompt and output together, tokens.
        block_size: Tokens a KV block.
        now: Unix seconds, for templates that show the date.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        vocab_size: int,
        max_model_len: int,
        block_size: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._middle = FillInMiddle(tokenizer)
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._now = now

    def answer(
        self, command: Prepare | Detokenize, is_wanted: Callable[[], bool] | None = None
    ) -> Prepared | Detokenized:
        """What a gateway asks; arguments and errors as of `prepare` and `detokenize`."""
        if isinstance(command, Detokenize):
            return self.detokenize(command)
        return self.prepare(command, is_wanted)

    def prepare(self, command: Prepare, is_wanted: Callable[[], bool] | None = None) -> Prepared:
        """The prompt as token ids.

        Args:
            command: What is to be prepared.
            is_wanted: Asked when the text is tokenised: of what nobody waits for any more, the
                rest is left out. None does all of it.

        Raises:
            RequestError: The prompt is wrong or too long, the template refuses it, or it is not
                wanted any more.
        """
        template_time = 0
        if command.messages_json is not None:
            template_time = command.template_time or int(self._now())
        text, whole = self._tokenise(command, template_time, is_wanted)
        if not whole:
            raise InvalidRequestError("The prompt is empty.", param=_prompt_param(command))
        token_ids = self._truncate(whole, command)
        if command.kind != "count":
            check_length(
                len(token_ids), command.max_tokens, self._max_model_len, _prompt_param(command)
            )
        if text is None or token_ids is not whole:
            text = self._tokenizer.decode(token_ids, skip_special_tokens=command.prompt is not None)
        tokens: tuple[str, ...] = ()
        if command.return_tokens:
            tokens = tuple(map(self._tokenizer.token_text, token_ids))
        return Prepared(
            request_id=command.request_id,
            prompt_token_ids=tuple(token_ids),
            block_hashes=block_hashes(
                token_ids, self._block_size, salt_of(command.tenant, command.cache_salt)
            ),
            prompt_tail=text[-_NUM_TAIL_CHARACTERS:],
            template_time=template_time,
            max_output_tokens=max(0, self._max_model_len - len(token_ids)),
            tokens=tokens,
            prompt_text=text if command.kind == "completion" else "",
            stop_token_ids=() if command.suffix is None else self._middle.ending_token_ids,
        )

    def detokenize(self, command: Detokenize) -> Detokenized:
        """The text of token ids, special tokens included.

        Raises:
            InvalidRequestError: An id that the model doesn't have.
        """
        check_token_ids(command.token_ids, self._vocab_size, param="tokens")
        text = self._tokenizer.decode(command.token_ids)
        return Detokenized(request_id=command.request_id, text=text)

    def _tokenise(
        self, command: Prepare, template_time: int, is_wanted: Callable[[], bool] | None
    ) -> tuple[str | None, list[int]]:
        """The text of the prompt, None when it came as token ids, and its tokens.

        All of them, also of a prompt that is to be truncated: where tokens end depends on what
        stands before (added tokens, the pre-tokenizer's pattern, merges), so the last tokens of a
        text are not always those of its last part. What that costs is bounded by the queue, which
        is fair, lets one such prompt run at a time, and drops those that nobody waits for.
        """
        if command.messages_json is not None:
            rendered = self._render(command, template_time)
            self._refuse_hopeless(rendered, command)
            return rendered, self._checked(self._template.encode(rendered, is_wanted))
        if command.suffix is not None:
            return None, self._checked(self._around_middle(command, command.suffix, is_wanted))
        if command.prompt_token_ids is not None:
            token_ids = list(command.prompt_token_ids)
            check_token_ids(token_ids, self._vocab_size)
            # Spelt out once it is known how many of them count.
            return None, token_ids
        if command.prompt is not None:
            self._refuse_hopeless(command.prompt, command)
            token_ids = self._tokenizer.encode(
                command.prompt,
                add_special_tokens=command.add_special_tokens,
                is_wanted=is_wanted,
            )
            return command.prompt, self._checked(token_ids)
        raise InvalidRequestError(
            "There is nothing to prepare: the request has neither messages nor a prompt.",
            param="messages" if command.kind == "chat" else "prompt",
        )

    def _around_middle(
        self, command: Prepare, suffix: str, is_wanted: Callable[[], bool] | None
    ) -> list[int]:
        if not self._middle.exists:
            raise UnsupportedParameterError(
                "This model has no tokens for filling in the middle.", param="suffix"
            )
        before: str | tuple[int, ...] = command.prompt or ""
        if command.prompt_token_ids is not None:
            check_token_ids(command.prompt_token_ids, self._vocab_size)
            before = command.prompt_token_ids
        else:
            self._refuse_hopeless(command.prompt or "", command)
        self._refuse_hopeless(suffix, command)
        return self._middle.token_ids(
            before,
            suffix,
            add_special_tokens=command.add_special_tokens,
            is_wanted=is_wanted,
        )

    def _truncate(self, token_ids: list[int], command: Prepare) -> list[int]:
        """The last tokens, as many as are wanted; the same list when nothing is left out."""
        num_kept = command.truncate_prompt_tokens
        if num_kept is None:
            return token_ids
        if num_kept != _KEEP_WHAT_FITS and not 1 <= num_kept <= MAX_INT32:
            raise InvalidRequestError(
                f"'truncate_prompt_tokens' must be -1 or 1 ≤ x ≤ {MAX_INT32}, not {num_kept}.",
                param="truncate_prompt_tokens",
            )
        if num_kept == _KEEP_WHAT_FITS:
            # When the output alone is too long, the check of the length says so.
            num_kept = max(1, self._max_model_len - (command.max_tokens or 1))
        return token_ids[-num_kept:] if len(token_ids) > num_kept else token_ids

    def _render(self, command: Prepare, template_time: int) -> Rendered:
        assert command.messages_json is not None
        arguments = {}
        if command.template_kwargs_json is not None:
            arguments = parse_json(command.template_kwargs_json, "chat_template_kwargs")
            if not isinstance(arguments, dict):
                raise InvalidRequestError(
                    "'chat_template_kwargs' must be an object.", param="chat_template_kwargs"
                )
        return self._template.render(
            parse_messages(command.messages_json),
            tools=parse_tools(command.tools_json),
            template_arguments=arguments,
            add_generation_prompt=command.add_generation_prompt,
            continue_final_message=command.continue_final_message,
            template_time=template_time,
            source=command.chat_template,
        )

    def _refuse_hopeless(self, text: str, command: Prepare) -> None:
        """Refuse a text that is too long by its length, before minutes are spent on its tokens."""
        if command.kind != "count" and command.truncate_prompt_tokens is None:
            per_token = self._tokenizer.max_token_characters * _MAX_NORMALISATION_FACTOR
            least = -(-len(text) // per_token)
            if least > self._max_model_len:
                raise _too_long(
                    f"at least {least}",
                    command.max_tokens,
                    self._max_model_len,
                    _prompt_param(command),
                )

    def _checked(self, token_ids: list[int]) -> list[int]:
        # A tokenizer may have been given tokens that the model never learnt.
        check_token_ids(token_ids, self._vocab_size)
        return token_ids


def check_token_ids(
    token_ids: list[int] | tuple[int, ...], vocab_size: int, *, param: str = "prompt"
) -> None:
    """Refuse ids that the model doesn't have; `param` is the field that held them.

    Raises:
        InvalidRequestError: Names the first such id.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequestError(
            f"There is a token id {wrong}, but this model's ids are 0 to {vocab_size - 1}.",
            param=param,
        )


def check_length(
    num_prompt_tokens: int, max_tokens: int | None, max_model_len: int, param: str | None
) -> None:
    """Refuse a prompt that doesn't fit the context together with its output.

    Args:
        num_prompt_tokens: Length of the prompt.
        max_tokens: The output that was asked for; None needs room for one token.
        max_model_len: The context.
        param: The field that held the prompt.

    Raises:
        ContextLengthError: Names the context and both lengths.
    """
    if num_prompt_tokens + (max_tokens or 1) > max_model_len:
        raise _too_long(str(num_prompt_tokens), max_tokens, max_model_len, param)


def _too_long(
    num_prompt_tokens: str, max_tokens: int | None, max_model_len: int, param: str | None
) -> ContextLengthError:
    output = "at least 1 output token" if max_tokens is None else f"{max_tokens} output tokens"
    return ContextLengthError(
        f"This model's maximum context length is {max_model_len} tokens. However, you requested"
        f" {output} and your prompt contains {num_prompt_tokens} input tokens. Shorten the prompt"
        " or ask for fewer output tokens.",
        param=param,
    )


def _prompt_param(command: Prepare) -> str:
    return "prompt" if command.messages_json is None else "messages"
