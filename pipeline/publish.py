"""From finished training to something others use: the best checkpoint registered, a sweep summed up for a person."""

import json
import shlex
from collections.abc import Callable
from typing import Any

from pipeline import published, repeats
from pipeline.config import METRICS, Experiment, experiment_of, to_yaml
from pipeline.markdown import markdown_table
from pipeline.plots import runs as plots
from pipeline.registry.models import Version, publish
from pipeline.reports.report import report_sweep
from pipeline.site import Site, absolute
from pipeline.space import cell_of, short_names
from pipeline.storage.checkpoints import read_manifest
from pipeline.sweep import Plan, Trial, describe
from pipeline.tracking.facts import environment_tags
from pipeline.tracking.links import chart_url, compare_url, point_to_sweep, save_sweep_view
from pipeline.tracking.past_runs import history, set_ranks
from pipeline.tracking.runs import SWEEP, Run
from tood.errors import ToodError

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
        licence=experiment.tracking.licence,
    )


def conclude(plan: Plan, site: Site, trials: list[Trial], say: Callable[[str], None] = print) -> Version | None:
    """Register the best trial's best checkpoint; write the ranking, its pictures, the report and the sweep's own MLflow run.

    With repeats the best configuration is the one with the best mean over its seeds, and its best seed is registered.
    """
    experiment = absolute(experiment_of(plan.values))
    metric, axes, folder = experiment.sweep.metric, experiment.sweep.space, site.output / plan.sweep
    count = experiment.sweep.repeats
    own = differing(trials)
    told = [name for name in own if count == 1 or name != "seed"]
    groups = repeats.groups(trials, count)
    version = None
    best = next((g.lead for g in groups if g.mean is not None), None)
    if best is not None:
        version = register_best(
            site, experiment, prefix=best.prefix, value=best.best, metric=metric, run_id=best.run_id, params=best.params
        )
    rows = [
        {
            "params": _told(axes, g.values, g.lead, told),
            "value": g.mean,
            "error": g.error,
            "published": published.target(experiment.sweep, g.values),
        }
        for g in groups
    ]
    if count == 1:
        table = ranking([g.lead for g in groups], rows, metric)
    else:
        table = repeats.table(groups, [row["params"] for row in rows], [row["published"] for row in rows], metric)
    ranked = plots.sweep_ranking(rows, metric)
    curves = plots.learning_curves(
        {
            f"{i + 1}. {describe(axes, g.lead.values)}": history(site.tracking, g.lead.run_id, metric)
            for i, g in enumerate(groups[:CURVES])
        },
        metric,
    )
    ranked.savefig(folder / "ranking.png")
    curves.savefig(folder / "curves.png")
    (folder / "ranking.md").write_text(table)
    beside = beside_the_paper(plan, site, experiment, groups)
    for name, text in beside.items():
        (folder / name).write_text(text)
    (folder / "results.json").write_text(json.dumps([t.__dict__ for t in trials], indent=1))

    set_ranks(site.tracking, {t.run_id: rank for rank, g in enumerate(groups, start=1) for t in g.trials if t.run_id})
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
        summary.best(metric, best.best)
        summary.tags({"tood.best_run": best.run_id, "tood.best_trial": best.id})
    summary.finish("FAILED" if failed else "FINISHED")

    page = folder / "report.html"
    try:
        report_sweep(plan.sweep, site.tracking, page, quick=True)
    except ToodError as error:  # the sweep is done whether or not its page is
        say(f"no report: {error}")

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
    point_to_sweep(site.tracking, site.experiment_id, plan.sweep, view, [t.run_id for t in trials])
    start = "" if site.ui == site.tracking else f"   (served by `tood ui output={experiment.output}`)"
    if sum(g.mean is not None for g in groups) > 1:
        say(f"is 1 better than 2?  tood compare {plan.sweep}/1 {plan.sweep}/2 --set {_where(experiment)}")
    say(f"pictures:  {folder}/ranking.png, curves.png" + (", report.html" if page.exists() else ""))
    say(f"curves:    {chart_url(site.ui, site.experiment_id, view)}{start}")
    say(f"compare:   {compare_url(site.ui, site.experiment_id, [t.run_id for t in trials])}")
    return version


