"""From names to detections: files, models, runs, trials and configurations, and what is said of names that lead nowhere."""

import json

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.reports.compare_page import metrics_of
from pipeline.reports.subjects import Place, read_subjects
from pipeline.tracking.access import connect, resolve_uri
from pipeline.tracking.runs import CONFIGURATION, DETECTIONS, RANK, SWEEP, Run, experiment_id
from tests.tiny import COLOURS, write_experiment
from tood.data.coco import read_coco
from tood.errors import DataError, ToodError
from tood.results import Detections, packed_results, read_results, write_results

CONFIGURATIONS = ("a" * 12, "b" * 12)


def detected(folder, looseness: float, seed: int) -> Detections:
    """The objects of the tiny val split, each with a box beside it."""
    generator = np.random.default_rng(seed)
    annotations = json.loads((folder / "data/val.json").read_text())["annotations"]
    boxes = np.array([a["bbox"] for a in annotations], dtype=float)
    boxes[:, :2] += looseness * generator.normal(size=(len(boxes), 2)) * boxes[:, 2:]
    ids, categories = (np.array([a[key] for a in annotations]) for key in ("image_id", "category_id"))
    return Detections(ids, boxes, generator.uniform(0.3, 1, len(boxes)), categories)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder, MLflow's address, and the ids of two configurations' runs with three seeds each; the first is the better one."""
    folder = tmp_path_factory.mktemp("subjects")
    file = write_experiment(folder)
    data = read_coco(folder / "data/val.json", folder / "data/val")
    uri = resolve_uri("", folder)
    connect(uri)
    experiment, ids = experiment_id(uri, "subjects"), []
    for place, (configuration, looseness) in enumerate(zip(CONFIGURATIONS, (0.03, 0.16), strict=True)):
        tags = {CONFIGURATION: configuration, SWEEP: "sweep", RANK: place + 1}
        for seed in range(3):
            run = Run.open(uri, experiment, f"sweep/{place}-{seed}", f"run {place}-{seed}", tags)
            run.params({"seed": seed})
            run.dataset("val", data.fingerprint, "validation", len(data.images))
            run.text(file.read_text(), "experiment.yaml")
            run.file(packed_results(folder / DETECTIONS, detected(folder, looseness, 10 * place + seed)), "best")
            run.finish()
            ids.append(run.run_id)
    return folder, uri, ids


def place(runs, **changes) -> Place:
    folder, uri, _ = runs
    return Place(uri, folder / "models", {}, None)._replace(**changes)


def test_what_reading_dropped_is_nothing_to_be_found(runs, tmp_path):
    folder, _, ids = runs
    content = json.loads((folder / "data/val.json").read_text())
    bad = [content["annotations"][0] | {"id": 900 + i, "bbox": box} for i, box in enumerate([[], [5, 5, 0, 10]])]
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content | {"annotations": bad + content["annotations"]}))
    split = {"root": str(folder / "data"), "val": {"annotations": str(file), "images": "val"}, "invalid_boxes": "drop"}
    truth, _ = read_subjects(ids[:1], place(runs, values={"data": split}), print)
    assert len(truth.annotations) == len(content["annotations"])
    with pytest.raises(DataError, match=r"bbox \[\] is not four"):  # a file given by hand counts as it is
        read_subjects(ids[:1], place(runs, annotations=file), print)


def test_runs_trials_and_configurations_are_found_with_their_detections(runs):
    folder, _, ids = runs
    names = [ids[0], "sweep/0-0", CONFIGURATIONS[0], ",".join(ids[3:]), "sweep/2"]
    truth, subjects = read_subjects(names, place(runs), print)
    assert truth.path == folder / "data/val.json"
    assert [len(s.members) for s in subjects] == [1, 1, 3, 3, 3]
    assert [s.configuration for s in subjects] == [CONFIGURATIONS[0]] * 3 + [CONFIGURATIONS[1]] * 2
    for column, same in zip(subjects[0].members[0].detections, detected(folder, 0.03, 0), strict=True):
        np.testing.assert_array_equal(column, same)


def test_a_packed_file_of_detections_reads_back_the_same(tmp_path, runs):
    found = detected(runs[0], 0.1, 5)
    write_results(tmp_path / "plain.json", found)
    packed = packed_results(tmp_path / "new/packed.json.gz", found)
    sent_unpacked = tmp_path / "sent.json.gz"  # as by a store that was told of the packing
    sent_unpacked.write_bytes((tmp_path / "plain.json").read_bytes())
    for file in (tmp_path / "plain.json", packed, sent_unpacked):
        for column, same in zip(read_results(file), found, strict=True):
            np.testing.assert_array_equal(column, same)
    assert packed.stat().st_size < (tmp_path / "plain.json").stat().st_size
    packed.write_bytes(packed.read_bytes()[:20])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_results(packed)


def test_names_that_lead_nowhere_and_data_that_differ_are_refused(runs, tmp_path):
    folder, uri, ids = runs
    with pytest.raises(DataError, match=r"nobody: no such file, and no run"):
        read_subjects(["nobody"], place(runs), print)
    with pytest.raises(ToodError, match="0" * 32):
        read_subjects(["0" * 32], place(runs), print)
    with pytest.raises(DataError, match="2 configurations"):
        read_subjects([f"{ids[0]},{ids[3]}"], place(runs), print)
    write_results(tmp_path / "found.json", detected(folder, 0.1, 1))
    with pytest.raises(DataError, match="give --annotations"):
        read_subjects([str(tmp_path / "found.json")], place(runs), print)
    bare = Run.open(uri, experiment_id(uri, "subjects"), "bare", "bare run")
    bare.finish()
    with pytest.raises(DataError, match="neither detections"):
        read_subjects([bare.run_id], place(runs), print)
    other = Run.open(uri, experiment_id(uri, "subjects"), "other", "other run", {"data.validation.fingerprint": "f" * 64})
    other.finish()
    with pytest.raises(DataError, match="other data"):
        read_subjects([ids[0], other.run_id], place(runs), print)


# -- the verb --------------------------------------------------------------------------------------------------------


def tood(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    return code, *capsys.readouterr()


def test_the_verb_compares_files_without_mlflow(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, *_ = runs
    for name, looseness in (("good.json", 0.02), ("bad.json", 0.3)):
        write_results(tmp_path / name, detected(folder, looseness, 1))
    words = ["compare", "bad.json", "good.json", "--annotations", str(folder / "data/val.json"), "--resamples", "200"]
    code, out, _ = tood(capsys, *words, "--html", "pages/page.html")
    assert code == 0
    assert out.splitlines()[-1].startswith("B is better: +")
    page = (tmp_path / "pages/page.html").read_text()
    assert "B is better" in page
    assert all(colour in page for colour in COLOURS)
    assert not (tmp_path / "runs").exists()
    code, out, _ = tood(capsys, *words, "--json")
    assert json.loads(out)["against_first"][0]["differences"]["AP"]["low"] > 0


def test_the_verb_compares_configurations_and_logs_to_mlflow(runs, capsys):
    folder, uri, ids = runs
    words = ["compare", *CONFIGURATIONS, "--set", f"tracking.uri={uri}", "--set", f"output={folder}", "--resamples", "200"]
    code, out, _ = tood(capsys, *words)
    assert code == 0
    assert out.count("3 seeds") == 2
    assert "A is better: +" in out.splitlines()[-1]
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tood").experiment_id], "tags.`tood.kind` = 'compare'")
    assert run.data.metrics["compare/AP"] < run.data.metrics["compare/AP_high"] < 0
    files = {file.path for file in client.list_artifacts(run.info.run_id, "compare")}
    assert files == {"compare/compare.json", "compare/compare.txt", "compare/compare.html"}
    code, out, _ = tood(capsys, "compare", ids[0], ids[1], "--set", f"tracking.uri={uri}", "--set", f"output={folder}")
    assert code == 0
    assert out.splitlines()[-1].startswith("no difference: A and B are seeds of one configuration")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "one.json"], "two subjects"),
        (["compare", "a", "b=1"], "--set"),
        (["compare", "no.json", "no2.json"], "no such file"),
        (["report", "no-sweep"], "no trial of such a sweep"),
        (["compare", "a", "b", "--resamples", "3"], "--resamples"),
    ],
)
def test_mistakes_are_one_clear_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = tood(capsys, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_figures_that_are_not_defined_are_no_metrics(runs):
    from pipeline.reports.compare import compare

    truth, subjects = read_subjects(runs[2][:2], place(runs), print)
    assert "compare/AP_large" not in metrics_of(compare(subjects, truth, resamples=100))
