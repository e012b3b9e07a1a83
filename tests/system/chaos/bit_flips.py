"""One bit is flipped in a stored file, at a place drawn by chance, over and over: whoever loads the file must refuse it.

Checkpoints and models in an object store and in folders, through the functions that load them; then, by the commands that a
person would use, a registered model (`tood pull`) and a checkpoint that a run would go on from (`tood train --resume`).
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from pipeline.registry.models import publish, pull
from pipeline.storage.checkpoints import fetch, upload_checkpoint
from pipeline.storage.folder import FolderStore
from pipeline.storage.pointers import latest, pointer_key
from pipeline.tracking.runs import experiment_id
from tests.system.chaos.summary import Row, begin, conclude, parser
from tests.tiny import write_experiment
from tests.tood.checkpoints import INFO, STATE, training, weights
from tood.checkpoint import MANIFEST, load_checkpoint, load_model, save_checkpoint, save_model
from tood.errors import ToodError

SHARES = {"fetch": 35, "load_checkpoint": 25, "load_model": 15, "load_model of one file": 10, "latest": 5, "pull": 10}  # percent
ROOT = Path(__file__).parents[3]


class Kept:
    """What is flipped: a checkpoint and a model in folders, a checkpoint in a store, its model registered where need be."""

    def __init__(self, folder: Path):
        self.folder, self.store, self.taken = folder, FolderStore(folder / "store"), 0
        self.tracking = f"sqlite:///{folder / 'mlflow.db'}"
        save_checkpoint(folder / "checkpoint", weights(), INFO, training(), STATE)
        save_model(folder / "model", weights(), INFO)
        shutil.copyfile(folder / "model/model.safetensors", folder / "alone.safetensors")
        self.prefix = upload_checkpoint(self.store, folder / "checkpoint", "run")

    def register(self) -> None:
        run_id = MlflowClient(self.tracking).create_run(experiment_id(self.tracking, "flips")).info.run_id
        info = {key: getattr(INFO, key) for key in ("config_hash", "dataset", "names", "epoch", "step")}
        publish(
            tracking_uri=self.tracking,
            name="flips",
            store=self.store,
            prefix=self.prefix,
            run_id=run_id,
            info=info | {"metric": "val/AP", "value": INFO.metrics["val/AP"]},
            tags={},
        )

    def files(self, what: str) -> list[Path]:
        """That the loader reads."""
        stored = self.store.root / self.prefix
        if what == "latest":
            return [self.store.root / pointer_key("run")]
        if what == "load_model of one file":
            return [self.folder / "alone.safetensors"]
        top = {"fetch": stored, "pull": stored / "model"}.get(what) or self.folder / what.removeprefix("load_")
        named = [path for path in top.rglob("*") if path.name == MANIFEST or path.suffix == ".safetensors"]
        return sorted(named)  # and not what MLflow's own tools find beside a model, which nothing of ours reads

    def load(self, what: str) -> None:
        """Raises ToodError where it refuses."""
        self.taken += 1
        target = self.folder / f"taken{self.taken}"
        try:
            if what == "fetch":
                fetch(self.store, self.prefix, target)
            elif what == "pull":
                pull("flips", self.tracking, target)
            elif what == "latest":
                fetch(self.store, latest(self.store, "run") or "none", target)
            elif what == "load_model of one file":
                load_model(self.folder / "alone.safetensors")
            else:
                {"load_checkpoint": load_checkpoint, "load_model": load_model}[what](self.folder / what.removeprefix("load_"))
        finally:
            shutil.rmtree(target, ignore_errors=True)


@contextmanager
def flipped(path: Path, rng: random.Random) -> Iterator[str]:
    """The file with one bit changed, for the length of the block; the place in words."""
    whole = path.read_bytes()
    place, bit = rng.randrange(len(whole)), rng.randrange(8)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    try:
        yield f"{path.name}, byte {place}, bit {bit}"
    finally:
        path.write_bytes(whole)


def count_refusals(what: str, count: int, files: Sequence[Path], load: Callable[[], str], rng: random.Random) -> Row:
    """load: "" if it refused as it should, else what it did."""
    refused, said, read = 0, "", set()
    for _ in range(count):
        path = rng.choice(files)
        read.add(path)
        with flipped(path, rng) as where:
            problem = load()
        refused += not problem
        said = said or (f"{where}: {problem}" if problem else "")
    return Row(what, count, refused, said or f"{len(read)} files")


def by_function(kept: Kept, what: str) -> str:
    try:
        kept.load(what)
    except ToodError:
        return ""
    except Exception as error:
        return f"{type(error).__name__} instead of a ToodError: {error}"
    return "was loaded"


def by_command(words: Sequence[str], folder: Path) -> str:
    """Ran `tood` as a person would: refused with exit code 2, one line, and no traceback?"""
    command = [sys.executable, "-m", "pipeline.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode == 2 and len(lines) == 1 and ("sha256" in lines[0] or "manifest" in lines[0]):
        return ""
    return f"exit code {done.returncode}: {' '.join((lines or done.stderr.splitlines() or ['nothing was said'])[-1].split())[:200]}"


def pulls(kept: Kept, count: int, rng: random.Random) -> Row:
    words = ["pull", "flips", "--set", f"tracking.uri={kept.tracking}", "--output", str(kept.folder / "pulled")]

    def load() -> str:
        problem = by_command(words, kept.folder)
        return problem or ("something was left behind" if (kept.folder / "pulled").exists() else "")

    return count_refusals("`tood pull`", count, kept.files("pull"), load, rng)


def resumes(folder: Path, count: int, rng: random.Random) -> Row:
    folder.mkdir()
    words = ["train", str(write_experiment(folder)), "train.epochs=3", "ray.max_failures=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begin = [sys.executable, "-m", "pipeline.cli", *words, "--stop-after", "1"]
    subprocess.run(begin, cwd=folder, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)
    store = folder / "runs/store"
    (pointer,) = store.glob("checkpoints/*/latest.json")
    prefix = latest(FolderStore(store), pointer.parent.name)
    named = [path for path in (store / prefix).rglob("*") if path.name == MANIFEST or path.suffix == ".safetensors"]
    row = count_refusals("`tood train --resume`", count, sorted(named), lambda: by_command([*words, "--resume"], folder), rng)
    fetch(FolderStore(store), prefix, folder / "whole")  # as it was, once nothing is flipped
    return row


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("bit_flips", __doc__.partition("\n")[0], 1000, "flips through the functions that load")
    made.add_argument("--pulls", type=int, default=10, help="flips through `tood pull` (default 10)")
    made.add_argument("--resumes", type=int, default=10, help="flips through `tood train --resume` (default 10)")
    made.add_argument("--without", action="append", default=[], choices=SHARES, help="leave this function out")
    options = made.parse_args(argv)
    began, rows = begin(), []
    with tempfile.TemporaryDirectory() as name:
        kept = Kept(Path(name))
        if options.pulls or "pull" not in options.without:
            kept.register()
        for number, (what, share) in enumerate(SHARES.items()):
            if what in options.without:
                continue
            rng, count = random.Random(options.seed * 100 + number), max(1, options.count * share // 100)
            rows.append(count_refusals(what, count, kept.files(what), lambda what=what: by_function(kept, what), rng))
            kept.load(what)  # whole again, it is not refused
        if options.pulls:
            rows.append(pulls(kept, options.pulls, random.Random(options.seed * 100 + 50)))
        if options.resumes:
            rows.append(resumes(Path(name) / "training", options.resumes, random.Random(options.seed * 100 + 51)))
    return conclude("bit_flips", rows, seed=options.seed, began=began)


if __name__ == "__main__":
    sys.exit(main())
