"""Ray Train's watch over a run, which outlives the run's controller and frees what that has left; here from its first moment on.

Ray asks its own to watch by a call, for which the cleaner's process must be up, a second or two after it was asked for. Where
the controller died in that time the call never came, and the cleaner stayed on the cluster for ever.

And Ray's asks for the controller's state at whatever cluster it finds on its machine: beside a second one it found two, ended,
and freed nothing.
"""

import os

import ray
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner

RAYS_OWN = placement_group_callback.PlacementGroupCleanerCallback


def watching_at_once(callbacks: list[RayTrainCallback]) -> list[RayTrainCallback]:
    """The callbacks of a run, with such a cleaner instead of Ray's."""
    return [CleanerCallback() if type(callback) is RAYS_OWN else callback for callback in callbacks]


class CleanerCallback(RAYS_OWN):
    def after_controller_start(self, train_run_context) -> None:
        placement_group_callback.PlacementGroupCleaner = Cleaner  # in the controller's process, which is this run's alone
        super().after_controller_start(train_run_context)


class Cleaner(PlacementGroupCleaner):
    def __init__(self, **options):
        super().__init__(**options)
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # this process is the watch's alone
        self.start_monitoring()  # asked again it goes on
