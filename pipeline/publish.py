"""From finished training to something others use: the best checkpoint registered, a sweep summed up for a person."""

import json
from collections.abc import Callable
from typing import Any

from pipeline import plots, published
from pipeline.checkpoint_store import read_manifest
from pipeline.config import METRICS, Experiment, experiment_of, to_yaml
from pipeline.mlflow_links import chart_url, compare_url, save_sweep_view
from pipeline.registry import Version, publish
from pipeline.run_facts import environment_tags
from pipeline.site import Site, absolute
from pipeline.space import cell_of, short_names
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
    metric, axes, folder = experiment.sweep.metric, experiment.sweep.space, site.output / plan.sweep
    own = [name for name in (trials[0].params if trials else {}) if len({t.params.get(name) for t in trials}) > 1]
    version = None
    best = next((t for t in trials if t.best is not None), None)
    if best is not None:
        version = register_best(
            site, experiment, prefix=best.prefix, value=best.best, metric=metric, run_id=best.run_id, params=best.params
        )
    rows = [
        {
            "params": _told(axes, t, own),
            "value": t.best,
            "published": published.target(experiment.sweep, t.values),
        }
        for t in trials
    ]
    table = ranking(trials, rows, metric)
    ranked = plots.sweep_ranking(rows, metric)
    curves = plots.learning_curves(
        {f"{i + 1}. {describe(axes, t.values)}": history(site.tracking, t.run_id, metric) for i, t in enumerate(trials[:CURVES])},
        metric,
    )
    ranked.savefig(folder / "ranking.png")
    curves.savefig(folder / "curves.png")
    (folder / "ranking.md").write_text(table)
    beside = beside_the_paper(plan, site, experiment, trials)
    for name, text in beside.items():
        (folder / name).write_text(text)
    (folder / "results.json").write_text(json.dumps([t.__dict__ for t in trials], indent=1))

    summary = Run.open(
        site.tracking,
        site.experiment_id,
        identity=plan.sweep,
        name=f"sweep {plan.sweep}",
        tags={SWEEP: plan.sweep, "tood.kind": "sweep", "config_hash": experiment.hash} | environment_tags(),
    )
    summary.description(
        "\n\n".join([experiment.description, table, *(text for name, text in beside.items() if name.endswith(".md"))])
    )
    summary.text(to_yaml(experiment), "experiment.yaml")
    summary.text(table, "ranking.md")
    for name, text in beside.items():
        summary.text(text, name)
    summary.figure(ranked, "ranking.png")
    summary.figure(curves, "curves.png")
    failed = sum(t.status == "FAILED" for t in trials)
    summary.tags({"tood.trials": len(trials), "tood.failed": failed})
    if best is not None:
        summary.metrics({f"best_{metric.replace('val/', '')}": best.best}, step=0)
        summary.tags({"tood.best_run": best.run_id, "tood.best_trial": best.id})
    summary.finish("FAILED" if failed else "FINISHED")

    say(f"\n{table}")
    for name, text in beside.items():
        if name.endswith(".md"):
            say(text)
    for trial in trials:
        if trial.error:
            say(f"failed: {describe(axes, trial.values)}: {trial.error}")
    if version is not None:
        say(f"registered: models:/{version.name}/{version.version} ({version.decision.reason})")
    everywhere = [name for name in own if all(name in t.params for t in trials)]  # the view leaves out runs that lack one
    keys = [name for name in ("cell", "alpha", "beta", "m", "head") if name in everywhere] or everywhere
    view = save_sweep_view(site.tracking, site.experiment_id, keys, [metric, "val/AP50", "train/loss"])
    start = "" if site.ui == site.tracking else f"   (served by `tood ui output={experiment.output}`)"
    say(f"pictures:  {folder}/ranking.png, curves.png")
    say(f"curves:    {chart_url(site.ui, site.experiment_id, view)}{start}")
    say(f"compare:   {compare_url(site.ui, site.experiment_id, [t.run_id for t in trials])}")
    return version


def _told(axes: dict[str, Any], trial: Trial, own: list[str]) -> dict[str, Any]:
    """What a table says of a trial: its cell, or else the parameters in which the trials differ."""
    if cell_of(axes, trial.values) is not None:
        return short_names(axes, trial.values)
    return {name: trial.params[name] for name in own if name in trial.params} or {"trial": trial.id}


def ranking(trials: list[Trial], rows: list[dict[str, Any]], metric: str) -> str:
    """A Markdown table, best first; a paper's figure and the difference from it stand beside the cell that it belongs to."""
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    with_paper = any(row["published"] is not None for row in rows)
    head = ["", *names, metric, "epoch", "minutes", "status", *(["published", "difference"] if with_paper else [])]
    cells = [head]
    for place, (trial, row) in enumerate(zip(trials, rows, strict=True), start=1):
        value = "-" if trial.best is None else f"{trial.best:.4f}"
        paper = "-" if row["published"] is None else f"{row['published']:.3f}"
        apart = "-" if None in (row["published"], trial.best) else f"{trial.best - row['published']:+.4f}"
        settings = [str(row["params"].get(name, "")) for name in names]
        spent = f"{trial.seconds / 60:.1f}"
        end = [paper, apart] if with_paper else []
        cells.append([str(place), *settings, value, str(trial.best_epoch), spent, trial.status.lower(), *end])
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]) + "\n"


def beside_the_paper(plan: Plan, site: Site, experiment: Experiment, trials: list[Trial]) -> dict[str, str]:
    """{"published.md", "published.csv"}: every figure of the paper's table beside what was measured, in the table's order.

    Empty for a sweep of no paper. Measured at each trial's best epoch.
    """
    sweep = experiment.sweep
    if not sweep.published and not sweep.out_of_scope:
        return {}
    order = {describe(sweep.space, values): place for place, values in enumerate(plan.trials or [])}
    rows = []
    for trial in sorted(trials, key=lambda t: order.get(describe(sweep.space, t.values), len(order))):
        theirs = published.figures_at(sweep, trial.values)
        names = [f"val/{name}" for name in theirs if f"val/{name}" in METRICS] if trial.best is not None else []
        histories = {name: dict(history(site.tracking, trial.run_id, name)) for name in names}
        metrics = {name: points[trial.best_epoch] for name, points in histories.items() if trial.best_epoch in points}
        ours = published.measured(experiment_of(plan.values, trial.values), metrics, list(theirs))
        note = "" if trial.status == "FINISHED" else trial.status.lower()
        rows.append(published.Row(short_names(sweep.space, trial.values), ours, theirs, note))
    rows += published.not_run(sweep)
    return {"published.md": published.markdown(rows), "published.csv": published.as_csv(rows)}
