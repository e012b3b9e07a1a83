"""How this project reaches MLflow: addresses, clients, and their errors in one line.

Everything takes the address explicitly; MLflow's global address and its stack of active runs are never used.
"""

import fcntl
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import TrackingError
from pipeline.tracking.facts import redact

CONNECT_SECONDS = 5
_TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")  # as MLflow also calls a dead server

T = TypeVar("T")
log = logging.getLogger(__name__)

# By default MLflow goes on trying a silent server for a quarter of an hour, and prints addresses of runs to stdout. It
# reads these at each use.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)


def resolve_uri(uri: str, folder: str | Path) -> str:
    """The full tracking address: "" is an SQLite file in `folder`, and relative SQLite files become absolute.

    Raises TrackingError for kinds of address that MLflow's runs cannot live in, and for addresses with credentials.
    """
    if not uri:
        return f"sqlite:///{Path(folder).absolute() / 'mlflow.db'}"
    shown = redact(uri)
    expected = TrackingError(
        f"tracking address {shown}: expected http(s)://HOST:PORT of an MLflow server, sqlite:///FILE, or nothing for "
        "an SQLite file in the runs folder"
    )
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            _ = parts.port  # looked at only here: it is a number, and one of a port
    except ValueError:
        raise expected from None
    if parts.scheme in ("http", "https"):
        if "@" in parts.netloc:
            raise TrackingError(
                f"tracking address {shown}: holds credentials, which would travel into logs; leave them out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if parts.hostname:
            return uri.rstrip("/")
    kind = parts.scheme.partition("+")[0]
    file = uri.partition(":///")[2]
    if kind == "sqlite" and file:
        return f"{parts.scheme}:///{Path(file).absolute()}"
    if kind in ("postgresql", "mysql"):
        if parts.password:
            raise TrackingError(
                f"tracking address {shown}: holds a password, which would travel into logs; leave it to the database "
                "client's own file (such as ~/.pgpass), or put an MLflow server before the database"
            )
        return uri
    raise expected


def connect(uri: str) -> None:
    """Check that the server or database behind a resolved address answers, within seconds. Raises TrackingError.

    Creates the tables of a new SQLite file, one process at a time: call it once before workers start.
    """
    where = f"MLflow at {redact(uri)}"
    if uri.startswith("http"):
        _probe_server(uri, where)
        with explained(f"{where} refuses requests"):
            mlflow_client(uri).search_experiments(max_results=1)
        return
    with _sole_process(uri, where):
        _probe_database(uri, where)
        if uri.startswith("sqlite"):
            _create(uri, where)
        with explained(f"{where} cannot be used"):
            mlflow_client(uri).search_experiments(max_results=1)


CHECK = "check that MLflow runs and lets you write"


@lru_cache
def mlflow_client(uri: str) -> MlflowClient:
    """This process's client of an address."""
    return MlflowClient(tracking_uri=uri)


def one_line(error: Exception) -> str:
    """An error's text, fit for one line of a log."""
    text = " ".join(redact(str(error)).split()).partition(" [SQL: ")[0]
    return text if len(text) <= 300 else f"{text[:300]}..."


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn MLflow's errors within into a TrackingError that says what was being done."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.exceptions.RequestException) as error:
        refused = isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403)
        advice = "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or --cluster NAME" if refused else CHECK
        failure = TrackingError(f"{what}: {one_line(error)}; {advice}")
        failure.transient = not isinstance(error, MlflowException) or error.error_code in _TRANSIENT
        raise failure from None


def patiently(what: str, action: Callable[[], T], seconds: float) -> T:
    """`action`'s result; done again while MLflow is out of reach, for up to `seconds`, but not where it refuses.

    What was asked may have been done although the answer was lost, so `action` must bear repetition. Raises TrackingError.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            with explained(what):
                return action()
        except TrackingError as error:
            if not error.transient or time.monotonic() + pause > deadline:
                raise
            log.warning("%s; trying again for %.0f s", error, deadline - time.monotonic())
        time.sleep(random.uniform(0.5, 1) * pause)
        pause = min(2 * pause, 10)


def bounded(action: Callable[[], object], seconds: float) -> Exception | None:
    """Why `action` failed, or did not end in time; None where it did its work. Its thread is then left behind."""
    outcome: Exception | None = TimeoutError(f"not done within {seconds:.0f} s")

    def run() -> None:
        nonlocal outcome
        try:
            action()
            outcome = None
        except Exception as error:
            outcome = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome


def server_version(uri: str) -> str:
    """MLflow's version of a server; "" for a database, or where it is not told."""
    if not uri.startswith("http"):
        return ""
    with suppress(requests.exceptions.RequestException):
        reply = requests.get(f"{uri}/version", timeout=CONNECT_SECONDS)
        if reply.ok and len(text := reply.text.strip().strip('"')) < 20:
            return text
    return ""


def sqlite_file(uri: str) -> Path:
    """The file behind a sqlite:/// address."""
    return Path(uri.partition(":///")[2].partition("?")[0]).absolute()


def _create(uri: str, where: str) -> None:
    """Fill an SQLite file that is still empty, at once or not at all.

    MLflow's own creation takes dozens of steps and seconds; what a process that was killed between two of them leaves can be
    neither used nor repaired.

    The caller holds the folder alone.
    """
    file = sqlite_file(uri)
    if file.stat().st_size:
        return
    for left in file.parent.glob(f".{file.name}.*"):  # by one that was killed
        left.unlink(missing_ok=True)
    fresh = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    scheme, mark, query = uri.partition(":///")[0], *uri.partition("?")[1:]
    try:
        with explained(f"{where} cannot be created"):
            MlflowClient(tracking_uri=f"{scheme}:///{fresh}{mark}{query}").search_experiments(max_results=1)
        if not file.stat().st_size:  # an MLflow server, which knows nothing of the lock, may have come first
            os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)


def _probe_server(uri: str, where: str) -> None:
    try:
        requests.get(f"{uri}/health", timeout=CONNECT_SECONDS)
    except requests.exceptions.SSLError:
        return  # something answers; MLflow's client knows the certificates and has the last word
    except requests.exceptions.RequestException as error:
        reason = "does not answer" if isinstance(error, requests.exceptions.Timeout) else "cannot be reached"
        raise TrackingError(f"{where} {reason}; start the server (mlflow server) or correct the address") from None


def _probe_database(uri: str, where: str) -> None:
    limit = "timeout" if uri.startswith("sqlite") else "connect_timeout"
    try:
        engine = sqlalchemy.create_engine(uri, connect_args={limit: CONNECT_SECONDS})
        sqlalchemy.inspect(engine).get_table_names()
        engine.dispose()
    except ImportError as error:
        raise TrackingError(f"{where} cannot be opened: {one_line(error)}; install this driver of the database") from None
    except Exception as error:  # each driver has its own
        advice = "name another file" if uri.startswith("sqlite") else "start the database or correct the address"
        raise TrackingError(f"{where} cannot be opened: {one_line(error)}; {advice}") from None


@contextmanager
def _sole_process(uri: str, where: str) -> Iterator[None]:
    """For an SQLite file, make its folder and hold it: MLflow's creation of tables does not bear company."""
    if not uri.startswith("sqlite"):
        yield
        return
    folder = sqlite_file(uri).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise TrackingError(f"{where} cannot be opened: {error}; name a folder that you may write to") from None
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
