"""What a sweep will do and take, said before it starts."""

from pipeline.config import experiment_of
from pipeline.sweep import Plan, describe
from tood.data.coco import read_split
from tood.errors import DataError


def cost_of(plan: Plan) -> str:
    """The trials with their hashes, and the work in images and steps where the data can be read."""
    experiment = experiment_of(plan.values)
    config, lines = experiment.sweep, []
    if plan.trials is None:
        count = config.samples
        lines.append(f"{count} trials, each chosen by Optuna from the results of those before")
    else:
        count = len(plan.trials)
        width = max(len(describe(t)) for t in plan.trials)
        lines += [f"{describe(t):<{width}}  {experiment_of(plan.values, t).hash}" for t in plan.trials]
    each = f"{experiment.train.epochs} epochs, {experiment.ray.workers} workers of {experiment.ray.cpus_per_worker} CPUs"
    lines.append(f"{count} trials x {each}")
    try:
        data = read_split(experiment.data, "train")
    except DataError as error:
        lines.append(f"the amount of work is not known here: {str(error).splitlines()[0]}")
        return "\n".join(lines)
    images = sum(bool((~r.crowd).any()) for r in data.images) if not experiment.data.keep_empty else len(data.images)
    steps = -(-images // experiment.train.batch_size) * experiment.train.epochs
    lines.append(f"{images} training images: {steps} steps a trial, {count * images * experiment.train.epochs} images in all")
    if config.time_budget_minutes:
        lines.append(f"ends after {config.time_budget_minutes:g} minutes at the latest")
    if config.scheduler != "none":
        lines.append(f"{config.scheduler} may stop trials after {config.grace_epochs} epochs: the work is an upper bound")
    return "\n".join(lines)
