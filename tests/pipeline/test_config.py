"""An experiment built: options that belong to a name, rows of the table of detectors, contradictions."""

import pytest

from pipeline.config import Experiment, experiment_of, merge
from pipeline.experiment_files import load_values
from tests.tiny import write_experiment
from tood.detectors import DETECTORS
from tood.errors import ConfigError
from tood.objectives.atss import ATSS
from tood.objectives.task_aligned import TaskAligned


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(write_experiment(tmp_path_factory.mktemp("tiny")))


def load(name: str, *overrides: str) -> Experiment:
    return experiment_of(load_values(name, overrides))


def test_another_name_starts_the_options_anew_and_the_same_name_goes_on(tiny):
    base = {"objective": {"name": "task_aligned", "alpha": 0.5, "warmup": {"name": "atss", "topk": 5}}}
    assert merge(base, {"objective": {"name": "atss", "topk": 3}})["objective"] == {"name": "atss", "topk": 3}
    assert merge(base, {"objective": {"m": 9}})["objective"] == base["objective"] | {"m": 9}
    assert merge(base, {"objective": {"name": "task_aligned", "m": 9}})["objective"] == base["objective"] | {"m": 9}
    assert load(tiny, "model.objective.name=atss").model.objective == ATSS()
    assert load(tiny).model.objective == TaskAligned(warmup_epochs=1)
    with pytest.raises(ConfigError, match=r"model\.objective\.alpha: unknown key"):
        load(tiny, "model.objective.name=atss", "model.objective.alpha=1")


# -- detectors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_a_row_of_the_table_takes_the_place_of_another(tiny, name):
    """tiny names no tower, aligner, prior or box of its own; its objective's options belong to task alignment."""
    objective = DETECTORS[name]["objective"]["name"]
    model = load(tiny, f"model.detector={name}", f"model.objective.name={objective}").model
    row = DETECTORS[name]
    assert {key: getattr(model, key) for key in ("tower", "aligner", "prior", "box")} == {
        key: row[key] for key in ("tower", "aligner", "prior", "box")
    }
    assert model.objective.name == objective
    assert (model.layers, model.channels) == (2, 16)  # what the experiment says itself stays


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.tower=parallel", "model.aligner=both"], "aligner: 'both' needs .* tower=t_head; .* set aligner=none"),
        (["model.box=delta"], "'delta' is relative to an anchor's size; set prior=anchor or box=distance"),
        (["model.prior=anchor"], "'anchor' has no effect on box=distance; set box=delta or prior=point"),
        (["model.groups=7"], "channels: 16 is not a multiple of groups=7"),
        (["model.bins=8"], r"model\.bins: 8 has no effect on box=distance; leave bins out"),
    ],
)
def test_choices_that_contradict_each_other_are_explained(tiny, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(tiny, *overrides)
    assert load(tiny, "model.tower=parallel").model.aligner == "none"  # follows where nothing else is said
