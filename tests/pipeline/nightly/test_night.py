"""A night from start to verdict in MLflow, with measurements that are given instead of made: what is kept, what is judged by what,
and what is left behind by nights that did not end well."""

import json
from contextlib import nullcontext

import pytest

from pipeline.errors import StorageError
from pipeline.nightly import entries, night
from pipeline.nightly.history import read_nights
from pipeline.nightly.judge import Figure
from pipeline.nightly.measure import Measured
from pipeline.nightly.night import Night, Outcome
from pipeline.nightly.suite import Suite
from pipeline.nightly.trainings import Trained
from pipeline.tracking.past_runs import run_by_id
from tood.config import build
from tood.errors import DataError

GOOD = {"step": 20.0, "loader": 1.0, "AP": 0.30}


class Nights:
    """Runs nights of a suite of the test's own name, each with figures as given."""

    def __init__(self, name: str, tracking_uri: str, folder, monkeypatch):
        entry = {"experiment": "demo", "settings": [f"data.root={folder}"]}
        self.values = {
            "name": name,
            "parity": [{"name": "same"}],
            "speed": [entry | {"name": "cost", "measures": ["step", "loader"]}],
            "accuracy": [entry | {"name": "digits", "seeds": [0, 1], "model": "m"}],
        }
        self.uri, self.settings, self.patch = tracking_uri, [f"output={folder}", f"tracking.uri={tracking_uri}"], monkeypatch
        self.promoted: list[str] = []
        self.trained: list[str] = []
        self.said: list[str] = []
        monkeypatch.setattr(entries.cluster, "connected", lambda *a: nullcontext())
        monkeypatch.setattr(entries, "measure_parity", lambda entry: [Measured("same/largest_difference", Figure(0.0))])
        monkeypatch.setattr(night, "register_better", lambda experiment, site, trained: self.promoted.append(experiment.name))
        monkeypatch.setattr(night, "remove_what_is_not_needed", lambda *a: None)

    def run(self, date: str, again: bool = False, code: str = "a" * 40, timings=(), error=None, **figures) -> Outcome:
        found, timings = GOOD | figures, list(timings)
        self.patch.setenv("TOOD_COMMIT", code)

        def speed(entry, experiment, metrics):
            told = found | (timings.pop(0) if timings else {})
            wanted = [m for m in ("cost/step", "cost/loader") if metrics is None or m in metrics]
            return [Measured(m, Figure(told[m.partition("/")[2]], told.get("error", 0.01), 50)) for m in wanted]

        def train(experiment, site, entry, run, identity, say):
            if error and self.trained[-1:] == [f"{run}"[:-1] + "0"]:
                raise error
            self.trained.append(run)
            seed, value = experiment.train.seed, found["AP"]
            if value is None:
                return Trained(entry, seed, run, "", {}, error="training has diverged")
            return Trained(entry, seed, run, f"run{seed}", {"val/AP": value + 0.01 * seed}, "newest", "best", value)

        self.patch.setattr(entries, "measure_speed", speed)
        self.patch.setattr(entries, "train_seed", train)
        return Night(build(Suite, self.values), self.settings, date, self.said.append).run(again)

    def known(self) -> list:
        return read_nights(self.uri, self.values["name"])


@pytest.fixture
def nights(request, tracking_uri, tmp_path, monkeypatch) -> Nights:
    return Nights(request.node.originalname.replace("_", "-")[:50], tracking_uri, tmp_path, monkeypatch)


def statuses(outcome: Outcome) -> dict[str, str]:
    return {j.metric: j.status for j in outcome.verdict.judged}


def test_clean_nights_pass_and_a_regression_is_judged_by_the_passed_ones_alone(nights):
    assert statuses(nights.run("2026-11-01")) == {
        "same/largest_difference": "passed", "cost/step": "new", "cost/loader": "new", "digits/val/AP": "new"
    }  # fmt: skip
    second = nights.run("2026-11-02", code="b" * 40, loader=1.05)
    assert (second.verdict.verdict, second.verdict.exit_code) == ("passed", 0)
    assert set(statuses(second).values()) == {"passed"}
    assert len(nights.promoted) == 2

    third = nights.run("2026-11-03", code="c" * 40, AP=0.0, loader=2.2)
    assert (third.verdict.verdict, third.verdict.exit_code) == ("failed", 1)
    assert {j.metric for j in third.verdict.failed} == {"cost/loader", "digits/val/AP"}
    assert len(nights.promoted) == 2
    assert third.verdict.since["night"] == "2026-11-02"
    fourth = nights.run("2026-11-04", code="d" * 40, AP=0.0, loader=2.2)
    assert {j.nights for j in fourth.verdict.failed} == {2}
    assert [len(points) for points in fourth.verdict.trends.values()] == [3, 3, 3, 3]


