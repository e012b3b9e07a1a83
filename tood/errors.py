"""Errors a person can act on. Each message says what is wrong, where, and what to do; the command line prints it as one line."""


class ToodError(Exception):
    """Base of every expected failure. The command line ends with exit code 2 and no traceback."""


class ConfigError(ToodError):
    """A key or a value of a configuration is not acceptable."""


class DataError(ToodError):
    """A data set cannot be used as it is. `problems` lists every finding, not the first alone."""

    def __init__(self, message: str, problems: list[str] | None = None):
        super().__init__(message)
        self.problems = problems or [message]


class CheckpointError(ToodError):
    """A checkpoint is missing, damaged or does not fit the model."""
