"""The live table of a sweep's trials."""

import time
from collections.abc import Callable
from typing import Any

from ray import tune

PRINT_SECONDS = 15  # shortest time between two tables


class TrialTable(tune.Callback):
    """Prints what every trial has reached, best first, whenever something changed and the last table is old enough."""

    def __init__(self, epochs: int, metric: str, describe: Callable[[dict], str], say: Callable[[str], None]):
        self.epochs, self.metric, self.describe, self.say = epochs, metric, describe, say
        self.rows: dict[str, dict[str, Any]] = {}
        self.printed = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info) -> None:
        self._update(trial, "running")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info) -> None:
        self._update(trial, "running", result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info) -> None:
        self._update(trial, "done", trial.last_result, at_once=True)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info) -> None:
        self._update(trial, "failed", trial.last_result, at_once=True)

    def on_experiment_end(self, trials: list, **info) -> None:
        self.say(self.render())

    def _update(self, trial: Any, status: str, result: dict | None = None, at_once: bool = False) -> None:
        row = self.rows.setdefault(trial.trial_id, {"what": self.describe(trial.config["trial"]), "best": None, "epoch": 0})
        row["status"] = status
        if result:
            row["epoch"] = result.get("epoch", row["epoch"])
            row["now"] = result.get(self.metric, row.get("now"))
            row["best"] = result.get("best", row["best"])
        if at_once or time.monotonic() - self.printed > PRINT_SECONDS:
            self.say(self.render())
            self.printed = time.monotonic()

    def render(self) -> str:
        rows = sorted(self.rows.values(), key=lambda r: -1 if r["best"] is None else r["best"], reverse=True)
        width = max([len(r["what"]) for r in rows], default=5)
        lines = [f"  {'trial':<{width}}  status   epoch  {self.metric:>8}     best"]
        for r in rows:
            now, best = (f"{v:.4f}" if isinstance(v, float) else "-" for v in (r.get("now"), r["best"]))
            lines.append(f"  {r['what']:<{width}}  {r['status']:<7}  {r['epoch']:>2}/{self.epochs:<2}  {now:>8}  {best:>7}")
        return "\n".join(lines)
