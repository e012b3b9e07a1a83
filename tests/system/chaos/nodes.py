"""A cluster of two nodes on this machine, whose second is killed and replaced: its raylet, and so all that runs on it."""

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.ray_head import end_session, ray_head
from tests.servers import free_ports
from tests.system.chaos.ledger import read

PATIENCE = 240


class TwoNodes:
    """Each node has one CPU, so that a run of two workers has one on each; the driver belongs to the first."""

    def __init__(self, folder: Path, draw: random.Random, env: dict[str, str]):
        self.folder, self.draw, self.env = folder, draw, env
        self.node: subprocess.Popen | None = None
        self._log = folder / "run.log"
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "TwoNodes":
        head = self._open.enter_context(ray_head(self.folder, cpus=1, env=self.env))
        self.address = head.address
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_file)}
        self._open.callback(self._end_node)
        self.add_node()
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def add_node(self) -> None:
        (agent,) = free_ports(1)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={self.address}", "--num-cpus=1", "--block"]
        command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", "--object-store-memory=100000000"]
        with (self.folder / "node.log").open("ab") as log:
            self.node = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @contextlib.contextmanager
    def train(self, ledger: Path, *arguments: str) -> Iterator[subprocess.Popen]:
        """`tood train` on this cluster, noted in a ledger; ended on leaving."""
        command = [sys.executable, "-m", "tests.system.chaos.recorded", str(ledger), "tood", "train", *arguments]
        command.append(f"ray.address={self.address}")
        with self._log.open("wb") as log:
            run = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            try:
                yield run
            finally:
                end_session(run)

    def wait(self, run: subprocess.Popen, until: Callable[[], bool]) -> None:
        """Until something is true. Fails with the end of the run's log when it ends before, or takes too long."""
        end = time.monotonic() + PATIENCE
        while not until():
            over = run.poll() is not None or time.monotonic() > end
            assert until() or not over, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def wait_for_the_end(self, run: subprocess.Popen) -> None:
        self.wait(run, lambda: run.poll() is not None)
        assert run.returncode == 0, self._log.read_text()[-3000:]

    def kill_nodes(self, run, most: int) -> int:
        """Kill the second node up to `most` times while the run trains, each time bringing another; how often it was done."""
        for done in range(most):
            heard = len(read(run.ledger))
            if not run.wait(lambda: any(e["what"] == "batch" for e in read(run.ledger)[heard:]), "the next batch"):  # noqa: B023
                return done
            time.sleep(self.draw.uniform(0, 6))
            if not run.running():
                return done
            self.kill_node()
            self.add_node()
        return most

    def kill_node(self) -> None:
        """The second: its raylet, and with it all that runs there."""
        for process in psutil.Process(self.node.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":
                    process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.node.wait(20)  # `ray start --block` ends with it, and ends the node's other processes
        self._end_node()

    def _end_node(self) -> None:
        end_session(self.node)
