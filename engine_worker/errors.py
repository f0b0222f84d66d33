"""The error tree of the engine worker; each leaf says what to change.

PenstockError
└── EngineError                        anything that the engine worker itself refuses
    ├── ModelLoadError                 the model can't be served: stops the start with one line
    │   ├── ModelConfigError           `config.json` is missing, unreadable or contradicts itself
    │   ├── UnsupportedArchitectureError  no decoder for this architecture
    │   ├── FamilyPackageError         a package that brings architectures can't be loaded
    │   ├── UnsupportedFeatureError    the decoder is known, one value of its config is not
    │   ├── UnsupportedFormatError     the weights are in a format that is not read
    │   ├── UnsafePickleError          a pickle holds more than tensors; names what
    │   ├── CheckpointError            a weights file is broken; names the file and the tensor
    │   ├── ModelMemoryError           weights and programs don't fit; names needs and ways out
    │   ├── KvMemoryError              the KV cache's memory holds not even one whole request
    │   └── TokenizerLoadError         the tokenizer's files are missing or broken
    ├── NativeUnavailableError         there are no native kernels here: XLA computes instead
    ├── PackedFileError                a file of packed weights can't be used: it is made again
    │   └── PackedFileBusyError        another process writes it now
    ├── ProfileError                   a profile can't be recorded now
    ├── HelperLostError                a process beside the engine's doesn't start, or was killed
    └── RequestError                   one request can't be served; the others go on
        ├── InvalidRequestError        a field is wrong; names it
        ├── UnsupportedParameterError  a field asks for something that is not there (yet)
        ├── UnsupportedGrammarError    a grammar that is wrong, or costs too much to compile
        ├── ContextLengthError         prompt and output don't fit the context; names both numbers
        ├── NoChatTemplateError        a chat request to a model without a chat template
        ├── ChatTemplateError          the model's own template refused the conversation
        ├── DeadlineError              the request's time ran out before it was done
        └── AbandonedError             whoever asked has left meanwhile; nobody reads the message
"""

from typing import Final

from protocol.errors import ErrorCode, PenstockError

BEFORE: Final = "before"
"""The `param` of an error about the text that stands before all questions, or first in pairs."""


class EngineError(PenstockError):
    """Anything that the engine worker itself refuses or fails at."""

    code = ErrorCode.INTERNAL_ERROR


class ModelLoadError(EngineError):
    """The model cannot be served; the message is one line for the person who started it."""


class ModelConfigError(ModelLoadError):
    """`config.json` is missing, unreadable or contradicts itself."""


class UnsupportedArchitectureError(ModelLoadError):
    """The architecture has no decoder here; the message lists those that have."""


class FamilyPackageError(ModelLoadError):
    """A package of the entry points `penstock.models` can't be used; names it."""


class UnsupportedFeatureError(ModelLoadError):
    """A value in the model's config asks for something that is not implemented; it is named."""


class UnsupportedFormatError(ModelLoadError):
    """The weights are in a format that is not read (a pickle, a quantiser that is not known)."""


class UnsafePickleError(ModelLoadError):
    """A PyTorch file's pickle holds more than tensors: the opcode or the global is named."""


class CheckpointError(ModelLoadError):
    """A weights file is broken: the message names the file and, where there is one, the tensor."""


class ModelMemoryError(ModelLoadError):
    """There is too little memory for the model; the message says how much it takes, what helps."""


class KvMemoryError(ModelLoadError):
    """The memory for the KV cache holds not even one request of the full length; both are named."""


class TokenizerLoadError(ModelLoadError):
    """The tokenizer's files are missing or broken."""


class NativeUnavailableError(EngineError):
    """The native CPU kernels are missing, broken or of another version; the message says which."""


class PackedFileError(EngineError):
    """A file of packed weights is cut short, broken, or of other weights or another version."""


class PackedFileBusyError(PackedFileError):
    """A file of packed weights is being written by another process."""


class ProfileError(EngineError):
    """A profile can't be recorded: another one runs, or its folder can't be written."""

    code = ErrorCode.OVERLOADED


class HelperLostError(EngineError):
    """A process beside the engine's doesn't start, was killed or is kept from computing.

    It is nothing to the request, which may come again.
    """

    code = ErrorCode.OVERLOADED


class RequestError(EngineError):
    """One request cannot be served; the message says what to change."""

    code = ErrorCode.INVALID_REQUEST


class InvalidRequestError(RequestError):
    """A field of the request is wrong; `param` names it."""


class UnsupportedParameterError(RequestError):
    """A field asks for something that this engine or this model cannot do; `param` names it."""

    code = ErrorCode.UNSUPPORTED_PARAMETER


class UnsupportedGrammarError(RequestError):
    """A grammar that is wrong, unsupported or too costly; the message says which."""

    code = ErrorCode.UNSUPPORTED_GRAMMAR


class ContextLengthError(RequestError):
    """Prompt and output do not fit the context; the message names both numbers."""

    code = ErrorCode.CONTEXT_LENGTH_EXCEEDED


class NoChatTemplateError(RequestError):
    """A chat request to a model whose tokenizer has no chat template."""

    code = ErrorCode.NO_CHAT_TEMPLATE


class ChatTemplateError(RequestError):
    """The model's own template refused the conversation, or broke on it."""

    code = ErrorCode.TEMPLATE_ERROR


class DeadlineError(RequestError):
    """The request's time ran out."""

    code = ErrorCode.DEADLINE_EXCEEDED


class AbandonedError(RequestError):
    """Nobody waits for the answer any more."""
