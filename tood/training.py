"""Training, plain torch: one process or several under DDP, no launcher known. `python -m tood.training CONFIG.json` runs it.

`train` reads top to bottom: data, model, resume, then epochs of steps, each followed by evaluation and a checkpoint.
"""

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tood.config import DataConfig, identity
from tood.data.batches import arriving
from tood.data.coco import CocoData, read_split
from tood.data.loaders import TrainLoader, learnable
from tood.devices import choose_kernels
from tood.early_stopping import after_epoch, reason
from tood.errors import ConfigError, DataError, DivergedError, StoppedError, ToodError
from tood.evaluation import coco_figures, read_truth
from tood.finetune import LoadReport
from tood.inference import detect_all
from tood.interruption import COLLECTIVE_SECONDS, Agreement, Ask, sigterm_heeded
from tood.memory import advice, keep_freed_memory, peak
from tood.optimisation import learning_rate, set_rate
from tood.precision import mixed_precision
from tood.progress import CheckpointReport, EpochReport, StepReport
from tood.ranks import place, share_figure, share_gradients, share_statistics
from tood.recipe import Recipe, read_recipe
from tood.run_state import (
    Run,
    after_epoch_folder,
    go_on,
    newest_checkpoint,
    save,
    start,
    tidy,
    val_metrics,
    within_epoch_folder,
)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    config: dict | None = None,
    device: torch.device | None = None,
    resume: Path | None = None,
    handed_over: str = "",
    stop_after: int | None = None,
    metric: str = "val/AP",
    told_to_stop: Callable[[], bool] = lambda: False,
    collective_seconds: float = COLLECTIVE_SECONDS,
    on_start: Callable[[CocoData, CocoData, LoadReport | None], None] = lambda train_data, val_data, loaded: None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_checkpoint: Callable[[CheckpointReport], None] = lambda report: None,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> None:
    """Train to the recipe's last epoch, until `stop_after` epochs are done, or until early stopping has seen enough of `metric`.

    Writes the checkpoint of epoch e (from 1) to folder/epoch_0001 and so on; `resume` is such a folder, and training goes
    on from it to the bit. `config` is what checkpoints say they were made from (default: the recipe's `identity`), and its
    hash is what a resume insists on, except of the checkpoint whose `tood.checkpoint.digest` is `handed_over`: the run begins
    with it, and is another's child (population-based training). Under an initialised process group each rank calls this with
    the same arguments.

    Every train.checkpoint_minutes one more is written within the epoch, to folder/step_00000001 and so on by the steps done;
    to remove superseded ones is the caller's part. `told_to_stop` is asked after each step, on rank 0 also between batches of
    evaluation: once it is true on any rank, such a checkpoint is written and StoppedError raised on all of them.
    """
    rank, world = place()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(recipe.train.seed)
    choose_kernels(same_bits=recipe.train.deterministic, shapes_recur=recipe.data.buckets > 0)
    train_data, val_data = read_data(recipe.data)
    loader = _train_loader(recipe, train_data, rank, world)
    fresh = recipe if resume is None else replace(recipe, init="none")  # the checkpoint brings its own weights
    run = start(fresh, config or identity(recipe), train_data, val_data, device)
    if resume is not None:
        go_on(run, resume, loader.order, handed_over)
    on_start(train_data, val_data, run.loaded)
    accumulate = recipe.train.accumulate
    steps_per_epoch = math.ceil(len(loader) / accumulate)
    wrapped = run.model
    if world > 1:
        wrapped = share_gradients(run.model)
    stop = min(recipe.train.epochs, stop_after or recipe.train.epochs)
    if run.standing is not None and run.standing.ended:
        stop = run.epoch  # nothing is left to do
    agreement = Agreement(recipe.train.checkpoint_minutes, told_to_stop, collective_seconds)

    def checkpoint_within(stops: bool, in_step: bool = True) -> None:
        within = None
        if rank == 0:
            within = within_epoch_folder(folder, run.step)
            save(run, within, order=loader.order(run.epoch))
        on_checkpoint(CheckpointReport(run.epoch, run.step, within, stops))
        agreement.saved()
        if stops:
            if in_step:
                agreement.meet()  # a rank that has ended would end the others, and rank 0 has to be done
            raise StoppedError(f"stopped as told, {run.into} steps into epoch {run.epoch + 1}; --resume goes on from there")

    def after_step() -> None:
        if ask := agreement.after_step():
            checkpoint_within(ask is Ask.STOP)

    try:
        for epoch in range(run.epoch, stop):
            started = time.monotonic()
            with advice(recipe, world):
                _train_epoch(run, wrapped, loader, epoch, steps_per_epoch, on_step if rank == 0 else None, after_step)
            if world > 1:
                share_statistics(run.model, run.ema and run.ema.tensors)
            seconds = time.monotonic() - started
            done = epoch + 1
            last, why = done == recipe.train.epochs, ""
            metrics, figures, found = {}, None, None
            if last or done % recipe.train.evaluate_every == 0:
                averaged = run.ema and run.ema.tensors
                told = told_to_stop if rank == 0 else lambda: False  # not in step here, but rank 0 has all that is kept
                try:
                    found = detect_all(run.model, val_data, recipe, device, weights=averaged, told_to_stop=told)
                except StoppedError:
                    checkpoint_within(stops=True, in_step=False)
                if rank == 0:
                    figures = coco_figures(read_truth(val_data.annotations, val_data.dropped_ids), found)
                    metrics = val_metrics(figures)
                if run.standing is not None:
                    figure = share_figure(metrics.get(metric), device)
                    run.standing = after_epoch(run.standing, done, figure, recipe.train.early_stopping)
                    if run.standing.ended and not last:
                        last, why = True, reason(run.standing, metric, recipe.train.early_stopping)
            checkpoint, run.epoch, run.into = None, done, 0
            if rank == 0:
                metrics["perf/epoch_seconds"] = seconds
                metrics["perf/evaluation_seconds"] = time.monotonic() - started - seconds
                checkpoint = after_epoch_folder(folder, done)
                save(run, checkpoint, figures)
            agreement.saved()
            on_epoch(EpochReport(epoch, run.step, metrics, figures, found, checkpoint, last, why))
            if last:
                break
        agreement.close()
    finally:
        loader.close()


