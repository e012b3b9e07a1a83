"""What more workers cost: real worker groups of Ray Train and DDP's real exchange, with computation that is only counted.

So many workers want more cores than a laptop has. What each would take with a core of its own is simulated from what it does:
a step is a computation of STEP seconds and, of the slowest worker, the processor's time for what it does beside that. What
the network takes, and waiting for each other, is not in it.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ray import train as ray_train
from torch import Tensor, nn

from pipeline import cluster
from pipeline.bench.experiment import quietly
from pipeline.bench.launch import launch
from pipeline.config import RayConfig
from pipeline.worker import report_quietly
from tood.bench.cases import COCO_CLASSES, QUICK, Sizes
from tood.bench.growth import Growth, growth_of
from tood.detectors import ModelConfig, build_detector
from tood.interruption import Agreement
from tood.ranks import place, share_gradients

WORKERS = (1, 2, 4)
STEP = 0.1  # s of computation: 16 images at 160 a second
STEPS, REPORTS = 5, 3
PARTS = ("start", "step", "report")


def costs(sizes: Sizes, device: torch.device, seconds: float) -> Iterator[Growth]:
    """Of a run by so many workers, whatever the device, as what is measured is the processor's part.

    start    from Ray Train's being called to the moment when the last worker could begin; all of them import at once
    step     of TOOD R-50, simulated: DDP's exchange of its gradients by gloo, and the workers' agreement after the step
    report   what a report to Ray Train holds up each worker
    """
    counts = WORKERS[:2] if sizes == QUICK else WORKERS
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in build_detector(ModelConfig(), COCO_CLASSES).parameters() if p.requires_grad]
    spent: dict[str, list[list[float]]] = {part: [] for part in PARTS}
    connection = cluster.connected(RayConfig(), max(counts) + cluster.TRIAL_CPUS, say=quietly)
    with tempfile.TemporaryDirectory(prefix="tood-bench-") as folder, connection:
        for count in reversed(counts):  # the first finds files and Ray cold: that is not to flatter the growth
            for part, times in _run(count, shapes, Path(folder) / str(count)).items():
                spent[part].append(times)
    for part, times in spent.items():
        yield growth_of(f"run's {part}", "workers", counts, times[::-1])


def _run(workers: int, shapes: Sequence[tuple[int, ...]], folder: Path) -> dict[str, list[float]]:
    folder.mkdir()
    called = time.time()
    launch(_work, folder / "ray", name="workers", workers=workers, job={"shapes": shapes, "folder": str(folder)})
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    slowest = {part: [max(own) for own in zip(*(times[part] for times in found), strict=True)] for part in PARTS[1:]}
    return {"start": [max(times["began"] for times in found) - called]} | slowest


class _Computed(nn.Module):
    """Parameters with gradients to exchange."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        super().__init__()
        self.held = nn.ParameterList(torch.zeros(shape) for shape in shapes)

    def forward(self) -> Tensor:
        return sum(parameter.sum() for parameter in self.held)


def _work(job: dict[str, Any]) -> None:
    report_quietly()
    torch.set_num_threads(1)
    rank, world = place()
    took: dict[str, Any] = {"began": time.time(), "step": [], "report": []}
    model = _Computed(job["shapes"])
    computing = min(_step(model) for _ in range(1 + STEPS))  # what STEP stands for
    wrapped = share_gradients(model) if world > 1 else model
    agreement = Agreement(0, lambda: False)
    for _ in range(1 + STEPS):
        took["step"].append(STEP + max(0, _step(wrapped, agreement) - computing))
    agreement.close()
    for step in range(1 + REPORTS):
        started = time.perf_counter()
        ray_train.report({"step": step})
        took["report"].append(time.perf_counter() - started)
    for part in PARTS[1:]:
        del took[part][0]  # which makes what the others find made
    (Path(job["folder"]) / f"{rank}.json").write_text(json.dumps(took))


def _step(model: nn.Module, agreement: Agreement | None = None) -> float:
    """Seconds of the processor."""
    started = time.process_time()
    model().backward()
    if agreement:
        agreement.after_step()
    took = time.process_time() - started
    model.zero_grad(set_to_none=True)
    return took
