"""How many images of a training step the memory here holds at once.

`tood fit`, or `python -m tood.bench.fit RECIPE.json` where only torch is installed.

Each number of images is tried in a process of its own: two whole steps, at the largest size that a batch of the recipe can have.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from tood.bench.cases import COCO_CLASSES, LAST, drawn_batch
from tood.bench.parts import step
from tood.config import DataConfig, to_dict
from tood.data.batches import buckets, padded
from tood.detectors import build_detector
from tood.devices import choose_kernels
from tood.errors import ConfigError, ToodError
from tood.memory import available, is_exhaustion, keep_freed_memory, peak, resident, savings
from tood.optimisation import AveragedWeights, make_optimizer
from tood.recipe import Recipe, read_recipe
from tood.run_state import prepare

OBJECTS = 50  # in each image
SHARE = 0.9  # of the memory is counted on; fragments, and what comes and goes beside a step, have the rest
GIB = 2**30
EXHAUSTED = 3  # exit code where memory gave out


class Fit(NamedTuple):
    device: str
    memory: float  # GiB that a worker can count on
    peaks: dict[int, float | None]  # images at once -> GiB; None: more than there is
    accumulate: int | None  # the least train.accumulate that fits; None: not even one image at a time does


def fit(recipe: Recipe, workers: int = 1, classes: int = COCO_CLASSES, say: Callable[[str], None] = print) -> Fit:
    """Find the least train.accumulate, so the most images at once, with which a worker's part of a step fits into memory.

    workers: that share a step; on a CPU they share its memory too. Raises ToodError where a trial fails for another reason.
    """
    if torch.cuda.is_available():
        device, memory = torch.cuda.get_device_name(), SHARE * torch.cuda.mem_get_info()[0] / GIB
    else:
        device, memory = "CPU", SHARE * available() / GIB / workers
    share = recipe.train.batch_size // workers
    peaks: dict[int, float | None] = {}

    for passes in range(1, share + 1):
        if share % passes:
            continue
        images = share // passes
        peaks[images] = held = _try(recipe, images, classes, memory)
        say(f"{images} images at once: " + ("more than there is" if held is None else f"{held:.2f} GiB"))
        if held is not None and held <= memory:
            return Fit(device, memory, peaks, passes)
    return Fit(device, memory, peaks, None)


def describe(found: Fit, recipe: Recipe, workers: int = 1) -> str:
    """What to set, in a line."""
    has = f"{found.device}: {found.memory:.1f} GiB for a worker"
    if found.accumulate is None:
        return f"{has}, less than one image of these sizes needs; set {' or '.join(savings(recipe.train))}"
    images = recipe.train.batch_size // workers // found.accumulate
    return (
        f"{has}; {images} images at once need {found.peaks[images]:.1f}: set train.accumulate={found.accumulate} "
        f"for steps of train.batch_size={recipe.train.batch_size}"
    )


def largest(config: DataConfig, images: int) -> tuple[int, int]:
    """(height, width) of the largest batch: where several come together, one may lie and another stand."""
    if config.buckets and images > 1:
        return buckets(config)[-1]
    long, short = max(config.long_side, config.short_side), min(config.long_side, config.short_side)
    return padded(long if images > 1 else short, long)


def _try(recipe: Recipe, images: int, classes: int, limit: float) -> float | None:
    """GiB of two steps in a process of their own; None where memory gave out, or on a CPU where they held more than `limit`."""
    with tempfile.TemporaryDirectory() as folder:
        file, said = Path(folder) / "recipe.json", Path(folder) / "said"
        file.write_text(json.dumps(to_dict(recipe)))
        command = [sys.executable, "-m", "tood.bench.fit", str(file), "--classes", str(classes), "--try", str(images)]
        with said.open("w") as told, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True) as process:
            try:
                while process.poll() is None:
                    if not torch.cuda.is_available() and resident(process.pid) > limit * GIB:
                        return None
                    time.sleep(0.02)
                figure = process.stdout.read()
            finally:
                process.kill()
        if process.returncode == 0:
            return float(figure)
        if process.returncode in (EXHAUSTED, -signal.SIGKILL):  # the kernel ends what takes more than there is
            return None
        raise ToodError(f"a step of {images} images failed: {(said.read_text().strip().splitlines() or ['without a word'])[-1]}")


def _peak_of_steps(recipe: Recipe, images: int, classes: int) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    choose_kernels(same_bits=recipe.train.deterministic, shapes_recur=recipe.data.buckets > 0)
    model = build_detector(recipe.model, classes, recipe.predict)
    prepare(model, replace(recipe.train, compile=False), device)  # what is compiled needs no more
    averaged = AveragedWeights(model, recipe.train.ema) if recipe.train.ema else None
    model.train()
    operation = step(
        model,
        make_optimizer(model, recipe.train),
        drawn_batch(images, *largest(recipe.data, images), OBJECTS, device, classes),
        recipe.train,
        LAST,
    )
    for number in range(2):  # the first makes the optimizer's state
        operation()
        if averaged:
            averaged.update(model, number)
    return (torch.cuda.max_memory_reserved() if device.type == "cuda" else peak()) / GIB


def main(arguments: list[str] | None = None) -> int:
    """Say how many images of a recipe's step fit into memory at once."""
    parser = argparse.ArgumentParser(prog="python -m tood.bench.fit", description=main.__doc__)
    parser.add_argument("recipe", type=Path, help="JSON file with a recipe")
    parser.add_argument("--classes", type=int, default=COCO_CLASSES)
    parser.add_argument("--workers", type=int, default=1, help="that share a step")
    parser.add_argument("--try", dest="images", type=int, metavar="IMAGES", help="of so many images alone, print the GiB")
    options = parser.parse_args(arguments)
    try:
        recipe = read_recipe(options.recipe)
        if options.images:
            print(_peak_of_steps(recipe, options.images, options.classes))
        else:
            if recipe.train.batch_size % options.workers:
                raise ConfigError(f"--workers: {options.workers} cannot share train.batch_size={recipe.train.batch_size} evenly")
            print(describe(fit(recipe, options.workers, options.classes), recipe, options.workers))
    except ToodError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not is_exhaustion(error):
            raise
        return EXHAUSTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
