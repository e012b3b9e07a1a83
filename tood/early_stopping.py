"""When a run whose figure no longer rises has had its time; plain numbers, equal on every rank and after a resume."""

from typing import NamedTuple

from tood.config import EarlyStoppingConfig


class Standing(NamedTuple):
    """What a run remembers of its figures; a checkpoint keeps it."""

    best: float | None = None
    best_epoch: int = 0
    ended: bool = False


def after_epoch(standing: Standing, epoch: int, figure: float | None, config: EarlyStoppingConfig) -> Standing:
    """The standing after the evaluation of `epoch` (from 1). None: a figure that the data leaves undefined, which says nothing.

    A figure counts as better by more than min_delta over the best that counted, so that small steps add up.
    """
    if figure is None:
        return standing
    if standing.best is None or figure > standing.best + config.min_delta:
        return Standing(figure, epoch)
    return standing._replace(ended=epoch - standing.best_epoch >= config.patience)


def reason(standing: Standing, metric: str, config: EarlyStoppingConfig) -> str:
    """Why a run ended, on a line."""
    more = f" by more than {config.min_delta:g}" if config.min_delta else ""
    best = f"{metric} {standing.best:.4f} of epoch {standing.best_epoch}"
    return f"early stop: {best} was not exceeded{more} in {config.patience} epochs"