def read_data(config: DataConfig) -> tuple[CocoData, CocoData]:
    """The train and the val split, which `check_pair` has passed. Raises DataError."""
    train_data, val_data = read_split(config, "train"), read_split(config, "val")
    check_pair(train_data, val_data, config)
    return train_data, val_data


def check_pair(train_data: CocoData, val_data: CocoData, config: DataConfig) -> None:
    """Raises DataError unless both splits have the same classes and there is something to learn."""
    if (train_data.names, train_data.category_ids) != (val_data.names, val_data.category_ids):
        raise DataError(
            f"{val_data.annotations}: its categories differ from those of {train_data.annotations}; both files must list "
            "the same category ids and names"
        )
    learnable(train_data, config)


def _train_epoch(
    run: Run,
    model: nn.Module,
    loader: TrainLoader,
    epoch: int,
    steps_per_epoch: int,
    on_step: Callable | None,
    after_step: Callable[[], None],
) -> None:
    config = run.recipe.train
    model.train()
    total = run.sums  # read by the host at the next report
    timed, started = 0, time.monotonic()
    batches = arriving(loader.epoch(epoch, run.into * config.accumulate), run.device)
    for i in range(run.into, steps_per_epoch):
        rate = learning_rate(config, run.step, steps_per_epoch)
        set_rate(run.optimizer, rate)
        micro = min(config.accumulate, len(loader) - i * config.accumulate)
        for j in range(micro):
            batch = next(batches)
            wait = contextlib.nullcontext() if j == micro - 1 or model is run.model else model.no_sync()
            with wait:
                with mixed_precision(run.recipe.train.precision, run.device.type):
                    losses = model(batch, epoch)
                (sum(losses.values()) / micro).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0.0) + value.detach() / micro
        if config.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm, foreach=True)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        if run.ema:
            run.ema.update(run.model, run.step)
        run.step += 1
        run.into += 1
        run.summed += 1
        timed += 1
        if (i + 1) % config.log_every == 0 or i + 1 == steps_per_epoch:
            means = dict(zip(total, (torch.stack(list(total.values())) / run.summed).tolist(), strict=True))
            if not all(map(math.isfinite, means.values())) or not any(means.values()):  # all 0: scores underflown, for good
                said = ", ".join(f"{name.removeprefix('loss_')} {value:g}" for name, value in means.items())
                raise DivergedError(
                    f"epoch {epoch + 1}, step {run.step}: training has diverged (loss {said}); "
                    "lower train.lr, lengthen train.warmup_steps or set train.clip_norm=35"
                )
            if on_step:
                on_step(_step_report(run, epoch, steps_per_epoch, means, rate, timed / (time.monotonic() - started)))
            total.clear()
            run.summed = timed = 0
            started = time.monotonic()
        after_step()


