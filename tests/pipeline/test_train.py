"""How a run is handed to Ray Train."""

from types import SimpleNamespace

import pytest

from pipeline import train
from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from tests.tiny import write_experiment


@pytest.mark.parametrize(("gpus", "env"), [(0, {"MALLOC_ARENA_MAX": "1"}), (1, {})])
def test_where_the_processor_computes_a_worker_has_one_arena(tmp_path, monkeypatch, gpus, env):
    """Ray trains in a thread of its own, whose arena `keep_freed_memory` would not reach: 50,000 page faults an epoch of 4 s."""
    made, result = [], SimpleNamespace(checkpoint=object())
    monkeypatch.setattr(train, "Trainer", lambda *_, **given: made.append(given) or SimpleNamespace(fit=lambda: result))
    monkeypatch.setattr(train, "read_pointer", lambda checkpoint: "progress")
    experiment = experiment_of(load_values(str(write_experiment(tmp_path))))
    train.fit(experiment, train.Address("run", "", "", "", str(tmp_path)), gpus=gpus)
    assert made[0]["run_config"].worker_runtime_env == {"env_vars": env}
