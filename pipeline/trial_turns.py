"""How many trials of a sweep are under way at once: by this driver's count, also in a sweep that an earlier one began.

Ray Tune counts only what it asks its search algorithm for, up to a limit that is saved with the sweep. On resuming it would
keep the earlier driver's limit, and would start all unfinished and failed trials together, whatever the limit: on too small
a cluster their workers wait for each other for ever. A scheduler may hold trials back, so these do.
"""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from pipeline.config import SweepConfig

LONGEST = 1_000_000  # epochs; train.epochs allows a hundredth of it. ASHA's rungs are as they are whatever the longest trial


class InTurn(FIFOScheduler):
    """Trials in their order, at most `at_once` of them under way."""

    def __init__(self, at_once: int, **options: Any):
        super().__init__(**options)
        self.at_once = at_once

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        search = tune_controller.search_alg  # which has taken up its saved limit by now
        getattr(search, "searcher", search).max_concurrent = self.at_once
        if trial.status == Trial.PENDING:
            trial.set_status(Trial.PAUSED)  # Tune starts a pending trial by itself, a paused one when it is chosen

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        trials = tune_controller.get_trials()
        if sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in trials) >= self.at_once:
            return None
        return next((trial for trial in trials if trial.status == Trial.PAUSED), None)


class AshaInTurn(InTurn, ASHAScheduler):
    """The same, with trials stopped that fall behind."""


def scheduler(config: SweepConfig, at_once: int) -> InTurn:
    if config.scheduler != "asha":
        return InTurn(at_once)
    # Never at its longest, a trial ends by itself, and Tune need not kill its workers.
    rungs = {"grace_period": config.grace_epochs, "reduction_factor": config.reduction}
    return AshaInTurn(at_once, time_attr="epoch", max_t=LONGEST, **rungs)
