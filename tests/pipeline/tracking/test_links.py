import json
from urllib.parse import parse_qs, urlsplit

from pipeline.tracking.access import connect, mlflow_client, resolve_uri
from pipeline.tracking.links import chart_url, compare_url, point_to_sweep, save_sweep_view
from pipeline.tracking.runs import experiment_id


def test_chart_page():
    url = "http://host:5000/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert chart_url("http://host:5000/", "7") == url
    assert chart_url("http://host:5000", "7", "sweep-1") == f"{url}&viewStateShareKey=sweep-1"


def test_compare_page_is_one_word_for_terminals():
    url = compare_url("http://host:5000", "7", ["a1", "b2"])
    assert not set(url) & set('[]" ')
    query = parse_qs(urlsplit(url).fragment.partition("?")[2])
    assert json.loads(query["runs"][0]) == ["a1", "b2"]
    assert json.loads(query["experiments"][0]) == ["7"]


def test_view_is_saved_once_for_the_same_content(tmp_path):
    uri = resolve_uri("", tmp_path)
    connect(uri)
    experiment = experiment_id(uri, "demo")
    key = save_sweep_view(uri, experiment, ["alpha", "head"], ["val/AP", "val/AP50"])
    assert save_sweep_view(uri, experiment, ["alpha", "head"], ["val/AP", "val/AP50"]) == key
    assert save_sweep_view(uri, experiment, ["alpha"], ["val/AP"]) != key
    tags = mlflow_client(uri).get_experiment(experiment).tags
    charts = json.loads(tags[f"mlflow.sharedViewState.{key}"])["compareRunCharts"]
    assert charts[0]["selectedParams"] == ["alpha", "head"]
    assert [chart["metricKey"] for chart in charts[1:]] == ["val/AP", "val/AP50"]
    point_to_sweep(uri, experiment, "demo-1", key, ["a1", "b2"])
    note = mlflow_client(uri).get_experiment(experiment).tags["mlflow.note.content"]
    assert f"[charts](#/experiments/{experiment}/runs?" in note  # wherever the page is served
    assert f"viewStateShareKey={key})" in note
    assert "[all trials side by side](#/compare-runs?runs=" in note
    assert "tags.tood.sweep = 'demo-1'" in note
