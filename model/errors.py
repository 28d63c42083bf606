"""Errors of the model package, each with a code of the API."""


class ModelError(ValueError):
    """Base of errors that a user can cause; the message says what to try next."""

    code = "invalidModelInput"


class ConfigError(ModelError):
    """A checkpoint's configuration selects mathematics that is not implemented."""

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
