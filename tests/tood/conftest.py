"""A model and a checkpoint as training saves them."""

from pathlib import Path

import pytest

# torch takes seconds to import, so the fixtures that need it do it.


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
