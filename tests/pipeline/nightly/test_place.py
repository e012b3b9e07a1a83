"""A suite's place: where its nights are kept, whatever its entries train."""

import pytest

from pipeline.nightly.place import find_place
from pipeline.nightly.suite import experiment_for, read_suite
from tests.tiny import write_experiment
from tood.errors import ConfigError


@pytest.fixture
def suite(tmp_path):
    experiment = write_experiment(tmp_path)
    file = tmp_path / "suite.yaml"
    file.write_text(
        f"accuracy: [{{name: six, experiment: {experiment}, settings: [train.batch_size=6], metrics: [val/AP]}}]\n"
        f"settings: [output={tmp_path}/runs]\n"
    )
    return read_suite(str(file))


def test_workers_are_counted_by_the_entries_batches_not_by_a_default(suite):
    settings = ["ray.workers=3", "ray.cpus_per_worker=2"]
    assert experiment_for(suite, suite.accuracy[0], settings).ray.workers == 3
    assert find_place(suite, settings).ray.cpus_per_worker == 2
    with pytest.raises(ConfigError, match=r"train\.batch_size: 6 images"):
        experiment_for(suite, suite.accuracy[0], ["ray.workers=4"])


def test_a_place_that_cannot_be_written_to_is_refused(suite):
    with pytest.raises(ConfigError, match=r"output: /sys/kernel cannot be written to \(.*\); choose another folder"):
        find_place(suite, ["output=/sys/kernel"])
