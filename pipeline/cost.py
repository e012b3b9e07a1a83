"""What a sweep will do and take, said before it starts."""

from pipeline import population, published
from pipeline.config import experiment_of
from pipeline.data.source import is_remote
from pipeline.sweep import Plan, describe
from tood.data.coco import read_split
from tood.errors import DataError


def cost_of(plan: Plan) -> str:
    """The trials with their hashes, and the work in images and steps where the data can be read."""
    experiment = experiment_of(plan.values)
    config, lines = experiment.sweep, []
    if plan.trials is None:
        trials = [experiment] * config.samples
        lines.append(f"{len(trials)} trials, each chosen by Optuna from the results of those before")
    else:
        trials = [experiment_of(plan.values, trial) for trial in plan.trials]
        width = max(len(describe(config.space, trial)) for trial in plan.trials)
        for trial, of_trial in zip(plan.trials, trials, strict=True):
            theirs = _in_words(published.figures_at(config, trial))
            lines.append(f"{describe(config.space, trial):<{width}}  {of_trial.hash}{'  published ' + theirs if theirs else ''}")
    for row in published.not_run(config):
        theirs = _in_words(row.published)
        lines.append(f"not run: {row.settings['row']}{f' ({theirs})' if theirs else ''}: {row.note}")
    each = f"{experiment.ray.workers} workers of {experiment.ray.cpus_per_worker} CPUs"
    lines.append(f"{len(trials)} trials x {_span([t.train.epochs for t in trials])} epochs, {each}")
    try:
        if is_remote(experiment.data.root):
            raise DataError(f"{experiment.data.root} is fetched when the sweep starts")
        data = read_split(experiment.data, "train")
    except DataError as error:
        lines.append(f"the amount of work is not known here: {str(error).splitlines()[0]}")
        return "\n".join(lines)
    images = sum(bool((~r.crowd).any()) for r in data.images) if not experiment.data.keep_empty else len(data.images)
    steps = [-(-images // t.train.batch_size) * t.train.epochs for t in trials]
    total = sum(images * t.train.epochs for t in trials)
    lines.append(f"{images} training images: {_span(steps)} steps a trial, {total} images in all")
    if config.time_budget_minutes:
        lines.append(f"ends after {config.time_budget_minutes:g} minutes at the latest")
    if config.scheduler == "pbt":
        ends = ", ".join(map(str, population.bounds(experiment.train.epochs, config.exploit_every)[:-1]))
        lines.append(f"pbt: children of the best take the place of the weakest after epochs {ends}; the work stays the same")
    elif config.scheduler != "none":
        lines.append(f"{config.scheduler} may stop trials after {config.grace_epochs} epochs: the work is an upper bound")
    return "\n".join(lines)


def _in_words(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {figure:g}" for name, figure in figures.items())


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
