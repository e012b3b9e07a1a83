"""What became of a trial: its run's committed progress counts before what Tune's snapshot of the sweep knows."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from pipeline.errors import StorageError
from pipeline.experiment_files import load_values
from pipeline.site import Site
from pipeline.storage.checkpoints import prefix_of, upload_checkpoint, verify
from pipeline.storage.folder import FolderStore
from pipeline.storage.pointers import latest_of
from pipeline.tracking.runs import experiment_id
from pipeline.trials import Plan, outcome, progress_of, run_name
from pipeline.worker import Progress
from tests.pipeline.checkpoints import make_checkpoint
from tests.tiny import write_experiment

SWEEP = "sweep: {space: {model.objective.alpha: [0.5, 1.0]}}\n"
VALUES = {"model.objective.alpha": 0.5}
EPOCHS = 4  # of the tiny experiment


class Lab:
    """One trial of a sweep, with its run in a real store and in a real MLflow."""

    def __init__(self, folder, uri, client, name):
        self.folder, self.client = folder, client
        self.store = FolderStore(folder / "store")
        values = load_values(str(write_experiment(folder, SWEEP)), [])
        self.plan = Plan(f"sweep-of-{name}", values, [VALUES])
        self.site = Site(folder, uri, experiment_id(uri, "trials"), self.store.url)
        self.run = run_name(self.plan, "a")
        self.commits = 0

    def commit(self, value: float) -> Progress:
        """One more epoch done."""
        self.commits += 1
        before = progress_of(self.store, self.run)
        epoch = before.epoch + 1
        folder = make_checkpoint(self.folder / f"made{self.commits}", step=epoch, seed=self.commits)
        report = SimpleNamespace(epoch=epoch - 1, step=epoch, metrics={"val/AP": value}, last=epoch == EPOCHS)
        reached = before.advance(report, prefix_of(folder, self.run), value)
        upload_checkpoint(self.store, folder, self.run, asdict(reached))
        return reached

    def outcome(self, told: Progress, error: str = "", **how):
        return outcome(self.plan, self.site, "a", VALUES, told.result() | {"time_total_s": 3.0}, error, **how)

    def tags(self, trial) -> dict[str, str]:
        return self.client.get_run(trial.run_id).data.tags


@pytest.fixture
def lab(tmp_path, tracking_uri, client, request) -> Lab:
    return Lab(tmp_path, tracking_uri, client, request.node.originalname)


def test_what_a_run_has_committed_counts_before_what_tune_was_told(lab):
    """As after a driver's death just behind a trial's end: the state of the sweep is older."""
    told = lab.commit(0.1)
    reached = [lab.commit(value) for value in (0.2, 0.4, 0.3)][-1]
    trial = lab.outcome(told)
    assert (trial.status, trial.epochs, trial.best, trial.best_epoch) == ("FINISHED", EPOCHS, 0.4, 3)
    assert trial.prefix == reached.best_prefix
    assert (trial.seconds, trial.params["alpha"]) == (3.0, 0.5)
    tags = lab.tags(trial)
    assert tags["tood.best_checkpoint"] == lab.store.url_of(trial.prefix)
    assert tags["tood.outcome"] == "finished"
    assert latest_of(lab.store, lab.run).prefix == reached.prefix  # both of a finished run stay
    verify(lab.store, trial.prefix)


def test_a_stopped_run_keeps_its_best_and_its_dying_processes_cannot_take_that_away(lab):
    told = lab.commit(0.1)
    best = lab.commit(0.3)
    lab.commit(0.2)  # while it was being stopped
    trial = lab.outcome(told)
    assert (trial.status, trial.epochs, trial.best, trial.prefix) == ("STOPPED", 3, 0.3, best.prefix)
    with pytest.raises(StorageError, match="was ended for good"):
        lab.commit(0.9)
    assert lab.outcome(told) == trial  # as when the sweep is resumed once more
    assert lab.tags(trial)["tood.best_checkpoint"] == lab.store.url_of(best.prefix)
    verify(lab.store, best.prefix)


def test_a_trial_that_may_go_on_or_that_failed_is_left_as_it_is(lab):
    told = lab.commit(0.3)
    newest = lab.commit(0.2)
    for how in ({"may_go_on": True}, {"error": "out of order"}):
        trial = lab.outcome(told, **how)
        assert (trial.status, trial.epochs) == ("FAILED" if "error" in how else "STOPPED", 2)
        assert latest_of(lab.store, lab.run).prefix == newest.prefix
    assert lab.tags(trial)["tood.outcome"] == "failed"
    assert lab.commit(0.5).epoch == 3


def test_a_trial_of_which_the_store_knows_nothing_is_what_tune_was_told(lab):
    trial = lab.outcome(Progress(epoch=1, metrics={"val/AP": 0.5}))
    assert (trial.status, trial.epochs, trial.best, trial.prefix) == ("STOPPED", 1, None, "")
