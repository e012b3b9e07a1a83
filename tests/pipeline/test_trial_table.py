"""The live table: it is part of what Ray saves of a sweep."""

from ray import cloudpickle
from ray.experimental import tqdm_ray

from pipeline.trial_table import TrialTable


def test_it_can_be_saved_after_ray_has_printed_a_workers_line():
    tqdm_ray.instance()  # what the first line of a worker does, often before the sweep is saved
    table = TrialTable("val/AP", print, describe=str, epochs=len)
    assert cloudpickle.loads(cloudpickle.dumps(table)).say is print
