"""MLflow is away in mid-run: stopped, frozen, stopped while a worker or the driver is killed. No point is lost or doubled.

A real MLflow server; a driver that opens a run and ends it, and a worker that logs as training does: some metrics every few
hundredths of a second, going on after its death from its last checkpoint, some steps back. After each outage: every point of
every step is there once and in order, there is one run, its status is right, and no step of training waited for MLflow.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from mlflow import MlflowClient

from infra.local import services
from infra.local.processes import end, family, launch
from pipeline.tracking.access import connect
from pipeline.tracking.leftovers import deliver_left
from pipeline.tracking.outbox import CALL_SECONDS
from pipeline.tracking.runs import Run, experiment_id
from pipeline.tracking.spool import journals
from tests.system.chaos.summary import Row, begin, conclude, parser
from tood.errors import ToodError

KEYS = ("train/loss", "train/lr", "epoch")
STEP_SECONDS, SAVED_EVERY = 0.05, 20  # of the worker: a step, and a checkpoint so many steps apart
OUTAGES = ("stopped", "frozen", "stopped, worker killed", "stopped, driver killed", "stopped at the end")
ROOT = Path(__file__).parents[3]


class Server:
    """`mlflow server` on one port and one database, to be taken away and given back."""

    def __init__(self, folder: Path):
        self._folder, self._port = folder, services.free_ports(1)[0]
        self._backend = f"sqlite:///{folder / 'mlflow.db'}"
        self.start()

    def start(self) -> None:
        service, self.uri = services.mlflow(self._backend, str(self._folder / "artifacts"), self._port)
        self._process = launch(service, self._folder)
        self._family = family([psutil.Process(self._process.pid)])

    def stop(self) -> None:
        end([process for process in self._family if process.is_running()], 0)  # killed, in the midst of whatever it does
        self._process.wait()

    def freeze(self) -> None:
        for process in self._family:
            process.suspend()

    def thaw(self) -> None:
        for process in self._family:
            process.resume()


class Training:
    """A driver and its worker, in processes of their own."""

    def __init__(self, folder: Path, uri: str, name: str, steps: int):
        self.folder, self.uri, self.name, self.steps = folder / name.replace(" ", "-").replace(",", ""), uri, name, steps
        self.folder.mkdir()
        self.children: dict[str, subprocess.Popen] = {}
        self.start("driver")
        wait(lambda: (self.folder / "run_id").exists(), 60)
        self.run_id = (self.folder / "run_id").read_text()
        self.start("worker")

    def start(self, role: str) -> None:
        command = [sys.executable, "-m", "tests.system.chaos.mlflow_outage", "--role", role, "--folder", str(self.folder)]
        command += ["--uri", self.uri, "--steps", str(self.steps), "--name", self.name.replace(" ", "-").replace(",", "")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.children[role] = subprocess.Popen(command, env=environment, stderr=(self.folder / f"{role}.log").open("a"))

    def kill(self, role: str) -> None:
        self.children[role].send_signal(signal.SIGKILL)
        self.children[role].wait()

    def step(self) -> int:
        """The last step that the worker did."""
        lines = (self.folder / "steps").read_text().splitlines() if (self.folder / "steps").exists() else []
        return int(lines[-1].split()[0]) if lines else -1

    def longest(self) -> float:
        """Seconds that one step waited for its metrics."""
        return max(float(line.split()[1]) for line in (self.folder / "steps").read_text().splitlines())

    def ended(self, seconds: float) -> None:
        for child in self.children.values():
            child.wait(seconds)


def outage(server: Server, folder: Path, how: str, seconds: float, rng: random.Random) -> tuple[str, float]:
    """What was wrong after it, "" if nothing; and the longest time that a step waited for its metrics, in seconds."""
    steps = int((seconds + 6) / STEP_SECONDS)
    training = Training(folder, server.uri, how, steps if how != "stopped at the end" else 60)
    try:
        return _harm(server, training, how, seconds, rng), training.longest()
    finally:
        for child in training.children.values():
            child.kill()
            child.wait()


def _harm(server: Server, training: Training, how: str, seconds: float, rng: random.Random) -> str:
    wait(lambda: training.step() >= 20, 60)
    time.sleep(rng.uniform(0, 1))
    if how == "stopped at the end":
        wait(lambda: training.step() >= 50, 60)
    before, away = training.step(), time.monotonic()
    server.freeze() if how == "frozen" else server.stop()
    wrong = ""
    if how != "stopped at the end":
        time.sleep(CALL_SECONDS + 2)  # of which one call may take CALL_SECONDS
        if training.step() < before + 5:
            wrong = "training stood still"
    if "killed" in how:
        training.kill("worker")
        if "driver" in how:
            training.kill("driver")
        else:
            training.start("worker")
    time.sleep(max(0, seconds - (time.monotonic() - away)))
    server.thaw() if how == "frozen" else server.start()
    client = MlflowClient(server.uri)
    if "driver" in how:
        deliver_left(server.uri, 60)
        status = client.get_run(training.run_id).info.status
        wrong = wrong or (f"killed, its status is {status}" if status != "KILLED" else "")
        training.start("driver")
        training.start("worker")
    training.ended(300)
    return wrong or _judge(client, training)


def _judge(client: MlflowClient, training: Training) -> str:
    for key in KEYS:
        found = [metric.step for metric in client.get_metric_history(training.run_id, key)]
        doubled = [step for step, times in Counter(found).items() if times > 1]
        lost = set(range(training.steps)) - set(found)
        if doubled or lost:
            return f"{key}: {len(lost)} of {training.steps} points lost, {len(doubled)} doubled"
    times = [m.timestamp for m in sorted(client.get_metric_history(training.run_id, KEYS[0]), key=lambda m: m.step)]
    if "killed" not in training.name and times != sorted(times):
        return "points are out of order"
    experiment = client.get_experiment_by_name("outages")
    runs = client.search_runs([experiment.experiment_id], f"tags.`tood.kind` = '{training.folder.name}'")
    if [run.info.run_id for run in runs] != [training.run_id]:
        return f"{len(runs)} runs"
    if runs[0].info.status != "FINISHED":
        return f"its status is {runs[0].info.status}"
    left = journals(training.uri, training.run_id)
    return f"{len(left)} journals are left" if left else ""


def wait(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.05)


# -- the two processes -------------------------------------------------------------------------------------------------


def drive(folder: Path, uri: str, name: str) -> None:
    """Open the run, or find it again; end it once the worker is done."""
    run = Run.open(uri, experiment_id(uri, "outages"), identity=name, name=name, tags={"tood.kind": name})
    run.params({"alpha": 1.0})
    (folder / "run_id.new").write_text(run.run_id)
    (folder / "run_id.new").rename(folder / "run_id")
    while not (folder / "done").exists():
        time.sleep(0.05)
    run.finish()


def work(folder: Path, uri: str, steps: int) -> None:
    """Log every step from the last checkpoint on; note how long each call took."""
    saved, run = folder / "saved", Run.attach(uri, (folder / "run_id").read_text())
    first = int(saved.read_text()) if saved.exists() else 0
    with (folder / "steps").open("a") as noted:
        for step in range(first, steps):
            time.sleep(STEP_SECONDS)
            began = time.monotonic()
            run.metrics({"train/loss": 1 / (1 + step), "train/lr": random.random()}, step, epoch=step / 10)
            noted.write(f"{step} {time.monotonic() - began:.3f}\n")
            noted.flush()
            if (step + 1) % SAVED_EVERY == 0:
                (folder / "saved.new").write_text(str(step + 1))
                (folder / "saved.new").rename(saved)
    run.deliver()
    (folder / "done").touch()


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("mlflow_outage", __doc__.partition("\n")[0], len(OUTAGES), "outages: one of each kind, then again")
    made.add_argument("--seconds", type=float, default=60, help="length of each (default 60)")
    made.add_argument("--only", choices=OUTAGES)
    for internal in ("--role", "--folder", "--uri", "--name"):
        made.add_argument(internal, help="of a process of its own")
    made.add_argument("--steps", type=int, help="of such a process")
    options = made.parse_args(argv)
    if options.role == "driver":
        return drive(Path(options.folder), options.uri, options.name) or 0
    if options.role == "worker":
        return work(Path(options.folder), options.uri, options.steps) or 0
    began, rng, rows = begin(), random.Random(options.seed), []
    kinds = [options.only] if options.only else OUTAGES
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_STATE_HOME"] = str(Path(name) / "state")
        server = Server(Path(name))
        try:
            connect(server.uri)
            for number in range(options.count):
                how, folder = kinds[number % len(kinds)], Path(name) / f"outage{number}"
                folder.mkdir()
                rows.append(_row(server, folder, how, options.seconds, rng))
                print(f"{rows[-1].what}: {'survived' if rows[-1].survived else 'not survived'}, {rows[-1].remark}", flush=True)
        finally:
            server.stop()
    return conclude("mlflow_outage", rows, seed=options.seed, began=began)


def _row(server: Server, folder: Path, how: str, seconds: float, rng: random.Random) -> Row:
    try:
        wrong, longest = outage(server, folder, how, seconds, rng)
    except (OSError, subprocess.TimeoutExpired, ToodError) as error:
        wrong, longest = f"{type(error).__name__}: {error}", 0.0
    if not wrong and longest > CALL_SECONDS + 2:
        wrong = f"a step waited {longest:.1f} s for its metrics"
    return Row(f"MLflow {how}, {seconds:.0f} s", 1, int(not wrong), wrong or f"longest wait of a step {longest:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
