"""The two links that a sweep prints, opened in a browser on a real MLflow server."""

import itertools

import pytest

from pipeline.tracking.access import connect
from pipeline.tracking.facts import flat_params
from pipeline.tracking.links import chart_url, compare_url, save_sweep_view
from pipeline.tracking.runs import SWEEP, Run, experiment_id
from tests.servers import mlflow_server
from tests.system.browser import browser_page, chromium, compare, curves, view_axes

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not chromium(), reason="there is no Chromium on this machine (Debian: apt-get install chromium)"),
]

PARAMS = ["alpha", "beta", "m", "head"]
EPOCHS = 5


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished sweep of eight trials and a summary run on a server; how to find it, and what was logged."""
    folder = tmp_path_factory.mktemp("ui")
    server = mlflow_server(f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts"), folder=folder / "server")
    with server as uri:
        connect(uri)
        experiment = experiment_id(uri, "demo")
        logged = {}
        for place, (head, alpha, m) in enumerate(itertools.product(("t_head", "parallel"), (0.5, 1.0), (4, 9))):
            run, swept, values = log_trial(uri, experiment, place, head, alpha, m)
            logged[run.run_id] = swept, values
        summary = Run.open(uri, experiment, "sweep-1", "sweep 1", {SWEEP: "1"})
        summary.text("report", "report.md")
        summary.finish()
        yield uri, experiment, logged


def log_trial(uri, experiment, place, head, alpha, m):
    beta = 6.0 if place % 3 else 4.0
    objective = {"name": "task_aligned", "alpha": alpha, "beta": beta, "m": m, "warmup_epochs": 4}
    model = {"tower": head, "aligner": "both" if head == "t_head" else "none", "layers": 6, "objective": objective}
    config = {"model": model, "train": {"lr": 0.01, "epochs": EPOCHS, "batch_size": 8, "seed": 0}}
    run = Run.open(uri, experiment, f"trial-{place}", f"{head} {alpha} {beta} {m}", {SWEEP: "1"})
    run.params(flat_params(config))
    values = [0.4 * (1 - 0.6**epoch) + 0.02 * place for epoch in range(1, EPOCHS + 1)]
    for epoch, value in enumerate(values, start=1):
        for step in range(20 * epoch - 20, 20 * epoch, 5):
            run.metrics({"train/loss_cls": 2 / (1 + step), "train/loss_box": 3 / (2 + step), "train/lr": 0.01}, step)
        # a data set without small objects has no figure for them
        scores = {"val/AP": value, "val/AP50": 1.5 * value, "val/AP_small": float("nan"), "perf/images_per_second": 20 + place}
        run.metrics(scores, 20 * epoch, epoch)
    run.finish()
    return run, {"alpha": alpha, "beta": beta, "m": m, "head": head}, values


@pytest.fixture(scope="module")
def page():
    with browser_page() as page:
        yield page


def test_chart_page_shows_every_trials_curve(sweep, page, tmp_path):
    uri, experiment, logged = sweep
    picture = tmp_path / "charts.png"
    shown = curves(page, chart_url(uri, experiment), ["val/AP", "train/loss_cls"], picture)
    assert picture.stat().st_size > 20_000
    assert shown["val/AP"] == {run_id: pytest.approx(values) for run_id, (_, values) in logged.items()}
    assert set(shown["train/loss_cls"]) == set(logged)


def test_saved_view_shows_swept_parameters_against_the_metric(sweep, page, tmp_path):
    uri, experiment, logged = sweep
    view = save_sweep_view(uri, experiment, PARAMS, ["val/AP", "val/AP50"])
    shown = curves(page, chart_url(uri, experiment, view), ["val/AP", "val/AP50"], tmp_path / "view.png")
    assert set(shown["val/AP"]) == set(shown["val/AP50"]) == set(logged)
    assert view_axes(page) == [*PARAMS, "val/AP"]


def test_compare_page_shows_swept_parameters_against_the_metric(sweep, page, tmp_path):
    uri, experiment, logged = sweep
    url = compare_url(uri, experiment, list(logged))
    preselected, axes = compare(page, url, PARAMS, "val/AP", tmp_path / "compare.png")
    assert preselected[:3] == ["alpha", "beta", "head"]  # the page takes three, alphabetically, and some metric
    assert list(axes) == [*PARAMS, "val/AP"]
    drawn = sorted(zip(*axes.values(), strict=True), key=lambda line: line[-1])
    trials = sorted(((*swept.values(), values[-1]) for swept, values in logged.values()), key=lambda line: line[-1])
    assert [line[:-1] for line in drawn] == [line[:-1] for line in trials]
    assert [line[-1] for line in drawn] == pytest.approx([line[-1] for line in trials])
