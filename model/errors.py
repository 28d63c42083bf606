"""Errors of the model package, each with a code that the server can pass on."""


class ModelError(ValueError):
    """Something a user gave is wrong; the message names it and the next thing to try."""

    code = "invalidModelInput"


class ConfigError(ModelError):
    """A checkpoint's configuration asks for mathematics that this implementation does not do."""

    code = "unsupportedCheckpoint"


class CheckpointError(ModelError):
    """A checkpoint's files are missing, damaged or do not fit its configuration."""

    code = "invalidCheckpoint"


class TokenizerError(ModelError):
    """A tokenizer lacks a token that the sequence layout needs."""

    code = "invalidTokenizer"


class UnsupportedSizeError(ModelError):
    """The requested pixel size is not one of the sizes this checkpoint was trained on."""

    code = "unsupportedDimensions"


class PromptTooLongError(ModelError):
    """A prompt needs more positions than the model has."""

    code = "promptTooLong"
