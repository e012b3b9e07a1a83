"""A real Ray cluster for tests: a head with its job server, on loopback ports and in a folder of its own, with a token."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
import yaml

from pipeline.jobs.package import pack
from tests.servers import free_ports

START_SECONDS = 120


@dataclass(frozen=True)
class Head:
    jobs: str  # address of its job server
    address: str  # host:port for drivers
    token_file: Path
    folder: Path
    pid: int

    def processes(self) -> list[psutil.Process]:
        """Everything that this cluster started and that still lives."""
        family = psutil.Process(self.pid).children(recursive=True)
        return [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def ray_head(folder: Path, cpus: int = 4, env: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Ended by the ids of its processes; `ray stop` would end other people's clusters too."""
    token_file = folder / "ray_token"
    token_file.write_text(secrets.token_hex(32))
    token_file.chmod(0o600)
    short = Path(tempfile.mkdtemp(prefix="tr"))  # sockets' paths may have 107 characters
    gcs, dashboard, client, agent = free_ports(4)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={short}"]
    command += ["--object-store-memory=200000000"]
    # Some of Ray's processes look for their cluster by RAY_ADDRESS; beside another cluster they would not find it.
    auth = {"RAY_ADDRESS": f"127.0.0.1:{gcs}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    with (folder / "ray.log").open("ab") as log:
        process = subprocess.Popen(
            command, env={**clean, **auth, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", token_file, folder, process.pid)
    try:
        _wait(head, process, folder / "ray.log")
        yield head
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.send_signal(signal.SIGTERM)
            process.wait(20)
        end_session(process)
        shutil.rmtree(short, ignore_errors=True)


def end_session(process: subprocess.Popen) -> None:
    """Kill what leads a session of its own, and all that belongs to it, whoever their parents are by now."""
    for each in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(each) == process.pid:
                os.kill(each, signal.SIGKILL)
    process.wait()


def write_clusters(head: Head, **more: object) -> None:
    """cluster.yaml beside the token, with the cluster `here`. more: further keys of its entry."""
    # Code that git does not know yet does not travel; a checkout that has some runs what is installed, which is itself.
    code = "installed" if pack(True, {}).left_out else "carry"
    entry = {
        "jobs": head.jobs,
        "token": {"file": "ray_token"},
        "python": sys.executable,
        "code": code,
        "folder": f"{head.folder}/lab",
    }
    (head.folder / "cluster.yaml").write_text(yaml.safe_dump({"clusters": {"here": entry | more}}))


def _wait(head: Head, process: subprocess.Popen, log: Path) -> None:
    headers = {"Authorization": f"Bearer {head.token_file.read_text()}"}
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{head.jobs}/api/jobs/", headers=headers, timeout=2).ok:
                return
        time.sleep(0.3)
    raise RuntimeError(f"Ray did not start; the end of its log:\n{log.read_text()[-3000:]}")
