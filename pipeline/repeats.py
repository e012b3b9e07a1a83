"""The same configuration with several seeds: one difference between two trials may be luck, the mean of several is less of it.

`repeats: N` under `sweep:` runs each trial with the seeds train.seed .. train.seed + N - 1. Each is a trial of its own, with its
own identity and run, so a sweep goes on after a kill as it always does. Configurations are ranked by the mean over their seeds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pipeline.markdown import markdown_table
from pipeline.space import swept_keys
from pipeline.statistics import mean_error
from tood.config import hash_of
from tood.errors import ConfigError

SEED = "train.seed"
MAX_SEED = 2**31 - 1
Values = dict[str, Any]


class Outcome(Protocol):
    """What is asked of a trial."""

    values: Values
    best: float | None
    seconds: float
    status: str


class Group(NamedTuple):
    """A configuration's trials."""

    values: Values  # of its trials, but for the seed
    trials: tuple[Outcome, ...]  # best first
    mean: float | None  # of those that have a figure
    spread: float  # standard deviation between seeds; NaN with fewer than two
    error: float  # standard error of the mean; NaN likewise
    count: int  # seeds that have a figure

    @property
    def lead(self) -> Outcome:
        """The best seed's trial."""
        return self.trials[0]


def repeated(trials: Sequence[Values], repeats: int, first_seed: int, space: Values, search: str, scheduler: str) -> list[Values]:
    """Every trial with each seed; all of them once before any of them twice. Raises ConfigError where seeds make no sense."""
    if repeats == 1:
        return list(trials)
    if SEED in swept_keys(space):
        raise ConfigError("sweep.repeats: train.seed is an axis of sweep.space already; leave seeds to one of the two")
    if search == "optuna":
        raise ConfigError("sweep.repeats: Optuna chooses each trial anew; use search=grid or random, or repeat its best afterwards")
    if scheduler != "none":
        raise ConfigError(
            f"sweep.repeats: {scheduler} would stop unlucky seeds, and means of lucky ones say nothing; use scheduler=none"
        )
    if first_seed + repeats - 1 > MAX_SEED:
        raise ConfigError(f"sweep.repeats: train.seed={first_seed} leaves no room for {repeats} seeds")
    return [trial | {SEED: first_seed + i} for i in range(repeats) for trial in trials]


def groups(trials: Sequence[Outcome], repeats: int) -> list[Group]:
    """Configurations by falling mean. Those that lack a seed's figure come after those that have all of them."""
    if repeats == 1:
        found = [Group(t.values, (t,), t.best, math.nan, math.nan, int(t.best is not None)) for t in trials]
    else:
        by_values: dict[str, dict[int, Outcome]] = {}
        for trial in trials:  # random search may draw a configuration twice; a seed counts once
            by_values.setdefault(json.dumps(_without_seed(trial.values), sort_keys=True), {})[trial.values[SEED]] = trial
        found = [_group(list(by_seed.values())) for by_seed in by_values.values()]
    return sorted(found, key=lambda g: (g.mean is None, g.count < repeats, -(g.mean or 0)))


def table(found: Sequence[Group], told: Sequence[Mapping[str, Any]], published: Sequence[float | None], metric: str) -> str:
    """A Markdown table: mean +- standard deviation (seeds), and the standard error that the ranking has."""
    names = list(dict.fromkeys(name for row in told for name in row))
    with_paper = any(figure is not None for figure in published)
    head = ["", *names, f"{metric}, mean ± sd (n)", "standard error", "best", "minutes", "status"]
    head += ["published", "difference"] if with_paper else []
    rows = []
    for place, (group, words, paper) in enumerate(zip(found, told, published, strict=True), start=1):
        best = "-" if group.lead.best is None else f"{group.lead.best:.4f} (seed {group.lead.values[SEED]})"
        failed = len([t for t in group.trials if t.best is None])
        row = [str(place), *(str(words.get(name, "")) for name in names), in_words(group)]
        row += ["-" if math.isnan(group.error) else f"{group.error:.4f}", best]
        row += [f"{sum(t.seconds for t in group.trials) / 60:.1f}", f"{failed} without figure" if failed else _statuses(group)]
        if with_paper:
            row += ["-" if paper is None else f"{paper:.3f}"]
            row += ["-" if None in (paper, group.mean) else f"{group.mean - paper:+.4f}"]
        rows.append(row)
    return markdown_table(head, rows)


def in_words(group: Group) -> str:
    if group.mean is None:
        return "-"
    return f"{group.mean:.4f}" + (f" ± {group.spread:.4f}" if group.count > 1 else "") + f" ({group.count})"


def configuration_of(identity: Mapping[str, Any]) -> str:
    """The hash of a configuration apart from its seed. identity: what `tood.config.identity` gives, or a manifest keeps."""
    train = {key: value for key, value in (identity.get("train") or {}).items() if key != "seed"}
    return hash_of({**identity, "train": train})


def _group(trials: list[Outcome]) -> Group:
    ranked = tuple(sorted(trials, key=lambda t: (t.best is None, -(t.best or 0), t.values[SEED])))
    figures = [t.best for t in ranked if t.best is not None]
    mean, spread, error = mean_error(figures) if figures else (None, math.nan, math.nan)
    return Group(_without_seed(ranked[0].values), ranked, mean, spread, error, len(figures))


def _statuses(group: Group) -> str:
    return ", ".join(sorted({t.status.lower() for t in group.trials}))


def _without_seed(values: Values) -> Values:
    return {key: value for key, value in values.items() if key != SEED}
