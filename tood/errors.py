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


class DivergedError(ToodError):
    """The loss is no longer a number, or no longer changes."""


class OutOfMemoryError(ToodError):
    """A step needs more memory than there is; tried again it would need as much."""


class StoppedError(ToodError):
    """Training was told to stop, and did so behind a checkpoint to go on from."""


class CheckpointError(ToodError):
    """A checkpoint is missing, damaged or does not fit the model."""
