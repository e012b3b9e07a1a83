"""Seeds of a configuration: which trials there are, how they are ranked, what is registered, and what is refused."""

import json
import math
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from pipeline import publish, repeats
from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.publish import conclude
from pipeline.site import Site
from pipeline.storage.checkpoints import upload_checkpoint
from pipeline.storage.folder import FolderStore
from pipeline.sweep import PLAN, Trial, make_plan, newest_plan
from pipeline.tracking.access import connect, resolve_uri
from pipeline.tracking.runs import SWEEP, Run, experiment_id
from tests.pipeline.checkpoints import make_checkpoint
from tests.tiny import write_experiment
from tood.config import identity
from tood.errors import ConfigError

SECTION = """
sweep:
  repeats: 3
  space:
    model.objective.alpha: [0.5, 1.0]
"""


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return load_values(str(write_experiment(tmp_path_factory.mktemp("repeats"), SECTION)))


def test_every_trial_runs_with_each_seed_and_all_once_before_any_twice(values):
    plan = make_plan(values)
    pairs = [(t["model.objective.alpha"], t["train.seed"]) for t in plan.trials]
    assert pairs == [(0.5, 0), (1.0, 0), (0.5, 1), (1.0, 1), (0.5, 2), (1.0, 2)]
    hashes = [experiment_of(values, t).hash for t in plan.trials]
    assert len(set(hashes)) == 6
    later = make_plan(values | {"train": values["train"] | {"seed": 7}})
    assert {t["train.seed"] for t in later.trials} == {7, 8, 9}


def test_a_sweep_with_other_repeats_is_another_one(values, tmp_path):
    plan = make_plan(values | {"output": str(tmp_path)})
    (tmp_path / plan.sweep).mkdir()
    (tmp_path / plan.sweep / PLAN).write_text(json.dumps(plan.__dict__))
    assert newest_plan(plan.values) == plan
    with pytest.raises(ConfigError, match="holds no sweep"):
        newest_plan(plan.values | {"sweep": plan.values["sweep"] | {"repeats": 2}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"space": {"train.seed": [0, 1]}}, "train.seed is an axis"),
        ({"search": "optuna", "samples": 2}, "Optuna"),
        ({"scheduler": "asha"}, "unlucky seeds"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(values, changed, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(values | {"sweep": values["sweep"] | changed})


def test_configurations_share_a_hash_whatever_their_seed(values):
    plan = make_plan(values)
    shared = [repeats.configuration_of(identity(experiment_of(values, t))) for t in plan.trials]
    assert shared[0] == shared[2] == shared[4] != shared[1] == shared[3]


def test_columns_are_all_parameters_in_which_trials_differ_and_not_the_best_ones_alone():
    """ATSS has no alpha; TOOD's trials differ in it. What TOOD alone has, and always alike, tells none of its trials apart."""
    own = [{"topk": 9}, {"alpha": 0.5, "window": 3}, {"alpha": 1.0, "window": 3}]
    kinds = ["atss", "task_aligned", "task_aligned"]
    trials = [
        trial(1.0, 0, 0.4 - i / 10, params={"objective": kind, "layers": 6, **params})
        for i, (kind, params) in enumerate(zip(kinds, own, strict=True))
    ]
    assert publish.differing(trials) == ["objective", "topk", "alpha"]
    assert publish.differing([]) == []
    rows = [{"params": publish._told({}, t.values, t, publish.differing(trials)), "published": None} for t in trials]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in publish.ranking(trials, rows, "val/AP").splitlines()]
    assert [row[1:4] for row in (table[0], *table[2:])] == [
        ["objective", "topk", "alpha"],
        ["atss", "9", ""],
        ["task_aligned", "", "0.5"],
        ["task_aligned", "", "1.0"],
    ]


def trial(alpha: float, seed: int, best: float | None, **more) -> Trial:
    known = {"id": f"{alpha}-{seed}", "run_id": "r", "params": {"alpha": alpha, "seed": seed}, "best_epoch": 2, "prefix": "p"}
    status = {"epochs": 4, "seconds": 60.0, "status": "FAILED" if best is None else "FINISHED"}
    return Trial(values={"model.objective.alpha": alpha, "train.seed": seed}, best=best, **(known | status | more))


OUTCOMES = [
    trial(0.5, 0, 0.40),
    trial(0.5, 1, 0.42),
    trial(0.5, 2, 0.44),
    trial(1.0, 0, 0.46),  # the best seed of all, of a configuration with a lower mean
    trial(1.0, 1, 0.38),
    trial(1.0, 2, 0.38),
    trial(2.0, 0, 0.50),  # lacks two seeds
    trial(2.0, 1, None),
    trial(2.0, 2, None),
    trial(3.0, 0, None),
]


def test_configurations_are_ranked_by_their_mean_and_the_incomplete_come_after():
    ranked = repeats.groups(OUTCOMES, 3)
    assert [g.values["model.objective.alpha"] for g in ranked] == [0.5, 1.0, 2.0, 3.0]
    first = ranked[0]
    assert (first.mean, first.spread, first.count) == pytest.approx((0.42, 0.02, 3))
    assert first.error == pytest.approx(0.02 / math.sqrt(3))
    assert first.lead.best == 0.44
    assert math.isnan(ranked[2].spread)
    assert [repeats.in_words(g) for g in ranked] == ["0.4200 ± 0.0200 (3)", "0.4067 ± 0.0462 (3)", "0.5000 (1)", "-"]


def test_a_configuration_drawn_twice_counts_a_seed_once():
    assert repeats.groups([trial(0.5, 0, 0.4), trial(0.5, 0, 0.4), trial(0.5, 1, 0.5)], 2)[0].count == 2


def test_without_repeats_trials_stay_what_they_are():
    ranked = repeats.groups(OUTCOMES[:3], 1)
    assert [g.mean for g in ranked] == [0.44, 0.42, 0.40]
    assert ranked[0].values == OUTCOMES[2].values


def test_the_table_says_mean_spread_and_number():
    ranked = repeats.groups(OUTCOMES, 3)
    told = [{"alpha": g.values["model.objective.alpha"]} for g in ranked]
    lines = repeats.table(ranked, told, [0.425, None, None, None], "val/AP").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:4] == ["", "alpha", "val/AP, mean ± sd (n)", "standard error"]
    assert cells[2] == ["1", "0.5", "0.4200 ± 0.0200 (3)", "0.0115", "0.4400 (seed 2)", "3.0", "finished", "0.425", "-0.0050"]
    assert cells[4][2:7] == ["0.5000 (1)", "-", "0.5000 (seed 0)", "3.0", "2 without figure"]
    assert len({len(line) for line in lines}) == 1


