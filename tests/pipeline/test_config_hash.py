"""What the hash of an experiment stands for, and that every shipped experiment is one."""

from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from pipeline.config import Experiment, experiment_of
from pipeline.experiment_files import experiment_names, load_values
from tests.tiny import write_experiment


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(write_experiment(tmp_path_factory.mktemp("tiny")))


def load(name: str, *overrides: str) -> Experiment:
    return experiment_of(load_values(name, overrides))


@pytest.mark.parametrize(
    "override",
    ["name=x", "description=x", "output=x", "data.root=x", "data.train.annotations=x", "data.val.images=x", "data.workers=7",
     "train.log_every=1", "train.checkpoint_minutes=0.5", "ray.collective_seconds=60",
     "tracking.uri=http://x", "tracking.experiment=x", "tracking.model=x", "storage.url=s3://x/y",
     "ray.address=auto", "ray.cpus_per_worker=4", "ray.gpus_per_worker=1", "ray.max_failures=0", "sweep.seed=3"],
)  # fmt: skip
def test_where_and_how_fast_a_run_works_is_no_part_of_its_hash(tiny, override):
    assert load(tiny, override).hash == load(tiny).hash


def test_everything_that_changes_results_changes_the_hash(tiny):
    overrides = ["train.seed=1", "train.batch_size=8", "train.lr=0.02", "train.epochs=7", "train.precision=bf16",
                 "train.ema=0.9", "model.objective.alpha=0.5", "model.objective.m=9", "model.detector=parallel_tal",
                 "model.layers=3", "model.backbone.depth=34", "data.long_side=512", "data.short_side=32", "data.flip=0.25",
                 "data.augment.mosaic=0.5", "predict.tta.flip=true", "train.early_stopping.patience=2",
                 "data.keep_empty=true", "init=imagenet", "predict.nms_iou=0.5", "ray.workers=2"]  # fmt: skip
    hashes = {load(tiny, *override).hash for override in [[], *([o] for o in overrides)]}
    assert len(hashes) == len(overrides) + 1


@pytest.mark.parametrize("name", experiment_names())
def test_a_shipped_experiment_builds_and_its_printed_form_is_the_same_experiment(name, tmp_path, capsys):
    experiment = load(name)
    assert experiment.description or name.startswith("base/")
    assert main(["train", name, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"# hash {experiment.hash}\n" in printed
    file = tmp_path / "printed.yaml"
    file.write_text(printed)
    again = load(str(file))
    assert again == experiment
    assert again.hash == experiment.hash
    assert yaml.safe_load(printed)["name"] == Path(name).name
