"""The live table of a sweep's trials."""

import time
from collections.abc import Callable
from typing import Any

from ray import tune

PRINT_SECONDS = 15  # shortest time between two tables


class TrialTable(tune.Callback):
    """Prints what every trial has reached, best first, whenever something changed and the last table is old enough.

    Of a trial's settings `describe` says a few words, `epochs` how many it has, `target` a paper's figure if there is one.
    """

    def __init__(
        self,
        metric: str,
        say: Callable[[str], None],
        *,
        describe: Callable[[dict], str],
        epochs: Callable[[dict], int],
        target: Callable[[dict], float | None] = lambda values: None,
    ):
        self.metric, self.say = metric, say
        self.describe, self.epochs, self.target = describe, epochs, target
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
        chosen = trial.config.get("life", trial.config)  # of a population: trained a generation at a time, each time anew for Tune
        values, name = chosen["trial"], chosen.get("id", trial.trial_id)
        fresh = {"what": self.describe(values), "best": None, "epoch": 0, "of": self.epochs(values), "target": self.target(values)}
        row = self.rows.setdefault(name, fresh)
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
        with_paper = any(r["target"] is not None for r in rows)
        paper_head = "  published  difference" if with_paper else ""
        lines = [f"  {'trial':<{width}}  status   epoch  {self.metric:>8}     best{paper_head}"]
        for r in rows:
            now, best = (f"{v:.4f}" if isinstance(v, float) else "-" for v in (r.get("now"), r["best"]))
            line = f"  {r['what']:<{width}}  {r['status']:<7}  {r['epoch']:>2}/{r['of']:<2}  {now:>8}  {best:>7}"
            if with_paper:
                paper = "-" if r["target"] is None else f"{r['target']:.3f}"
                apart = "-" if None in (r["target"], r["best"]) else f"{r['best'] - r['target']:+.4f}"
                line += f"  {paper:>9}  {apart:>10}"
            lines.append(line)
        return "\n".join(lines)
