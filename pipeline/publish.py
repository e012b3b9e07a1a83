"""From finished training to something others use: the best checkpoint registered, a sweep summed up for a person."""

import json
from collections.abc import Callable
from typing import Any

from pipeline import plots
from pipeline.checkpoint_store import read_manifest
from pipeline.config import Experiment, experiment_of, to_yaml
from pipeline.mlflow_links import chart_url, compare_url, save_sweep_view
from pipeline.registry import Version, publish
from pipeline.run_facts import environment_tags
from pipeline.site import Site, absolute
from pipeline.sweep import Plan, Trial, describe
from pipeline.tracking import SWEEP, Run, history

CURVES = 12  # most trials in a picture of learning curves


def register_best(
    site: Site, experiment: Experiment, *, prefix: str, value: float, metric: str, run_id: str, params: dict[str, Any]
) -> Version:
    """Register a stored checkpoint as a version of the experiment's model, with what was sampled for it as tags `hp.*`."""
    info = read_manifest(site.store, f"{prefix}/model").values["info"]
    return publish(
        tracking_uri=site.tracking,
        name=experiment.tracking.model or experiment.name,
        store=site.store,
        prefix=prefix,
        run_id=run_id,
        info={
            "config_hash": info["config_hash"],
            "dataset": info["dataset"],
            "metric": metric,
            "value": value,
            "names": info["names"],
            "epoch": info["epoch"],
            "step": info["step"],
        },
        tags={f"hp.{name}": word for name, word in params.items()},
    )


def conclude(plan: Plan, site: Site, trials: list[Trial], say: Callable[[str], None] = print) -> Version | None:
    """Register the best trial's best checkpoint; write the ranking, its pictures and the sweep's own MLflow run."""
    experiment = absolute(experiment_of(plan.values))
    metric, folder = experiment.sweep.metric, site.output / plan.sweep
    own = [name for name in (trials[0].params if trials else {}) if len({t.params.get(name) for t in trials}) > 1]
    version = None
    best = next((t for t in trials if t.best is not None), None)
    if best is not None:
        version = register_best(
            site, experiment, prefix=best.prefix, value=best.best, metric=metric, run_id=best.run_id, params=best.params
        )
    rows = [
        {
            "params": {name: t.params[name] for name in own if name in t.params} or {"trial": t.id},
            "value": t.best,
            "published": _published(experiment, t, metric),
        }
        for t in trials
    ]
    table = ranking(trials, rows, metric)
    ranked = plots.sweep_ranking(rows, metric)
    curves = plots.learning_curves(
        {f"{i + 1}. {describe(t.values)}": history(site.tracking, t.run_id, metric) for i, t in enumerate(trials[:CURVES])},
        metric,
    )
    ranked.savefig(folder / "ranking.png")
    curves.savefig(folder / "curves.png")
    (folder / "ranking.md").write_text(table)
    (folder / "results.json").write_text(json.dumps([t.__dict__ for t in trials], indent=1))

    summary = Run.open(
        site.tracking,
        site.experiment_id,
        identity=plan.sweep,
        name=f"sweep {plan.sweep}",
        tags={SWEEP: plan.sweep, "tood.kind": "sweep", "config_hash": experiment.hash} | environment_tags(),
    )
    summary.description(f"{experiment.description}\n\n{table}")
    summary.text(to_yaml(experiment), "experiment.yaml")
    summary.text(table, "ranking.md")
    summary.figure(ranked, "ranking.png")
    summary.figure(curves, "curves.png")
    failed = sum(t.status == "FAILED" for t in trials)
    summary.tags({"tood.trials": len(trials), "tood.failed": failed})
    if best is not None:
        summary.metrics({f"best_{metric.replace('val/', '')}": best.best}, step=0)
        summary.tags({"tood.best_run": best.run_id, "tood.best_trial": best.id})
    summary.finish("FAILED" if failed else "FINISHED")

    say(f"\n{table}")
    for trial in trials:
        if trial.error:
            say(f"failed: {describe(trial.values)}: {trial.error}")
    if version is not None:
        say(f"registered: models:/{version.name}/{version.version} ({version.decision.reason})")
    everywhere = [name for name in own if all(name in t.params for t in trials)]  # the view leaves out runs that lack one
    keys = [name for name in ("alpha", "beta", "m", "head") if name in everywhere] or everywhere
    view = save_sweep_view(site.tracking, site.experiment_id, keys, [metric, "val/AP50", "train/loss"])
    start = "" if site.ui == site.tracking else f"   (served by `tood ui output={experiment.output}`)"
    say(f"pictures:  {folder}/ranking.png, curves.png")
    say(f"curves:    {chart_url(site.ui, site.experiment_id, view)}{start}")
    say(f"compare:   {compare_url(site.ui, site.experiment_id, [t.run_id for t in trials])}")
    return version


def ranking(trials: list[Trial], rows: list[dict[str, Any]], metric: str) -> str:
    """A Markdown table, best first; a paper's figure stands beside the cell that it belongs to."""
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    with_paper = any(row["published"] is not None for row in rows)
    head = ["", *names, metric, "epoch", "minutes", "status", *(["published"] if with_paper else [])]
    cells = [head]
    for place, (trial, row) in enumerate(zip(trials, rows, strict=True), start=1):
        value = "-" if trial.best is None else f"{trial.best:.4f}"
        paper = "-" if row["published"] is None else f"{row['published']:.3f}"
        settings = [str(row["params"].get(name, "")) for name in names]
        spent = f"{trial.seconds / 60:.1f}"
        end = [paper] if with_paper else []
        cells.append([str(place), *settings, value, str(trial.best_epoch), spent, trial.status.lower(), *end])
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]) + "\n"


def _published(experiment: Experiment, trial: Trial, metric: str) -> float | None:
    """The paper's figure for a trial's cell, on COCO's scale of 0 to 1."""
    figure = metric.removeprefix("val/")
    for cell in experiment.sweep.published:
        if figure in cell and all(trial.values.get(key) == value for key, value in cell["at"].items()):
            return cell[figure] / 100
    return None
