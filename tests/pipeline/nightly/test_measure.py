"""What entries measure in this process: means over seeds, parity of the evaluators, and code under test that raises."""

import math

import pytest

from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.nightly import measure as module
from pipeline.nightly.history import Night, alike, before, figures, last_passed, machine_kind, trend
from pipeline.nightly.judge import Figure
from pipeline.nightly.measure import accuracy_of, generated, largest_difference, measure_here, measure_parity, measure_speed
from pipeline.nightly.suite import AccuracyEntry, ParityEntry, SpeedEntry, Suite
from pipeline.site import absolute
from tests.tiny import write_experiment
from tood.config import build
from tood.errors import ConfigError, DataError, DivergedError
from tood.evaluation import coco_figures

ENTRY = AccuracyEntry("e", "demo", seeds=(0, 1), metrics=("val/AP", "val/AP50"))


def test_a_figure_is_the_mean_over_seeds_and_its_noise_their_deviation():
    ap, ap50 = accuracy_of(ENTRY, {0: {"val/AP": 0.3, "val/AP50": 0.5}, 1: {"val/AP": 0.4, "val/AP50": 0.5}})
    assert ap.figure == (pytest.approx(0.35), pytest.approx(0.1 / math.sqrt(2)), 2)
    assert (ap.metric, ap50.figure.noise) == ("e/val/AP", 0.0)


def test_a_seed_without_a_figure_leaves_none_and_says_why():
    ap, ap50 = accuracy_of(ENTRY, {0: {"val/AP": 0.3, "val/AP50": 0.5}, 1: {"val/AP": math.nan}}, {})
    assert (ap.figure, ap.missing) == (None, "seed 1 has no val/AP")
    assert ap50.figure is None
    found = accuracy_of(ENTRY, {0: {"val/AP": 0.3, "val/AP50": 0.5}}, {1: "training has diverged"})
    assert {m.missing for m in found} == {"training has diverged"}


def test_the_evaluators_agree_on_generated_detections_that_ask_something_of_them(tmp_path):
    (found,) = measure_parity(ParityEntry("p", images=30))
    assert found == ("p/largest_difference", Figure(0.0), "", ()) or found.figure.value <= 1e-9
    summary = coco_figures(*generated(tmp_path, 30, 0)).summary
    assert 0.1 < summary["AP"] < 0.9
    assert all(value >= 0 for value in summary.values())  # small, medium and large objects are there


def test_a_difference_between_the_evaluators_is_found(tmp_path, monkeypatch):
    annotations, detections = generated(tmp_path, 10, 0)
    real = coco_figures

    def wrong(annotations, detections, *, backend):
        found = real(annotations, detections, backend=backend)
        return found._replace(summary=found.summary | {"AR_large": 0.25}) if backend == "hotcoco" else found

    monkeypatch.setattr(module, "coco_figures", wrong)
    assert largest_difference(annotations, detections) > 1e-3


@pytest.fixture
def tiny(tmp_path):
    file = write_experiment(tmp_path)
    return file, absolute(experiment_of(load_values(str(file))))


def test_code_that_raises_has_no_figure_and_a_word_why(tiny, monkeypatch):
    entry = SpeedEntry("cost", str(tiny[0]), measures=("assign", "loader"), seconds=0.1)

    def broken(*arguments, **more):
        raise RuntimeError("sizes of tensors\nmust match")

    monkeypatch.setattr(module, "interleaved", broken)
    why = "RuntimeError: sizes of tensors must match"
    assert [(m.figure, m.missing) for m in measure_speed(entry, tiny[1])] == [(None, why)] * 2
    assert [m.metric for m in measure_speed(entry, tiny[1], ["cost/loader"])] == ["cost/loader"]
    monkeypatch.setattr(module, "operations", broken)
    assert {m.missing for m in measure_speed(entry, tiny[1])} == {why}

    suite = build(Suite, {"accuracy": [{"name": "e", "experiment": str(tiny[0]), "seeds": [0]}]})
    for error, expected in ((DivergedError("it has diverged"), "it has diverged"), (ZeroDivisionError(), "ZeroDivisionError")):
        monkeypatch.setattr(module, "train_here", lambda experiment, error=error: (_ for _ in ()).throw(error))
        (found,) = measure_here(suite, suite.accuracy[0], [], say=lambda line: None)
        assert (found.figure, found.missing) == (None, expected)
    for error in (DataError("no data"), ConfigError("no")):  # not the code's fault
        monkeypatch.setattr(module, "train_here", lambda experiment, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            measure_here(suite, suite.accuracy[0], [], say=lambda line: None)


def night(day: int, verdict: str = "passed", machine: str = "m", hash_: str = "h", value: float = 1.0) -> Night:
    return Night(f"r{day}", f"i{day}", f"2026-11-{day:02}", verdict, "c", "c", machine, {"e": hash_}, {"e/x": value}, day)


def test_only_passed_nights_of_the_same_entry_and_machine_are_history():
    nights = [night(1), night(2, "failed"), night(3, machine="other"), night(4, hash_="other"), night(5, value=2.0), night(9)]
    assert [n.night[-2:] for n in before(nights, "2026-11-05", "r5")] == ["01", "02", "03", "04"]
    assert [n.night[-2:] for n in before([*nights, night(6, "error"), night(7, "running")], "2026-11-30", "")] == [
        "01", "02", "03", "04", "05", "09"
    ]  # fmt: skip
    assert [f.value for f in figures(nights, "e", "h", "m", "e/x", 1)] == [1.0, 2.0, 1.0]
    assert figures(nights, "e", "h", "m", "e/y", 1) == []
    assert [p["verdict"] for p in trend(alike(nights, "e", "h", "m"), "e/x")] == ["passed", "failed", "passed", "passed"]
    assert last_passed(nights).night == "2026-11-09"
    assert last_passed([night(1, "failed")]) is None


def test_a_machine_is_named_by_what_computes_in_it():
    assert machine_kind() == machine_kind()
    assert " cores" in machine_kind()