def _step_report(
    run: Run, epoch: int, steps_per_epoch: int, means: dict[str, float], rate: float, steps_a_second: float
) -> StepReport:
    config = run.recipe.train
    metrics = {
        "train/loss": sum(means.values()),
        **{f"train/{name}": value for name, value in means.items()},
        "train/lr": rate,
        "perf/images_per_second": config.batch_size * steps_a_second,
    }
    if run.device.type == "cuda":
        metrics["perf/gpu_memory_gb"] = torch.cuda.max_memory_allocated(run.device) / 2**30
    metrics["perf/memory_gb"] = peak() / 2**30
    left = (config.epochs * steps_per_epoch - run.step) / steps_a_second
    return StepReport(epoch, run.step, steps_per_epoch, metrics, left)


def _train_loader(recipe: Recipe, data: CocoData, rank: int, world: int) -> TrainLoader:
    config = recipe.train
    micro = config.batch_size // config.accumulate
    if micro % world:
        raise ConfigError(
            f"train.batch_size: {config.batch_size} images a step (accumulate={config.accumulate}) cannot be shared "
            f"evenly by {world} workers; use a multiple of {world * config.accumulate}"
        )
    return TrainLoader(data, recipe.data, batch_size=micro // world, seed=config.seed, epochs=config.epochs, rank=rank, world=world)


def main(arguments: list[str] | None = None) -> int:
    """Train from a JSON recipe in this process, or as one of torchrun's."""
    parser = argparse.ArgumentParser(prog="python -m tood.training", description=main.__doc__)
    parser.add_argument("config", type=Path, help="JSON file with a recipe")
    parser.add_argument("--output", type=Path, default=Path("runs/training"), help="folder for checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--stop-after", type=int, metavar="EPOCHS", help="stop once this many epochs are done")
    options = parser.parse_args(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        recipe = read_recipe(options.config)
        with sigterm_heeded() as told_to_stop:
            train(
                recipe,
                options.output,
                device=device,
                resume=newest_checkpoint(options.output) if options.resume else None,
                told_to_stop=told_to_stop,
                stop_after=options.stop_after,
                on_start=_print_start,
                on_step=lambda report: print(report.line(recipe.train.epochs), flush=True),
                on_checkpoint=lambda report: _tidy(options.output, report),
                on_epoch=lambda report: _epoch_done(options.output, report),
            )
    except StoppedError as error:
        print(error, flush=True)
        return 128 + signal.SIGTERM
    except ToodError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _print_start(train_data: CocoData, val_data: CocoData, loaded: LoadReport | None) -> None:
    if loaded and place()[0] == 0:
        print(f"init: {loaded.line()}", flush=True)


def _tidy(folder: Path, report: CheckpointReport | EpochReport) -> None:
    if report.checkpoint:
        tidy(folder, newest=report.checkpoint)


def _epoch_done(folder: Path, report: EpochReport) -> None:
    _tidy(folder, report)
    if report.metrics:
        shown = " ".join(f"{k} {v:.4f}" for k, v in report.metrics.items() if k in ("val/AP", "val/AP50", "val/AP75"))
        print(f"epoch {report.epoch + 1} done: {shown} in {report.metrics['perf/epoch_seconds']:.1f} s", flush=True)
        if report.ends_early:
            print(report.ends_early, flush=True)


if __name__ == "__main__":
    sys.exit(main())
