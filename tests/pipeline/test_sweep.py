"""What a resumed sweep goes on with: the trials that it has, under what is said now."""

import json
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import sweep
from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.site import Site, absolute
from pipeline.storage.checkpoints import upload_checkpoint
from pipeline.storage.folder import FolderStore
from pipeline.storage.lock import hold
from pipeline.sweep import PLAN, Plan, make_plan, newest_plan
from tests.pipeline.checkpoints import make_checkpoint
from tests.tiny import write_experiment
from tood.errors import ConfigError, ToodError

SECTION = """
sweep:
  search: random
  samples: 3
  space:
    model.objective.alpha: {uniform: [0.5, 1.5]}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    return str(write_experiment(tmp_path_factory.mktemp("sweep"), SECTION))


def begun(file: str, *settings: str) -> Plan:
    """A plan, written as a sweep writes it."""
    plan = make_plan(load_values(file, settings))
    folder = Path(plan.values["output"]) / plan.sweep
    folder.mkdir(parents=True)
    (folder / PLAN).write_text(json.dumps(plan.__dict__))
    return plan


def test_what_the_command_line_says_at_resume_counts(file, tmp_path):
    first = begun(file, f"output={tmp_path}")
    now = ["ray.address=auto", "tracking.uri=http://mlflow:5000", "storage.url=/elsewhere", "sweep.max_concurrent=2"]
    plan = newest_plan(load_values(file, [f"output={tmp_path}", *now]))
    experiment = experiment_of(plan.values)
    assert (plan.sweep, plan.trials) == (first.sweep, first.trials)
    assert (experiment.ray.address, experiment.tracking.uri) == ("auto", "http://mlflow:5000")
    assert (experiment.storage.url, experiment.sweep.max_concurrent) == ("/elsewhere", 2)


def test_a_sweep_begun_in_one_folder_goes_on_there_from_another(file, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "first.safetensors").touch()
    monkeypatch.chdir(here)
    first = begun(file, "output=runs", "cache.dir=cache", "init=first.safetensors")
    kept = experiment_of(first.values)
    assert (kept.output, kept.cache.dir, kept.init) == (f"{here}/runs", f"{here}/cache", f"{here}/first.safetensors")
    assert newest_plan(load_values(file, ["output=runs", "init=first.safetensors", "cache.dir=cache"])) == first
    monkeypatch.chdir(there)
    settings = [f"output={here}/runs", f"init={here}/first.safetensors"]
    assert experiment_of(newest_plan(load_values(file, settings)).values).output == f"{here}/runs"


def test_what_cannot_change_is_refused(file, tmp_path):
    begun(file, f"output={tmp_path}")
    with pytest.raises(ConfigError, match=r"sweep.samples: \S+ was begun with 3, which cannot become 4"):
        newest_plan(load_values(file, [f"output={tmp_path}", "sweep.samples=4"]))
    with pytest.raises(ConfigError, match=r"sweep.metric: \S+ was begun with val/AP, by which"):
        newest_plan(load_values(file, [f"output={tmp_path}", "sweep.metric=val/AP50"]))
    with pytest.raises(ConfigError, match=r"lies in the output folder, .* looked for in s3://b/x; give those"):
        newest_plan(load_values(file, [f"output={tmp_path}", "ray.address=auto", "storage.url=s3://b/x/"]))
    with pytest.raises(ConfigError, match="holds no sweep"):
        newest_plan(load_values(file, [f"output={tmp_path}", "train.lr=0.5"]))


def test_a_store_without_the_trials_checkpoints_is_refused(tmp_path):
    plan, store = Plan("s", {}, []), FolderStore(tmp_path / "store")
    site = Site(tmp_path, "", "0", store.url)
    results = [SimpleNamespace(metrics=m) for m in (None, {"trial_id": "a"}, {"trial_id": "b", "best_prefix": "p"})]
    sweep._require_checkpoints(plan, site, results[:2])
    with pytest.raises(ConfigError, match="has no checkpoint of s, 1 of whose trials have some"):
        sweep._require_checkpoints(plan, site, results)
    upload_checkpoint(store, make_checkpoint(tmp_path / "checkpoint"), "s-b")
    sweep._require_checkpoints(plan, site, results)


def test_optunas_search_can_be_saved():
    """Tune saves it by plain pickle, every few seconds."""
    suggest = pickle.loads(pickle.dumps(partial(sweep._suggest, {"train.lr": [0.1]})))
    assert suggest(SimpleNamespace(suggest_categorical=lambda name, choices: choices[0])) == {"trial": {"train.lr": 0.1}}


def test_a_sweep_that_is_driven_already_is_refused(file, tmp_path, monkeypatch):
    plan = make_plan(load_values(file, [f"output={tmp_path}"]))
    site = Site(tmp_path, "", "0", FolderStore(tmp_path / "store").url)
    monkeypatch.setattr(sweep, "prepare", lambda experiment: site)
    with hold(site.store, f"runs/{plan.sweep}.lock", plan.sweep, beat=0.2), pytest.raises(ToodError, match="runs already"):
        sweep.run_sweep(plan, lambda line: None)
    assert not (tmp_path / plan.sweep).exists()


def test_initial_weights_may_lie_on_a_clusters_nodes_alone(tmp_path):
    def init(path: str, *settings: str) -> str:
        return absolute(experiment_of(load_values(str(write_experiment(tmp_path)), [f"init={path}", *settings]))).init

    (tmp_path / "here.safetensors").touch()
    assert init(f"{tmp_path}/here.safetensors", "ray.address=auto") == f"{tmp_path}/here.safetensors"
    assert init("~/", "ray.address=auto") == "~/"  # the same whether or not this machine has it, and so is its hash
    assert init("~/") == str(Path.home())
    for elsewhere in ("/nowhere/weights", "~/nowhere/weights"):
        assert init(elsewhere, "ray.address=auto") == elsewhere
        with pytest.raises(ConfigError, match=r"init: .* does not exist"):
            init(elsewhere)
    with pytest.raises(ConfigError, match=r"init: .* does not exist"):
        init("nowhere/weights", "ray.address=auto")  # relative to what?
