"""What Ray Train takes of an epoch: the same training in a plain process and by a Ray Train worker, in turn."""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from pipeline.config import Experiment, experiment_of
from tood.bench.cases import QUICK, Sizes
from tood.bench.ratio import Ratio, ratio_of
from tood.training import train

TURNS, EPOCHS, IMAGES, REPORTS = 4, 2, 24, 10
EPOCH_SECONDS, LOOKS = "perf/epoch_seconds", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"


def share(sizes: Sizes, device: torch.device, seconds: float) -> Iterator[Ratio]:
    """Of an epoch, each training's first left out; then how long a report holds up training, beside the interval of Ray's looks."""
    from mlflow import MlflowClient

    from pipeline import cluster
    from pipeline.bench.experiment import quietly, small_experiment
    from pipeline.runs import train_run
    from pipeline.site import absolute, prepare

    quick = sizes == QUICK
    plain, by_ray = [], []
    with tempfile.TemporaryDirectory(prefix="tood-bench-") as folder:
        root = Path(folder)
        values = small_experiment(root, images=2 if quick else IMAGES, epochs=2 if quick else EPOCHS)
        values["train"] |= {"evaluate_every": 1000, "batch_size": 2}
        values["data"] |= {"long_side": 320, "short_side": 240}
        experiment = absolute(experiment_of(values))
        with cluster.connected(experiment.ray, 1 + cluster.TRIAL_CPUS, say=quietly):
            site = prepare(experiment)
            for turn in range(1 if quick else TURNS):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    plain.append(process.submit(_plainly, experiment, root / f"plain{turn}").result())
                with redirect_stdout(StringIO()):
                    _, tracked = train_run(experiment, site, f"bench-{turn}", say=quietly)
                tracked.finish("FINISHED")
                history = MlflowClient(site.tracking).get_metric_history(tracked.run_id, EPOCH_SECONDS)
                by_ray.append([metric.value for metric in history])
            reports = _reports(root)
    yield ratio_of("an epoch under Ray Train", [run[1:] for run in by_ray], "in a plain process", [run[1:] for run in plain])
    yield ratio_of("a report to Ray Train", [reports[1:]], "between Ray's looks", [[float(os.environ[LOOKS])]])


def _plainly(experiment: Experiment, folder: Path) -> list[float]:
    torch.set_num_threads(experiment.ray.cpus_per_worker)  # as many as a worker has
    took: list[float] = []
    train(experiment.recipe, folder, on_epoch=lambda report: took.append(report.metrics[EPOCH_SECONDS]))
    return took


def _reports(root: Path) -> list[float]:
    """Seconds that each of a worker's reports took it."""
    from ray import train as ray_train

    from pipeline.bench.launch import launch
    from pipeline.worker import report_quietly

    file = root / "reports.json"

    def work() -> None:
        report_quietly()
        took = []
        for step in range(REPORTS):
            time.sleep(0.1)
            started = time.perf_counter()
            ray_train.report({"step": step})
            took.append(time.perf_counter() - started)
        file.write_text(json.dumps(took))

    launch(work, root / "ray", name="reports")
    return json.loads(file.read_text())
