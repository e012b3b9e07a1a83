"""Errors of the pipeline, one class a system it depends on. Messages name place and remedy, never a credential."""

from tood.errors import ToodError


class StorageError(ToodError):
    """Object storage is not reachable, refuses, or cannot do what checkpoints need."""


class MissingObjectError(StorageError):
    """There is no object under this key."""


class ChangedObjectError(StorageError):
    """The object is no longer the one that a reader began with."""


class IntegrityError(StorageError):
    """Stored bytes are not the bytes that were promised."""


class TrackingError(ToodError):
    """MLflow's tracking refuses or is not reachable."""

    transient = False  # it may go well later: the server is out of reach, or has trouble of its own


class RegistryError(ToodError):
    """MLflow's model registry refuses, is not reachable, or does not know this model."""


class ClusterError(ToodError):
    """Ray or its cluster cannot run what was asked."""
