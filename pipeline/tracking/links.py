"""Addresses of MLflow's pages for a person, and the chart page's saved view of a sweep.

MLflow 3.17 opens a fresh browser in its GenAI mode and preselects three parameters on its compare page; the addresses
and the view here lead straight to the curves, and to the sweep's parameters against its metric.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from pipeline.tracking.access import explained, mlflow_client


def chart_url(ui: str, experiment_id: str, view: str = "") -> str:
    """The page with the curves of an experiment's runs, arranged by a saved view where one is named.

    ui: the address that a browser reaches MLflow at. view: what `save_sweep_view` returned.
    """
    url = f"{ui.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return f"{url}&viewStateShareKey={view}" if view else url


def compare_url(ui: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that sets runs side by side: parallel coordinates, scatter, box and contour plots, and tables.

    It opens on the first three parameters that differ, alphabetically, and some metric; others are added by hand.
    """
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), [experiment_id]))
    return f"{ui.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}"


def save_sweep_view(uri: str, experiment_id: str, params: Sequence[str], metrics: Sequence[str]) -> str:
    """Save a view of the chart page in the experiment. Returns its key for `chart_url`.

    Runs ranked by the first metric; parallel coordinates of `params` against it, and curves of all `metrics`, above the
    curves of everything else. A run without one of the `params` has no line among the parallel coordinates. The view is
    a tag in the form that MLflow's own "share view" writes; an MLflow that cannot read it shows its plain page instead.
    """
    state = _sweep_view(params, metrics)
    text = json.dumps(state, separators=(",", ":"))
    key = f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with explained(f"view of experiment {experiment_id}"):
        mlflow_client(uri).set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", text)
    return key


def point_to_sweep(uri: str, experiment_id: str, sweep: str, view: str, run_ids: Sequence[str]) -> None:
    """Say on the experiment's page, which MLflow opens as a list, where the newest sweep's charts and comparison are."""
    # from the page's own address on, wherever MLflow is served
    charts, compare = (url.lstrip("/") for url in (chart_url("", experiment_id, view), compare_url("", experiment_id, run_ids)))
    note = (
        f"Sweep `{sweep}`: [charts]({charts}), [all trials side by side]({compare}).\n\n"
        f"Its trials alone: search for `tags.tood.sweep = '{sweep}'` under Model training."
    )
    with explained(f"note of experiment {experiment_id}"):
        mlflow_client(uri).set_experiment_tag(experiment_id, "mlflow.note.content", note)


def _sweep_view(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    section = {"uuid": "sweep", "name": "Sweep", "display": True, "isReordered": True, "isGenerated": False}
    card = {"metricSectionId": "sweep", "deleted": False, "isGenerated": False}
    axes = {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": [metrics[0]], "showAllRuns": True}
    line = {"type": "LINE", "lineSmoothness": 0}
    curves = [{**line, "metricKey": metric, "selectedMetricKeys": [metric]} for metric in metrics]
    return {
        "compareRunCharts": [{**card, "uuid": f"sweep-{i}", **chart} for i, chart in enumerate([axes, *curves])],
        "compareRunSections": [section],
        "isAccordionReordered": True,  # else MLflow puts sections into alphabetical order
        "runsHiddenMode": "FIRST_20_RUNS",
        "orderByKey": f"metrics.`{metrics[0]}`",
        "orderByAsc": False,
    }
