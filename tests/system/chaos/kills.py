"""SIGKILL at random moments: every run finishes, with the weights of the run that nobody killed, bit for bit.

    python -m tests.system.chaos.kills --seed 0 --count 10 --kind process      `python -m tood.training`, then --resume
                                                    --kind worker       a worker of Ray Train, which starts it again
                                                    --kind upload       the same, while it stores a checkpoint
                                                    --kind driver       `tood train` and its Ray, then --resume
                                                    --kind raylet       a node of a cluster of two, which gets another
                                                    --kind notice       SIGTERM instead, to worker or driver in turn:
                                                                        no step at all may be done again
                                                    --kind hang         SIGSTOP instead, to one of two workers: the other
                                                                        ends at ray.collective_seconds

Without --kind all of them, --count kills each. Batches of different seeds add up.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.system.chaos.ledger import Account, account, faults_of, read
from tests.system.chaos.recorded import PAUSE
from tests.system.chaos.summary import Row, begin, conclude, parser, table
from tests.tiny import write_experiment

IMAGES, STEPS = 16, 4  # of the tiny data set, four images a step
INTERVAL = 0.3  # seconds between checkpoints within an epoch, where they are stored in the background
PATIENCE = 400  # seconds for a run or a restart; longer is a failure
KINDS = ("process", "worker", "upload", "driver", "raylet", "notice", "hang")


class Lab:
    """A folder with the data, the recipe, and what the unkilled run left: the standard for all kinds of the same world size."""

    def __init__(self, folder: Path, kind: str, draw: random.Random):
        self.folder, self.kind, self.draw, self.runs = folder, kind, draw, 0
        self.direct = kind == "process"
        self.workers = 2 if kind in ("raylet", "hang") else 1
        self.epochs = 3 if self.direct else 6
        self.experiment = write_experiment(folder)
        self.env = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1"}
        if kind == "upload":
            self.env[PAUSE] = "0.3"
        if self.direct:
            self.recipe = folder / "recipe.json"
            self.recipe.write_text(json.dumps(_recipe(self.experiment, self.epochs)))

    def next_run(self) -> "KilledRun":
        self.runs += 1
        return KilledRun(self, self.folder / f"run_{self.runs}")


class KilledRun:
    def __init__(self, lab: Lab, folder: Path):
        self.lab, self.folder, self.ledger = lab, folder, folder / "ledger.jsonl"
        folder.mkdir()
        self.process: subprocess.Popen | None = None
        self.address = ""

    def start(self) -> None:
        """Begin it, or go on with it."""
        lab = self.lab
        begun = bool(read(self.ledger)) or any(self.folder.glob("runs/*/experiment.yaml"))
        if lab.direct:
            command = ["training", str(lab.recipe), "--output", str(self.folder / "out")]
        else:
            command = ["tood", "train", str(lab.experiment), f"output={self.folder / 'runs'}", f"train.epochs={lab.epochs}"]
            command += ["train.evaluate_every=3", f"train.checkpoint_minutes={INTERVAL / 60}", "train.log_every=1"]
            command += ["ray.max_failures=-1", f"ray.workers={lab.workers}", "ray.collective_seconds=30"]
            command += [f"ray.address={self.address}"] if self.address else []
        command += ["--resume"] if begun else []
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.chaos.recorded", str(self.ledger), *command],
                env=lab.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, until, what: str) -> bool:
        """Whether `until()` came true before the run ended."""
        end = time.monotonic() + PATIENCE
        while not until():
            if not self.running():
                return bool(until())
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: nothing for {PATIENCE} s")
            time.sleep(0.02)
        return True

    def finish(self) -> None:
        self.wait(lambda: not self.running(), "the end of the run")
        if self.process.returncode:
            raise ChildProcessError(f"exit code {self.process.returncode}: {(self.folder / 'log').read_text()[-1500:]}")

    def end(self) -> None:
        """Nothing of it stays, however it went."""
        if self.process is not None:
            family = _family(self.process.pid)
            for each in [self.process, *family]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            self.process.wait()
            psutil.wait_procs(family, timeout=30)

    def weights(self) -> str:
        if self.lab.direct:
            newest = self.folder / f"out/epoch_{self.lab.epochs:04d}"
        else:
            (pointer,) = (self.folder / "runs/store/checkpoints").glob("*/latest.json")
            newest = self.folder / "runs/store" / json.loads(pointer.read_text())["prefix"]
        files = ("model/model.safetensors", "training.safetensors")
        return " ".join(hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in files)

    def account(self) -> Account:
        return account(read(self.ledger), STEPS, "written" if self.lab.direct else "stored")


def kill_some(run: KilledRun, most: int) -> int:
    """Kill up to `most` times while the run lasts; returns how often it was done. The run goes on afterwards."""
    lab, done = run.lab, 0
    while done < most:
        heard = len(read(run.ledger))
        word = "uploading" if lab.kind == "upload" else "batch"
        # From the start of a process to its first batch there is little to lose, so most moments come after it.
        early = lab.kind not in ("upload", "notice") and lab.draw.random() < 0.15
        if not early and not run.wait(lambda: any(e["what"] == word for e in read(run.ledger)[heard:]), f"the next {word}"):  # noqa: B023
            return done  # it ended first
        time.sleep(lab.draw.uniform(0, {"process": 4, "upload": 1.2}.get(lab.kind, 6)))
        if not run.running():
            return done
        to_driver = lab.kind in ("process", "driver") or (lab.kind == "notice" and done % 2)
        if to_driver:
            family = _family(run.process.pid)
            run.process.send_signal(signal.SIGTERM if lab.kind == "notice" else signal.SIGKILL)
            run.process.wait(60)
            _, alive = psutil.wait_procs(family, timeout=60)  # Ray's processes end with their driver
            for each in alive:
                each.kill()
            run.start()
            done += 1
        else:
            done += _kill_a_worker(run, {"notice": signal.SIGTERM, "hang": signal.SIGSTOP}.get(lab.kind, signal.SIGKILL))
    return done


def judge(run: KilledRun, standard: tuple[str, Account]) -> list[str]:
    weights, unkilled = standard
    faults = [] if run.weights() == weights else ["the final weights are not those of the unkilled run"]
    if run.lab.kind == "notice" and sum(run.account().redone):
        faults.append(f"{sum(run.account().redone)} steps were done again in spite of the notice")
    return faults + faults_of(run.account(), unkilled, IMAGES, 0 if run.lab.direct else INTERVAL)


def main(argv: list[str] | None = None) -> int:
    arguments = parser("kills", __doc__.split("\n")[0], 10, "kills of each kind")
    arguments.add_argument("--kind", choices=KINDS, action="append", help="this kind alone; may be given several times")
    arguments.add_argument("--a-run", type=int, default=4, help="most kills of one run (default 4)")
    arguments.add_argument("--keep", type=Path, help="folder for what the runs leave, to be looked at")
    options = arguments.parse_args(argv)
    began, rows, standards = begin(), [], {}
    for kind in options.kind or KINDS:
        with _folder(options.keep, kind) as folder:
            lab = Lab(folder, kind, random.Random(f"{options.seed} {kind}"))
            rows.append(harm(lab, options.count, options.a_run, standards))
            if len(options.kind or KINDS) > 1:  # it takes long: each as it is known
                print(table(rows[-1:]), flush=True)
    return conclude("kills", rows, seed=options.seed, began=began)


def harm(lab: Lab, count: int, a_run: int, standards: dict) -> Row:
    """Runs with kills until there were `count`, each compared with one that nobody killed.

    standards: what was found of unkilled ones before; kinds of the same length and number of ranks share them.
    """
    with _cluster(lab) as cluster:
        address = cluster.address if cluster else ""
        standard = standards.get((lab.epochs, lab.workers)) or _unkilled(lab, address)
        standards[lab.epochs, lab.workers] = standard
        tried = survived = 0
        redone, lost, faults = [], [], []
        while tried < count:
            run = lab.next_run()
            try:
                run.address, wanted = address, min(a_run, count - tried)
                run.start()
                done = cluster.kill_nodes(run, wanted) if cluster else kill_some(run, wanted)
                tried += done
                run.finish()
                found = judge(run, standard)
                survived += 0 if found else done
                redone += run.account().redone
                lost += run.account().lost
            except (TimeoutError, ChildProcessError, ValueError, OSError) as error:
                found = [str(error)]
            finally:
                run.end()
            if found:
                faults += found
                print(f"{lab.kind}, run {lab.runs}: {'; '.join(found)}", flush=True)
            else:
                shutil.rmtree(run.folder)
    remark = f"{lab.runs} runs of {lab.epochs * STEPS} steps on {lab.workers} rank(s); at most {max(redone, default=0)} steps "
    remark += f"({max(lost, default=0):.1f} s) done again; images skipped or seen twice: {sum('epoch' in f for f in faults)}"
    what = {
        "upload": "SIGKILL of a worker in an upload",
        "notice": "SIGTERM to worker or driver",
        "hang": "SIGSTOP of one of two workers",
    }
    return Row(what.get(lab.kind, f"SIGKILL of a {lab.kind}"), tried, survived, remark)


def _unkilled(lab: Lab, address: str) -> tuple[str, Account]:
    run = KilledRun(lab, lab.folder / "unkilled")
    try:
        run.address = address
        run.start()
        run.finish()
        return run.weights(), run.account()
    finally:
        run.end()


def _kill_a_worker(run: KilledRun, number: int) -> int:
    for process in _family(run.process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.send_signal(number)
                return 1
    time.sleep(0.2)
    return 0


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _recipe(experiment: Path, epochs: int) -> dict:
    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values
    from tood.config import to_dict

    settings = [f"train.epochs={epochs}", f"train.evaluate_every={epochs}", "train.checkpoint_minutes=1e-9", "train.log_every=1"]
    recipe = experiment_of(load_values(str(experiment), settings)).recipe
    return {key: to_dict(getattr(recipe, key)) for key in ("data", "model", "train", "predict", "init")}


@contextlib.contextmanager
def _folder(keep: Path | None, kind: str) -> Iterator[Path]:
    if keep:
        folder = keep / f"{kind}-{time.strftime('%H%M%S')}"
        folder.mkdir(parents=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as name:
            yield Path(name)


def _cluster(lab: Lab):
    if lab.kind != "raylet":
        return contextlib.nullcontext()
    from tests.system.chaos.nodes import TwoNodes

    return TwoNodes(lab.folder, lab.draw, lab.env)


if __name__ == "__main__":
    sys.exit(main())
