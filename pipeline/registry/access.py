"""MLflow's model registry as this project reaches it: a client known to answer, models by their names, and taking turns.

The registry alone must be enough, since whoever moves an alias may have no access to the object store. So a turn is an
entry of the registry's own, which MLflow's database lets one process create.
"""

import contextlib
import difflib
import getpass
import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import requests
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import RegistryError, TrackingError
from pipeline.tracking.access import connect, one_line
from pipeline.tracking.facts import redact

CHAMPION, CHALLENGER = "champion", "challenger"
DIGEST = "manifest_sha256"  # tag: sha256 of the model folder's manifest.json
SHOWN = 20  # names that an error lists

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_REFERENCE = re.compile(rf"(?:models:/)?(?P<name>{_NAME})(?:@(?P<alias>[\w-]+)|/(?P<version>[0-9]{{1,18}}))?")
_TURN = ".turn"  # ending of the entry that stands for a turn; no model has such a name
_TICKET = "tood.turn"  # its tag: whose turn, until when
_GONE = ("RESOURCE_DOES_NOT_EXIST", "TEMPORARILY_UNAVAILABLE")  # a lock just given up, a database that is busy


class Reference(NamedTuple):
    """A model as a person writes it: NAME, NAME@alias or NAME/3, with or without models:/ before it."""

    name: str
    alias: str | None
    version: str | None


def parse(text: str) -> Reference:
    found = _REFERENCE.fullmatch(text)
    if not found:
        raise RegistryError(f"{redact(text)!r:.200} is not a model; write models:/NAME@alias, models:/NAME/VERSION or NAME")
    return Reference(found["name"], found["alias"], found["version"])


def check_name(name: str) -> str:
    """`name` itself if a model may have it. Raises RegistryError."""
    if not re.fullmatch(_NAME, name) or len(name) > 80 or name.endswith(_TURN):
        raise RegistryError(
            f"model name {name!r:.100}: use up to 80 letters, digits and . _ - only, a letter or digit first, not {_TURN!r} last"
        )
    return name


@contextlib.contextmanager
def registry(tracking_uri: str) -> Iterator[MlflowClient]:
    """A client of the registry beside `tracking_uri`, known to answer. Every failure becomes a RegistryError."""
    try:
        connect(tracking_uri)
        yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except TrackingError as error:
        raise RegistryError(str(error)) from None
    except (MlflowException, SQLAlchemyError, requests.exceptions.RequestException) as error:
        raise RegistryError(f"model registry of MLflow at {redact(tracking_uri)}: {one_line(error)}") from None


def find_model(client: MlflowClient, name: str) -> RegisteredModel:
    """Raises RegistryError that lists the models there are, those of similar names first."""
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = sorted(model.name for model in all_models(client))
        near = difflib.get_close_matches(name, names, SHOWN)
        shown = (near + [other for other in names if other not in near])[:SHOWN]
        more = f" and {len(names) - SHOWN} more; see `tood models list`" if len(names) > SHOWN else ""
        raise RegistryError(f"the registry has no model {name!r}; it has: {', '.join(shown) or 'none'}{more}") from None


def find_version(client: MlflowClient, wanted: Reference) -> ModelVersion:
    """The version meant; a bare name means the champion. Raises RegistryError that lists what there is."""
    model, number = find_model(client, wanted.name), wanted.version
    if number is None:
        number = model.aliases.get(wanted.alias or CHAMPION)
        if number is None:
            known = ", ".join(sorted(model.aliases)) or "none"
            raise RegistryError(f"model {wanted.name!r} has no alias {wanted.alias or CHAMPION!r}; it has: {known}")
    try:
        return client.get_model_version(wanted.name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"model {wanted.name!r} has no version {number}") from None


def alias_of(client: MlflowClient, name: str, alias: str) -> int | None:
    """The number of the version that has the alias, if any."""
    number = find_model(client, name).aliases.get(alias)  # MLflow gives text or a number, store by store
    return None if number is None else int(number)


def all_models(client: MlflowClient) -> list[RegisteredModel]:
    """Every registered model, by name."""
    found = _pages(lambda token: client.search_registered_models(max_results=100, page_token=token))
    return sorted((model for model in found if _TICKET not in model.tags), key=lambda model: model.name)


def all_versions(client: MlflowClient, name: str | None = None) -> list[ModelVersion]:
    """A model's versions, oldest first; of every model without a name."""
    which = f"name = '{name}'" if name else None
    found = _pages(lambda token: client.search_model_versions(which, max_results=1000, page_token=token))
    return sorted(found, key=lambda version: (version.name, int(version.version)))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def who() -> str:
    """Whoever moves an alias by hand: MLflow's user, else this machine's."""
    with contextlib.suppress(OSError, KeyError):
        return redact(os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser())
    return "unknown"


@contextlib.contextmanager
def turn(client: MlflowClient, name: str, *, lease: float = 60, patience: float = 120) -> Iterator[None]:
    """Hold `name`'s turn for the length of the block: of all processes on all machines one at a time moves its aliases.

    A holder that died is waited for until its `lease` ends (seconds, by the machines' clocks). RegistryError after
    `patience` seconds of waiting.
    """
    entry, owner, deadline = f"{name}{_TURN}", uuid.uuid4().hex, time.monotonic() + patience
    while not _take(client, entry, json.dumps({"owner": owner, "until": time.time() + lease})):
        if time.monotonic() > deadline:
            raise RegistryError(f"model {name!r}: its lock {entry!r} has been held for {patience:.0f} s; try again later")
        time.sleep(random.uniform(0.05, 0.2))
    try:
        yield
    finally:
        _give_up(client, entry, owner)


def _take(client: MlflowClient, entry: str, ticket: str) -> bool:
    """Create the lock. Looks first, for each attempt to write holds up those who work; ends one whose time is up."""
    held = _ticket(client, entry)
    if held and held["until"] >= time.time():
        return False
    if held:
        _give_up(client, entry, held["owner"])
    try:
        client.create_registered_model(entry, tags={_TICKET: ticket}, description="A lock of `tood`'s, held for seconds.")
    except MlflowException as error:
        if error.error_code not in (*_GONE, "RESOURCE_ALREADY_EXISTS"):
            raise
        return False
    return True


def _give_up(client: MlflowClient, entry: str, owner: str) -> None:
    """Remove the lock if it still is this owner's. A database that is busy is asked again."""
    for pause in (0.1, 0.3, 1.0, 0):
        held = _ticket(client, entry)
        if held is None or held["owner"] != owner:
            return
        with contextlib.suppress(MlflowException):
            client.delete_registered_model(entry)
            return
        time.sleep(pause)


def _ticket(client: MlflowClient, entry: str) -> dict[str, Any] | None:
    """Whose turn it is until when; None if nobody's, or if it was given up while this looked."""
    try:
        held = json.loads(client.get_registered_model(entry).tags[_TICKET])
        return {"owner": str(held["owner"]), "until": float(held["until"])}
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise
    except (ValueError, TypeError, KeyError):
        pass
    return None


def _pages(page: Callable[[str | None], Any]) -> list[Any]:
    found, token = [], None
    while True:
        part = page(token)
        found += part
        token = part.token
        if not token:
            return found