def test_what_a_night_leaves_in_mlflow_and_in_its_folder(nights, tmp_path):
    outcome = nights.run("2026-11-01")
    run = run_by_id(nights.uri, outcome.verdict.run_id)
    assert run.status == "FINISHED"
    assert run.tags["tood.verdict"] == "passed"
    assert (run.tags["tood.suite"], run.tags["tood.night"]) == (nights.values["name"], "2026-11-01")
    assert run.tags["mlflow.source.git.commit"] == "a" * 40
    assert run.metrics["digits/val/AP"] == pytest.approx(0.305)
    assert run.metrics["digits/val/AP.noise"] == pytest.approx(0.01 / 2**0.5)
    assert outcome.folder == tmp_path / "nightly" / nights.values["name"] / "2026-11-01"
    assert sorted(file.name for file in outcome.folder.iterdir()) == ["report.html", "verdict.json", "verdict.md"]
    assert json.loads((outcome.folder / "verdict.json").read_text())["exit_code"] == 0


def test_a_night_with_a_verdict_is_read_back_and_again_measures_it_anew(nights):
    first = nights.run("2026-11-01")
    second = nights.run("2026-11-01", AP=0.0)
    assert not second.fresh
    assert (second.verdict.judged, second.verdict.run_id) == (first.verdict.judged, first.verdict.run_id)
    assert len(nights.trained) == 2
    other = nights.run("2026-11-01", code="b" * 40)  # other code is another night's work
    assert other.fresh
    third = nights.run("2026-11-01", again=True)
    assert third.fresh
    assert third.verdict.run_id != first.verdict.run_id
    assert len(nights.known()) == 3
    assert len(set(nights.trained)) == 6


@pytest.mark.parametrize(
    ("error", "status", "verdict"),
    [(KeyboardInterrupt(), "KILLED", "interrupted"), (SystemExit(143), "KILLED", "interrupted"),
     (StorageError("the store is away"), "FAILED", "error"), (DataError("no data"), "FAILED", "error")],
    ids=["Ctrl-C", "SIGTERM", "store", "data"],
)  # fmt: skip
def test_a_night_that_did_not_end_says_so_and_goes_on_in_the_same_run(nights, error, status, verdict):
    nights.values["name"] += verdict + type(error).__name__
    with pytest.raises(type(error)):
        nights.run("2026-11-01", error=error)
    (left,) = nights.known()
    assert (left.verdict, run_by_id(nights.uri, left.run_id).status) == (verdict, status)
    begun = nights.trained[0]
    done = nights.run("2026-11-01")
    assert done.verdict.run_id == left.run_id
    assert "night 2026-11-01 goes on where it was left" in nights.said
    assert nights.trained == [begun, begun, begun[:-1] + "1"]  # by the same names, which is how they are found again
    assert run_by_id(nights.uri, left.run_id).status == "FINISHED"


def test_a_burst_of_other_work_is_timed_again_and_a_slower_part_is_not_excused(nights):
    nights.run("2026-11-01")
    nights.run("2026-11-02")
    burst = nights.run("2026-11-03", timings=[{"loader": 4.0}, {"loader": 3.0}, {"loader": 1.1}])
    assert burst.verdict.verdict == "passed"
    assert next(j.value for j in burst.verdict.judged if j.metric == "cost/loader") == 1.1
    slow = nights.run("2026-11-04", timings=[{"loader": 2.4}, {"loader": 2.1}, {"loader": 2.2}])
    assert next(j.value for j in slow.verdict.failed) == 2.1


def test_a_busy_machine_is_said(nights):
    assert nights.run("2026-11-01").verdict.notes == []
    (note,) = nights.run("2026-11-02", error=None, timings=[{"error": 0.3}]).verdict.notes
    assert "more of a change passes: cost/step ± 30%, cost/loader ± 30%" in note


def test_a_training_that_diverges_is_a_failed_metric_with_its_reason(nights):
    found = nights.run("2026-11-01", AP=None)
    assert [j.why for j in found.verdict.failed] == ["vanished: training has diverged"]
    assert found.verdict.exit_code == 1


def test_what_cannot_be_compared_is_said(nights):
    nights.run("2026-11-01")
    nights.values["accuracy"][0]["settings"] = [*nights.values["accuracy"][0]["settings"], "train.epochs=5", "train.milestones=[4]"]
    nights.values["speed"][0]["measures"] = ["loader"]
    second = nights.run("2026-11-02", AP=0.1)
    assert statuses(second)["digits/val/AP"] == "new"
    assert statuses(second)["cost/loader"] == "passed"
    assert any("digits is configured otherwise than on 2026-11-01" in note for note in second.verdict.notes)
    assert any("no longer measures cost/step" in note for note in second.verdict.notes)


def test_a_night_of_the_past_is_judged_by_those_before_it(nights):
    nights.run("2026-11-05", AP=0.9)
    assert statuses(nights.run("2026-11-01"))["digits/val/AP"] == "new"
