"""What tests of training and of checkpoints begin with."""

import shutil
from pathlib import Path

import pytest

from tests.tiny import write_dataset

# torch takes seconds to import, so the fixtures that need it do it.


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Coloured squares."""
    return write_dataset(tmp_path_factory.mktemp("squares") / "data", train=8, val=3)


@pytest.fixture
def folder(tmp_path):
    """Emptied after its test: checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def model(tmp_path) -> Path:
    from tests.tood.checkpoints import INFO, weights
    from tood.checkpoint import save_model

    save_model(tmp_path / "model", weights(), INFO)
    return tmp_path / "model"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    from tests.tood.checkpoints import INFO, STATE, training, weights
    from tood.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "checkpoint", weights(), INFO, training(), STATE)
    return tmp_path / "checkpoint"