def test_the_best_configurations_best_seed_is_registered_and_the_report_is_there(values, tmp_path, monkeypatch):
    """Registration itself is the registry's affair; which checkpoint it is told of is this one's."""
    registered = []
    monkeypatch.setattr(publish, "register_best", lambda *args, **named: registered.append(named))
    uri = resolve_uri("", tmp_path)
    connect(uri)
    store = FolderStore(tmp_path / "store")
    upload_checkpoint(store, make_checkpoint(tmp_path / "checkpoint"), "run")
    plan = make_plan(values | {"output": str(tmp_path)})
    site = Site(tmp_path, uri, experiment_id(uri, "repeats"), store.url)
    (tmp_path / plan.sweep).mkdir()
    outcomes = []
    for place, outcome in enumerate(OUTCOMES[:6]):
        tags = {SWEEP: plan.sweep, "tood.kind": "trial", "tood.outcome": "finished"}
        run = Run.open(uri, site.experiment_id, f"{plan.sweep}/{place}", f"trial {place}", tags)
        run.params(outcome.params)
        run.metrics({"val/AP": outcome.best / 2}, step=1, epoch=1)
        run.metrics({"val/AP": outcome.best}, step=2, epoch=2)
        run.best("val/AP", outcome.best)
        run.finish()
        outcomes.append(replace(outcome, run_id=run.run_id, prefix=f"run/{place}"))
    said = []
    conclude(plan, site, outcomes, said.append)
    assert registered[0]["value"] == 0.44
    assert registered[0]["prefix"] == "run/2"
    assert "0.4200 ± 0.0200 (3)" in (tmp_path / plan.sweep / "ranking.md").read_text()
    page = (tmp_path / plan.sweep / "report.html").read_text()
    assert "Means over seeds" in page
    client = MlflowClient(uri)
    (summary,) = client.search_runs([site.experiment_id], "tags.`tood.kind` = 'sweep'")
    assert {"report.html", "ranking.md"} <= {file.path for file in client.list_artifacts(summary.info.run_id)}
    assert any("report.html" in line for line in said)
    ranks = [client.get_run(outcome.run_id).data.tags["tood.rank"] for outcome in outcomes]
    assert ranks == ["1" if outcome.values["model.objective.alpha"] == 0.5 else "2" for outcome in outcomes]
    (hint,) = [line for line in said if line.startswith("is 1 better than 2?")]
    assert hint.endswith(f"tood compare {plan.sweep}/1 {plan.sweep}/2 --set output={tmp_path}")
