"""A training run from the command line: one driver at a time."""

import pytest

from pipeline import runs
from pipeline.config import experiment_of
from pipeline.errors import StorageError
from pipeline.experiment_files import load_values
from pipeline.site import Site
from pipeline.storage.folder import FolderStore
from pipeline.storage.lock import hold
from tests.tiny import write_experiment


def test_a_run_that_is_driven_already_is_refused_before_anything_is_touched(tmp_path, monkeypatch):
    experiment = experiment_of(load_values(str(write_experiment(tmp_path))))
    site = Site(tmp_path / "out", "http://nowhere", "0", FolderStore(tmp_path / "store").url)
    said = []
    with (
        hold(site.store, "runs/mine.lock", "mine", beat=0.2),
        pytest.raises(StorageError, match="mine runs already: held by process"),
    ):
        runs.train_run(experiment, site, "mine", say=said.append)
    assert said[0].startswith("waiting for a sign of life of process")
    assert not site.output.exists()

    site.output.mkdir()
    monkeypatch.setattr(runs.Run, "open", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the first is done, and this one begins
        runs.train_run(experiment, site, "mine", say=said.append)
