"""What pods and operator's guide say of places that only Ray's and torch's sources explain."""

import re
import shlex
from copy import deepcopy
from pathlib import PurePosixPath

import torchvision
from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec as resources_of

from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from tests.infra.manifests import INFRA, of_kind, pods

GUIDE = (INFRA / "README.md").read_text()


def entrypoint() -> list[str]:
    return shlex.split(of_kind("RayJob")[0][1]["spec"]["entrypoint"])


def test_initial_weights_lie_on_the_data_volume_under_the_name_that_torch_looks_for():
    (places,) = [d["data"] for _, d in of_kind("ConfigMap") if d["metadata"]["name"] == "tood-places"]
    home = PurePosixPath(places["TORCH_HOME"])
    nodes = [pod for pod in pods() if any("envFrom" in container for container in pod.containers)]
    assert len(nodes) >= 4
    for pod in nodes:
        (claim,) = [v["name"] for v in pod.template["spec"]["volumes"] if "persistentVolumeClaim" in v]
        (mount,) = [m["mountPath"] for m in pod.containers[0]["volumeMounts"] if m["name"] == claim]
        assert home.is_relative_to(mount)
    experiment = experiment_of(load_values(entrypoint()[2], entrypoint()[3:]))
    assert experiment.init == "imagenet"
    weights = torchvision.models.get_model_weights(experiment.model.backbone.network).IMAGENET1K_V1
    assert f"`{weights.url.rsplit('/', 1)[-1]}`" in GUIDE
    assert f"{home / 'hub/checkpoints'}" in GUIDE


def test_the_job_says_what_it_wants_of_workers_that_come_from_zero():
    """Nobody tells it how many may come, or that they have a GPU each."""
    experiment = experiment_of(load_values(entrypoint()[2], entrypoint()[3:]))
    (group,) = of_kind("RayJob")[0][1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], experiment.sweep.max_concurrent) == (0, group["maxReplicas"])
    assert experiment.ray.gpus_per_worker == 1


def test_the_autoscaler_knows_a_type_of_accelerator_only_where_the_guide_has_it_declared():
    (group,) = of_kind("RayJob")[0][1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert resources_of(group, False).keys() == {"CPU", "GPU", "memory"}
    declared = deepcopy(group)
    declared["rayStartParams"]["resources"] = re.search(r"`resources: '(.+?)'`", GUIDE)[1]
    assert resources_of(declared, False)["accelerator_type:H100"] == 1
