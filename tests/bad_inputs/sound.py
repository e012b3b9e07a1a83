"""The sound things that bad ones are made from, in one folder for all cases.

tiny.yaml, data/     an experiment and its data set of coloured squares
model/               a model folder with few numbers; checkpoint/ the same with a training's state
detector/            a model folder of a real detector of tiny.yaml
mlflow.db            a tracking database; its registry knows a model without versions, `known`
cluster.yaml         a cluster that is not there, `lab`
"""

from pathlib import Path

from tests.tiny import COLOURS, write_experiment
from tests.tood.checkpoints import INFO, STATE, training, weights
from tood.checkpoint import ModelInfo, save_checkpoint, save_model


def make_sound(folder: Path) -> Path:
    from mlflow import MlflowClient

    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values
    from pipeline.tracking.access import connect
    from tood.config import identity
    from tood.detectors import build_detector

    experiment = experiment_of(load_values(str(write_experiment(folder))))
    save_model(folder / "model", weights(), INFO)
    save_checkpoint(folder / "checkpoint", weights(), INFO, training(), STATE)
    detector = build_detector(experiment.model, len(COLOURS)).state_dict()
    info = ModelInfo(identity(experiment), experiment.hash, list(COLOURS), [1, 2, 3], 1, 4, {}, "0" * 64, {})
    save_model(folder / "detector", detector, info)
    connect(f"sqlite:///{folder}/mlflow.db")
    MlflowClient(f"sqlite:///{folder}/mlflow.db").create_registered_model("known")
    (folder / "cluster.yaml").write_text("clusters: {lab: {jobs: 'http://127.0.0.1:1'}}\n")
    return folder
