"""How a run is handed to Ray Train."""

import signal
from types import SimpleNamespace

import pytest
from ray.train.torch import TorchTrainer

from pipeline import train
from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.failures import Trainer
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


@pytest.mark.parametrize("told", [KeyboardInterrupt, SystemExit])
def test_workers_of_a_driver_that_has_to_end_store_a_checkpoint_first(tmp_path, monkeypatch, capsys, told):
    def fit():
        raise told

    stopped = []
    monkeypatch.setattr(train, "Trainer", lambda *_, **given: SimpleNamespace(fit=fit))
    monkeypatch.setattr(train, "stop_workers", lambda run: stopped.append(run) or True)
    experiment = experiment_of(load_values(str(write_experiment(tmp_path))))
    with pytest.raises(told):
        train.fit(experiment, train.Address("run", "", "", "", str(tmp_path)), gpus=0)
    assert stopped == ["run"]
    assert "stopped behind a checkpoint; --resume goes on from it" in capsys.readouterr().out


def test_ctrl_c_is_python_s_own_while_ray_trains():
    """Ray's handler aborts the run without a checkpoint, says 0 to the shell, and stays when the run is over."""
    before = signal.getsignal(signal.SIGINT)
    assert callable(TorchTrainer._register_sigint_handler)
    Trainer._register_sigint_handler(SimpleNamespace(), controller=None)
    assert signal.getsignal(signal.SIGINT) is before
