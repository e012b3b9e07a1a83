"""Real servers for tests, on loopback, free ports and a folder of the caller's; each ends with its `with` block.

Nothing here is a fixture: a test module decides how long a server lives. How they start is infra.local's, as for `make stack`.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from infra.local import services
from infra.local.processes import Service, StartError, end, launch
from infra.local.services import S3Server, free_ports

__all__ = ["S3Server", "free_ports", "mlflow_server", "postgres", "s3_server"]

STARTS = 3  # a free port may be taken by another process before its server binds it


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS with one identity, real signatures and conditional writes; buckets must be made before use."""
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = f"AK{secrets.token_hex(8)}", secrets.token_hex(20)
    used: list[int] = []

    def make() -> tuple[Service, S3Server]:
        service, server, ports = services.s3(folder, access_key, secret_key)
        used.extend(ports)
        return service, server

    try:
        with _serving(make, folder) as server:
            yield server
    finally:
        services.remove_sockets(used)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own in `folder`, reached by a Unix socket; the SQLAlchemy URI of its database."""
    server = services.postgres(folder / "postgres")
    try:
        yield server.get_uri(driver="psycopg2")
    finally:
        server.cleanup()


@contextlib.contextmanager
def mlflow_server(
    backend_uri: str, artifacts_destination: str, env: Mapping[str, str] | None = None, *, folder: Path
) -> Iterator[str]:
    """`mlflow server` with one worker that serves artifacts itself; its URL. Its log is `folder`/mlflow.log."""
    folder.mkdir(parents=True, exist_ok=True)
    with _serving(lambda: services.mlflow(backend_uri, artifacts_destination, free_ports(1)[0], env), folder) as url:
        yield url


@contextlib.contextmanager
def _serving(make: Callable[[], tuple[Service, Any]], folder: Path) -> Iterator[Any]:
    """Start what `make` describes, wait until it is ready, and end it and its children however the block ends."""
    for attempt in range(1, STARTS + 1):
        service, server = make()
        try:
            process = launch(service, folder)
            break
        except StartError:
            if attempt == STARTS:
                raise
    try:
        yield server
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            end([psutil.Process(process.pid)], service.grace)
        process.wait()