def _where(experiment: Experiment) -> str:
    """The setting by which other verbs find this experiment's runs."""
    return f"tracking.uri={experiment.tracking.uri}" if experiment.tracking.uri else f"output={shlex.quote(experiment.output)}"


def differing(trials: list[Trial]) -> list[str]:
    """The parameters in which trials differ: the best trial's, then those in which others differ that it does not have.

    Objectives have options of their own. What only some trials have, and alike, is no choice among them.
    """
    of_best = trials[0].params if trials else {}
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    values = {name: {trial.params.get(name) for trial in trials if name in of_best or name in trial.params} for name in names}
    return [name for name in names if len(values[name]) > 1]


def _told(axes: dict[str, Any], values: dict[str, Any], trial: Trial, own: list[str]) -> dict[str, Any]:
    """What a table says of a trial with these values: its cell, or else the parameters in which the trials differ."""
    if cell_of(axes, values) is not None:
        return short_names(axes, values)
    return {name: trial.params[name] for name in own if name in trial.params} or {"trial": trial.id}


def ranking(trials: list[Trial], rows: list[dict[str, Any]], metric: str) -> str:
    """A Markdown table, best first; a paper's figure and the difference from it stand beside the cell that it belongs to."""
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    with_paper = any(row["published"] is not None for row in rows)
    head = ["", *names, metric, "epoch", "minutes", "status", *(["published", "difference"] if with_paper else [])]
    cells = []
    for place, (trial, row) in enumerate(zip(trials, rows, strict=True), start=1):
        value = "-" if trial.best is None else f"{trial.best:.4f}"
        paper = "-" if row["published"] is None else f"{row['published']:.3f}"
        apart = "-" if None in (row["published"], trial.best) else f"{trial.best - row['published']:+.4f}"
        settings = [str(row["params"].get(name, "")) for name in names]
        spent = f"{trial.seconds / 60:.1f}"
        end = [paper, apart] if with_paper else []
        cells.append([str(place), *settings, value, str(trial.best_epoch), spent, trial.status.lower(), *end])
    return markdown_table(head, cells)


def beside_the_paper(plan: Plan, site: Site, experiment: Experiment, groups: list[repeats.Group]) -> dict[str, str]:
    """{"published.md", "published.csv"}: every figure of the paper's table beside what was measured, in the table's order.

    Empty for a sweep of no paper. Measured at each trial's best epoch; with repeats, the mean over the seeds that have one.
    """
    sweep = experiment.sweep
    if not sweep.published and not sweep.out_of_scope:
        return {}
    order = {describe(sweep.space, values): place for place, values in enumerate(plan.trials or [])}
    rows = []
    for group in sorted(groups, key=lambda g: min(order.get(describe(sweep.space, t.values), len(order)) for t in g.trials)):
        theirs = published.figures_at(sweep, group.values)
        names = [name for name in METRICS if name.removeprefix("val/") in theirs]
        of_seeds: dict[str, list[float]] = {}
        for trial in group.trials:
            for name in names if trial.best is not None else []:
                points = dict(history(site.tracking, trial.run_id, name))
                if trial.best_epoch in points:
                    of_seeds.setdefault(name, []).append(points[trial.best_epoch])
        metrics = {name: sum(values) / len(values) for name, values in of_seeds.items()}
        ours = published.measured(experiment_of(plan.values, group.values), metrics, list(theirs))
        unfinished = sorted({t.status.lower() for t in group.trials} - {"finished"})
        rows.append(published.Row(short_names(sweep.space, group.values), ours, theirs, ", ".join(unfinished)))
    rows += published.not_run(sweep)
    return {"published.md": published.markdown(rows), "published.csv": published.as_csv(rows)}
